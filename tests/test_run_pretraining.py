"""The command: help, mistakes that end in one message and status 2, and resuming after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import run_pretraining
from bert_ipu.recorder import METRICS_NAME, read_metrics

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--config", "unit_test", "recorder.progress_bar=false"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must end with status 2."""
    assert run_pretraining.main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_help_lists_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        run_pretraining.main(["--help"])
    assert exit_status.value.code == 0
    text = capsys.readouterr().out
    choices, default = "one of auto, simulator, ipu_model, ipu", "(default: 100 steps)"
    for part in ("--compile-only", "--resume", "ipu.backend", choices, default):
        assert part in text


def test_new_options_are_settings_not_flags() -> None:
    """Whoever needs a switch adds a field to config.py: flags are not checked, nor saved with a run."""
    source = (ROOT / "run_pretraining.py").read_text()
    assert set(re.findall(r'"(--[\w-]+)"', source)) == {"--config", "--compile-only", "--resume"}


@pytest.mark.parametrize(("arguments", "part"), [
    (["--config", "nothing"], "There is no configuration 'nothing'"),
    (["--config", "unit_test", "optim.l_r=1"], "did you mean optim.lr?"),
    (["--config", "unit_test", "ipu.backend=ipu"], "needs the Poplar SDK"),
    (["--config", "unit_test", "data.dataset=records", "data.train_data=/nowhere"], "/nowhere"),
    (["--config", "unit_test", "checkpoint.initial_weights=/nowhere"], "config.json cannot be read"),
    (["--config", "unit_test", "ipu.gradient_accumulation=3"], "at least 9 micro-batches are needed"),
])
def test_mistakes_end_with_one_message(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert part in refused(capsys, *arguments, f"train.output_dir={output}")
    assert not output.exists()


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no whole checkpoint" in refused(capsys, *TINY, "--resume", f"train.output_dir={tmp_path}")


def start(output: Path, *more: str) -> subprocess.Popen[bytes]:
    overrides = [
        "train.steps=8", "checkpoint.every_steps=1", "checkpoint.keep=9", f"train.output_dir={output}",
        "ipu.device_iterations=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run_pretraining.py", *TINY, *overrides, *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    resume: list[str] = []
    for after in (2, 5):
        run = start(killed, *resume)
        while not (killed / f"checkpoints/step_{after:08d}").exists():
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        resume = ["--resume"]
    assert start(killed, "--resume").wait() == 0
    last = "checkpoints/step_00000008"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(whole / last / name), load_file(killed / last / name)
        assert all(np.array_equal(ours[tensor], theirs[tensor]) for tensor in ours)
    losses = [[line["loss"] for line in read_metrics(path / METRICS_NAME)] for path in (whole, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
