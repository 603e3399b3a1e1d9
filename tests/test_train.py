"""Training through the simulator: it learns, it resumes bit for bit, it refuses what cannot work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from safetensors.numpy import load_file

import bert_ipu
from bert_ipu.backend import Backend, activate
from bert_ipu.checkpoint import load_checkpoint, newest_checkpoint
from bert_ipu.config import PretrainConfig, SquadConfig, config_from_values
from bert_ipu.errors import ConfigError, DataError, DivergedError
from bert_ipu.optim import make_optimizer
from bert_ipu.pipeline import squad_model
from bert_ipu.pretraining_data import PretrainDataset
from bert_ipu.recorder import METRICS_NAME, Recorder, read_metrics
from bert_ipu.records import Layout, Records, Rows
from bert_ipu.records_writer import write_manifest, write_shard
from bert_ipu.train import GeneratedRows, pretrain

SIMULATOR = Backend("simulator", "tests run in it")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(27))]
S = 16
SMALLEST = {
    "model.vocab_size": 32, "model.hidden_size": 16, "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2, "model.max_position_embeddings": S,
    "data.sequence_length": S, "data.mask_tokens": 3, "ipu.layers_per_ipu": [1], "ipu.matmul_proportion": 0.5,
    "ipu.gradient_accumulation": 2, "ipu.micro_batch_size": 2, "optim.lr": 0.01, "train.steps": 4,
    "recorder.progress_bar": False, "checkpoint.every_steps": 1, "checkpoint.keep": 9,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows of one sequence: CLS, seven words, SEP, six words, SEP."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "words.txt").write_text("\n".join(TOKENS) + "\n")
    ids = np.random.default_rng(0).integers(5, len(TOKENS), (10, S))
    ids[:, 0], ids[:, 8], ids[:, 15] = 2, 3, 3
    rows = Rows(ids, np.full((10, 1), S), np.full((10, 1), 9), np.arange(10)[:, None] % 2)
    layout = Layout(S, 1, len(TOKENS))
    write_manifest(folder, layout, [write_shard(folder, 0, rows, layout)], folder / "words.txt", {})
    return folder


def configured(records: Path, output: Path, **changes: object) -> PretrainConfig:
    values = {**SMALLEST, "data.train_data": str(records), "train.output_dir": str(output)}
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return config_from_values(PretrainConfig, values)


def measured(output: Path) -> list[dict[str, float]]:
    """Metrics without what depends on the clock."""
    clock = ("seconds", "sequences_per_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(output / METRICS_NAME)]


def assert_same_files(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys() and len(ours) > 10
        for tensor in ours:
            assert np.array_equal(ours[tensor], theirs[tensor]), f"{name}: {tensor}"


def test_diverged_training_stops_and_saves_no_broken_weights(records: Path, tmp_path: Path) -> None:
    """The optimizer's state overflows in the first step or its weights do in the second."""
    changes = {"ipu__precision": "float32", "optim__name": "sgd", "optim__lr": 1e30, "train__steps": 9}
    with pytest.raises(DivergedError, match=r"(?s)(loss of step|bert.* has overflowed).*optim.lr lower"):
        pretrain(configured(records, tmp_path, **changes), SIMULATOR)
    for checkpoint in (tmp_path / "checkpoints").glob("step_*"):
        assert all(np.isfinite(w).all() for w in load_file(checkpoint / "model.safetensors").values())
    half = {**changes, "ipu__precision": "float16", "checkpoint__every_steps": 0}  # saturates, as an IPU does
    with pytest.raises(DivergedError, match=r"By step 9, .* has overflowed.*loss_scaling 1; set one of"):
        pretrain(configured(records, tmp_path / "half", **half), SIMULATOR)
    assert not (tmp_path / "half" / "checkpoints").exists()


@pytest.mark.parametrize("changes", [
    {"ipu__precision": "float16", "optim__name": "lamb", "optim__schedule": "linear",
     "optim__warmup_fraction": 0.5},
    {"ipu__precision": "float32", "optim__name": "adamw", "optim__weight_decay": 0.01},
    {"ipu__precision": "float16", "optim__name": "sgd", "optim__loss_scaling": 8.0,
     "ipu__replication_factor": 2, "ipu__device_iterations": 2},
    {"ipu__precision": "float16", "optim__name": "lamb", "ipu__numerics": "fast"},
    {"ipu__precision": "float16", "optim__name": "adamw", "ipu__numerics": "fast",
     "optim__accumulation_type": "float16"},
], ids=["lamb", "adamw", "sgd", "fast lamb", "fast adamw"])
def test_resuming_after_any_step_changes_no_bit(
    records: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    whole = tmp_path / "whole"
    config = configured(records, whole, **changes)
    backend = activate(config.ipu)
    pretrain(config, backend)
    for last in (1, 2, 3):
        killed = tmp_path / f"killed after step {last}"
        shutil.copytree(whole, killed)
        for step in range(last + 1, 5):
            shutil.rmtree(killed / f"checkpoints/step_{step:08d}")
        pretrain(configured(records, killed, **changes), backend, resume=True)
        assert_same_files(whole / "checkpoints/step_00000004", killed / "checkpoints/step_00000004")
        assert measured(whole) == measured(killed)
        assert [line["step"] for line in measured(killed)] == [1, 2, 3, 4]


def test_training_learns_and_evaluates(records: Path, tmp_path: Path) -> None:
    config = configured(
        records, tmp_path, train__steps=30, ipu__precision="float32", checkpoint__every_steps=0,
        data__fixed_masks=True, data__eval_data=str(records), train__eval_every_steps=15, train__eval_rows=10,
        model__hidden_dropout_prob=0.0, model__attention_probs_dropout_prob=0.0)
    pretrain(config, SIMULATOR)
    steps = read_metrics(tmp_path / METRICS_NAME, "train")
    evaluations = read_metrics(tmp_path / METRICS_NAME, "eval")
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]
    assert [line["step"] for line in evaluations] == [15, 30]
    assert evaluations[1]["mlm_loss"] < evaluations[0]["mlm_loss"]
    assert evaluations[1]["mlm_loss"] < steps[0]["mlm_loss"]


def test_an_output_folder_is_not_overwritten(records: Path, tmp_path: Path) -> None:
    pretrain(configured(records, tmp_path, train__steps=1), SIMULATOR)
    with pytest.raises(ConfigError, match="holds checkpoints of an earlier run"):
        pretrain(configured(records, tmp_path, train__steps=1), SIMULATOR)


def test_changed_settings_take_effect_on_resuming(records: Path, tmp_path: Path) -> None:
    """Also those that a checkpoint holds: the optimizer's numbers, and what the device keeps of them."""
    start = {"train__steps": 2, "optim__name": "adamw", "ipu__precision": "float32",
             "optim__accumulation_type": "float32"}
    pretrain(configured(records, tmp_path / "start", **start), SIMULATOR)
    results = {}
    for key, value in {
        "optim__loss_scaling": 8.0, "optim__weight_decay": 0.5, "optim__beta2": 0.5, "optim__eps": 0.01,
    }.items():
        folder = tmp_path / key
        shutil.copytree(tmp_path / "start", folder)
        changes = {**start, "train__steps": 3, key: value}
        pretrain(configured(records, folder, **changes), SIMULATOR, resume=True)
        weights = load_file(folder / "checkpoints/step_00000003/model.safetensors")
        scalars = load_file(folder / "checkpoints/step_00000003/optimizer.safetensors")
        results[key] = weights["bert.pooler.dense.weight"].tobytes()
        loss_scale = next(value for name, value in scalars.items() if "lossScaling" in name)
        assert loss_scale == (8 if key == "optim__loss_scaling" else 1)
    assert len(set(results.values())) == 4, "each changes the weights but loss scaling, exact in float32"


def test_another_kind_of_run_cannot_be_resumed(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(records, tmp_path, train__steps=1)
    pretrain(config, SIMULATOR)
    pretrain(config, SIMULATOR, resume=True)
    assert "all 1 steps are taken" in capsys.readouterr().out
    model = squad_model(SquadConfig(model=config.model, ipu=config.ipu))
    with pytest.raises(ConfigError, match="trains BertForQuestionAnswering, whose parameters are others"):
        newest = newest_checkpoint(tmp_path / "checkpoints")
        load_checkpoint(newest, model, config.model, make_optimizer(model, config.optim))


@pytest.mark.parametrize("loader", [{"data__workers": 1}, {"data__async_loader": True}])
def test_a_row_that_breaks_in_another_process_is_named(
    records: Path, tmp_path: Path, loader: dict[str, object]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(records, broken)
    shard = broken / "rows-00000.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # of a row that compiling does not read
    shard.write_bytes(content)
    with pytest.raises(DataError) as caught:
        pretrain(configured(broken, tmp_path / "out", train__steps=60, **loader), SIMULATOR)
    assert "does not match its checksum" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_patterns_of_files(records: Path, tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(DataError, match="No file fits the pattern"):
        pretrain(configured(tmp_path / "*.tfrecord", tmp_path / "out"), SIMULATOR)
    both = configured(shared_data / "graphcore_bert" / "*.tfrecord", tmp_path / "out")
    with pytest.raises(DataError, match="rows of different kinds"):
        pretrain(both, SIMULATOR)


def test_there_must_be_something_to_resume(records: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no whole checkpoint"):
        pretrain(configured(records, tmp_path), SIMULATOR, resume=True)


def test_compiling_needs_no_data(tmp_path: Path) -> None:
    pretrain(configured(tmp_path / "nowhere", tmp_path / "out"), SIMULATOR, compile_only=True)
    assert not (tmp_path / "out").exists()


def test_packs_must_be_as_configured(records: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="up to 1 sequences in a row"):
        pretrain(configured(records, tmp_path, data__max_sequences_per_pack=2), SIMULATOR)


def test_generated_rows_have_the_shapes_of_records(records: Path, tmp_path: Path) -> None:
    config = configured(records, tmp_path)
    generated = GeneratedRows(config.data, config.model.vocab_size, 10, seed=0).batch([0, 1, 2])
    real = PretrainDataset(Records(records), mask_tokens=3).batch([0, 1, 2])
    assert [(t.shape, t.dtype) for t in generated] == [(t.shape, t.dtype) for t in real]




def test_a_step_runs_through_at_most_ten_modules(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure of readability: our modules whose functions run from one step's end to the next's."""
    package = Path(bert_ipu.__file__).parent
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == package:
            seen.add(path.stem)

    recorded = Recorder.step

    def step(self: Recorder, number: int, metrics: dict[str, float]) -> None:
        recorded(self, number, metrics)
        sys.setprofile(note if number < 3 else None)

    monkeypatch.setattr(Recorder, "step", step)
    pretrain(configured(records, tmp_path, train__steps=3, checkpoint__every_steps=0), SIMULATOR)
    assert {"train", "sampler", "records", "pretraining_data", "optim"} <= seen
    assert len(seen) <= 10, sorted(seen)


@pytest.mark.parametrize("changes", [
    {"optim__auto_loss_scaling": True, "optim__loss_scaling": 1.0},
    {"ipu__embedding_serialization_factor": 2, "ipu__replicated_tensor_sharding": True,
     "ipu__replication_factor": 2},
    {"data__dataset": "generated", "data__max_sequences_per_pack": 2, "ipu__half_partials": False},
    {"data__workers": 1, "data__whole_word_masking": True},
    pytest.param({"data__workers": 1, "data__async_loader": True}, marks=pytest.mark.slow),
], ids=["auto_loss_scaling", "serialized", "packed", "workers", "async_loader"])
def test_settings_take_real_steps(records: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    pretrain(configured(records, tmp_path, train__steps=2, checkpoint__every_steps=0, **changes), SIMULATOR)
    losses = [line["loss"] for line in read_metrics(tmp_path / METRICS_NAME)]
    # Untrained, every word is as likely as the others, and the next sentence is a coin.
    assert losses == pytest.approx([np.log(32) + np.log(2)] * 2, rel=0.15)
