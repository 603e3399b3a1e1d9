"""What a run shows and keeps: metrics.jsonl always; progress bar, TensorBoard, Weights & Biases by option."""
from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path
from typing import IO, Any, Dict, List, Mapping, Optional

from tqdm import tqdm

from bert_ipu.config import RunConfig, config_as_dict
from bert_ipu.errors import ConfigError, writing_to
from bert_ipu.records import atomic_file

METRICS_NAME = "metrics.jsonl"
LOCK_NAME = ".lock"


class Recorder:
    """Takes metrics of steps and evaluations; does nothing on instances other than the first."""

    def __init__(
        self, config: RunConfig, total_steps: int, first_step: int = 0, is_first: bool = True
    ) -> None:
        """Go on after `first_step` steps; what an interrupted run recorded later is dropped.

        Raises ConfigError where TensorBoard or Weights & Biases is asked for and not installed, or another
        run is writing to the output folder.  DataError where nothing can be written there.
        """
        self.is_first = is_first
        self._total_steps, self._first_step = total_steps, first_step
        self._progress_bar = config.recorder.progress_bar
        self._bar: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not is_first:
            return
        folder = self._folder = Path(config.train.output_dir)
        self.path = folder / METRICS_NAME
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            _drop_after(self.path, first_step)
            self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for as long as the run)
        if config.recorder.tensorboard:
            self._tensorboard = _tensorboard_writer(folder / "tensorboard", first_step)
        if config.recorder.wandb_project:
            self._wandb = _wandb_run(config)

    def start(self) -> None:
        """Show the progress bar, whose clock starts now: after what is done once, such as compiling."""
        if self.is_first and self._progress_bar:
            self._bar = tqdm(
                total=self._total_steps, initial=self._first_step, unit="step", dynamic_ncols=True)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.is_first:
            tqdm.write(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a training step, counted from 1."""
        if not self.is_first:
            return
        self._record("train", step, metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(_short(metrics), refresh=False)
            self._bar.update(1)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation after `step` steps."""
        if self.is_first:
            self._record("eval", step, metrics)
            self.say(f"evaluation after step {step}: {_short(metrics)}")

    def close(self) -> None:
        """Finish all records."""
        if not self.is_first:
            return
        self._file.close()
        self._lock.close()
        for other in (self._bar, self._tensorboard):
            if other is not None:
                other.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _record(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        with writing_to(self._folder):
            self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=step)


def read_metrics(path: Path, kind: Optional[str] = None) -> List[Dict[str, Any]]:
    """The lines of a metrics.jsonl, all or those of one kind ("train", "eval")."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def _short(metrics: Mapping[str, float]) -> str:
    """Metrics in a line: rates in whole numbers, learning rates with a power, the rest with decimals."""
    formats = {"learning_rate": "lr {:.1e}", "sequences_per_s": "{:.0f} sequences/s"}
    shown = {name: value for name, value in metrics.items() if name not in ("epoch", "seconds")}
    return ", ".join(formats.get(name, name + " {:.3f}").format(value) for name, value in shown.items())


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a line cut by a crash goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line + "\n")
        except ValueError:
            continue
    with atomic_file(path) as file:
        file.write("".join(kept).encode())


def _locked(folder: Path) -> IO[str]:
    """A file in `folder` that only one process has locked, for as long as it is open and the process lives."""
    file = open(folder / LOCK_NAME, "w")  # noqa: SIM115 (open for as long as the run)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system without locks
            raise ConfigError(
                f"Another run is writing to {folder}. Wait until it has ended, or set train.output_dir to "
                f"another folder.") from error
    return file


def _tensorboard_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "recorder.tensorboard = true needs the package tensorboard, which is not installed. "
            "Run pip install tensorboard, or set recorder.tensorboard=false.") from error
    return SummaryWriter(str(folder), purge_step=first_step + 1)  # type: ignore[no-untyped-call]


def _wandb_run(config: RunConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"recorder.wandb_project = {config.recorder.wandb_project} needs the package wandb, which is not "
            f"installed. Run pip install wandb, or leave recorder.wandb_project empty.") from error
    return wandb.init(project=config.recorder.wandb_project, config=config_as_dict(config))
