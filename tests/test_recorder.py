"""metrics.jsonl, what a resumed run keeps of it, and optional recorders."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bert_ipu.config import PretrainConfig, RecorderConfig, TrainConfig
from bert_ipu.errors import ConfigError, DataError
from bert_ipu.recorder import METRICS_NAME, Recorder, read_metrics


def configured(folder: Path, **recorder: object) -> PretrainConfig:
    return dataclasses.replace(
        PretrainConfig(), train=TrainConfig(output_dir=str(folder)),
        recorder=RecorderConfig(progress_bar=False, **recorder))


def test_steps_and_evaluations_are_kept_exactly(tmp_path: Path) -> None:
    recorder = Recorder(configured(tmp_path), total_steps=2)
    recorder.step(1, {"loss": 0.1 + 0.2})
    recorder.evaluation(1, {"loss": 3.0})
    recorder.close()
    path = tmp_path / METRICS_NAME
    assert read_metrics(path, "train") == [{"kind": "train", "step": 1, "loss": 0.1 + 0.2}]
    assert read_metrics(path, "eval") == [{"kind": "eval", "step": 1, "loss": 3.0}]


def test_resuming_drops_what_comes_again(tmp_path: Path) -> None:
    recorder = Recorder(configured(tmp_path), total_steps=4)
    for step in (1, 2, 3):
        recorder.step(step, {"loss": float(step)})
    recorder.close()
    with open(tmp_path / METRICS_NAME, "a") as file:
        file.write('{"kind": "tra')
    recorder = Recorder(configured(tmp_path), total_steps=4, first_step=2)
    recorder.step(3, {"loss": 30.0})
    recorder.close()
    assert [line["loss"] for line in read_metrics(tmp_path / METRICS_NAME)] == [1.0, 2.0, 30.0]


def test_other_instances_write_nothing(tmp_path: Path) -> None:
    recorder = Recorder(configured(tmp_path / "out"), total_steps=1, is_first=False)
    recorder.step(1, {"loss": 1.0})
    recorder.close()
    assert not (tmp_path / "out").exists()


def test_tensorboard(tmp_path: Path) -> None:
    recorder = Recorder(configured(tmp_path, tensorboard=True), total_steps=1)
    recorder.step(1, {"loss": 2.5})
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.5)]


def test_one_run_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    """Another process: a process may lock a file again that it has locked itself."""
    recorder = Recorder(configured(tmp_path), total_steps=2)
    recorder.step(1, {"loss": 1.0})
    other = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; import test_recorder as t\n"
        "try: t.Recorder(t.configured(Path(sys.argv[1])), total_steps=2)\n"
        "except t.ConfigError as error: print(error)")
    command = [sys.executable, "-c", other, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    assert f"Another run is writing to {tmp_path}" in told
    recorder.close()
    assert len(read_metrics(tmp_path / METRICS_NAME)) == 1
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"cannot be written .* train.output_dir another folder"):
            Recorder(configured(folder), total_steps=1)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="package wandb"):
        Recorder(configured(tmp_path, wandb_project="bert"), total_steps=1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="package tensorboard"):
        Recorder(configured(tmp_path, tensorboard=True), total_steps=1)
