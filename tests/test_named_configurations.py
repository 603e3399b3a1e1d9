"""Every named configuration takes two real optimizer steps in the simulator, and compiles in its full size.

Accumulation, replicas, micro-batch and device iterations are overridden to fit a small machine; model,
placement, precision, optimizer, schedule and data shape stay as they are.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert_ipu.backend import Backend
from bert_ipu.batch import SquadBatch
from bert_ipu.config import CONFIG_FOLDER, PretrainConfig, RunConfig, SquadConfig, load_config
from bert_ipu.distributed import World
from bert_ipu.pipeline import squad_model
from bert_ipu.recorder import METRICS_NAME, read_metrics
from bert_ipu.train import Task, pretrain, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SIMULATOR = Backend("simulator", "tests run in it")
PRETRAINING = sorted(path.stem for path in (CONFIG_FOLDER / "pretraining").glob("*.yaml"))
SQUAD = sorted(path.stem for path in (CONFIG_FOLDER / "squad").glob("*.yaml"))


class RandomWindows(torch.utils.data.Dataset[SquadBatch]):
    """SQuAD windows of random tokens."""

    def __init__(self, length: int, sequence_length: int, vocab_size: int) -> None:
        self.length, self.sequence_length, self.vocab_size = length, sequence_length, vocab_size

    def __len__(self) -> int:
        return self.length

    def batch(self, names: list[int]) -> SquadBatch:
        shape = (len(names), self.sequence_length)
        ids = torch.randint(self.vocab_size, shape, dtype=torch.int32)
        start, end = torch.randint(self.sequence_length, (2, len(names)), dtype=torch.int32)
        return SquadBatch(ids, torch.ones_like(ids), torch.zeros_like(ids), start, end)

    def __getitems__(self, names: list[int]) -> SquadBatch:
        return self.batch(names)


def fitted(root: type[RunConfig], name: str, output: Path) -> list[str]:
    """Overrides that let two steps of a configuration run in minutes."""
    config = load_config(root, name)
    return [
        f"ipu.gradient_accumulation={config.pipeline_depth}", "ipu.replication_factor=1",
        "ipu.micro_batch_size=1", "ipu.device_iterations=1", "ipu.executable_cache_dir=",
        "data.workers=0", "data.async_loader=false",
        "train.steps=2", f"train.output_dir={output}", "recorder.progress_bar=false"]


def assert_two_sound_steps(output: Path, config: RunConfig) -> None:
    steps = read_metrics(output / METRICS_NAME, "train")
    assert len(steps) == 2
    assert all(math.isfinite(step["loss"]) for step in steps)
    assert steps[0]["learning_rate"] != steps[1]["learning_rate"] or config.optim.schedule == "constant"


@pytest.mark.parametrize("name", PRETRAINING)
def test_two_pretraining_steps(name: str, tmp_path: Path) -> None:
    overrides = [*fitted(PretrainConfig, name, tmp_path), "data.dataset=generated"]
    config = load_config(PretrainConfig, name, overrides)
    pretrain(config, SIMULATOR)
    assert_two_sound_steps(tmp_path, config)
    # A model that knows nothing gives every word the same chance; NSP is a coin.
    expected = math.log(config.model.vocab_size) + math.log(2)
    assert read_metrics(tmp_path / METRICS_NAME)[0]["loss"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", SQUAD)
def test_two_fine_tuning_steps(name: str, tmp_path: Path) -> None:
    config = load_config(SquadConfig, name, fitted(SquadConfig, name, tmp_path))
    torch.manual_seed(config.train.seed)
    rows = RandomWindows(config.samples_per_step, config.data.sequence_length, config.model.vocab_size)
    train(Task(config, squad_model(config), rows, total_steps=2, world=World()))
    assert_two_sound_steps(tmp_path, config)
    first = read_metrics(tmp_path / METRICS_NAME)[0]["loss"]
    assert first == pytest.approx(math.log(config.data.sequence_length), rel=0.15)


@pytest.mark.parametrize("name", PRETRAINING)
def test_full_size_compiles(name: str) -> None:
    """In a process of its own, as a user would, on the null device."""
    result = subprocess.run(
        [sys.executable, "run_pretraining.py", "--config", name, "--compile-only"],
        cwd=CONFIG_FOLDER.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "compiled in" in result.stdout
