"""Checkpoints: Hugging Face loads them as they are; half-written and foreign ones are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bert_ipu.batch import SquadBatch
from bert_ipu.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_initial_weights,
    newest_checkpoint,
    save_checkpoint,
)
from bert_ipu.config import IpuConfig, ModelConfig, OptimConfig, PretrainConfig, SquadConfig
from bert_ipu.errors import ConfigError, DataError
from bert_ipu.optim import make_optimizer
from bert_ipu.pipeline import PipelinedModel, pretraining_model, squad_model
from bert_ipu.sampler import Position
from bert_ipu.tokenizer import load_tokenizer

SHAPE = ModelConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IPU = IpuConfig(layers_per_ipu=(1, 1), precision="float32", embedding_serialization_factor=3)
PRETRAIN = PretrainConfig(model=SHAPE, ipu=IPU)
SQUAD = SquadConfig(model=SHAPE, ipu=IPU)
STATE = TrainingState(7, Position(2, 5), [42, 1, 2, 3], {"train": {"seed": 42}})


def save(
    folder: Path, model: PipelinedModel, state: TrainingState = STATE, vocab: Path | None = None,
    keep: int = 2,
) -> Path:
    return save_checkpoint(folder, model, SHAPE, make_optimizer(model, OptimConfig()), state, vocab, keep)


def test_hugging_face_loads_pretraining(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = pretraining_model(PRETRAIN)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]) + "\n")
    path = save(tmp_path, model, vocab=vocab)
    theirs, report = transformers.BertForPreTraining.from_pretrained(path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer("ab A")["input_ids"] == [2, 5, 6, 5, 3]


def test_hugging_face_loads_question_answering(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = squad_model(SQUAD).eval()
    theirs, report = transformers.BertForQuestionAnswering.from_pretrained(
        save(tmp_path, model), output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(30, (2, 12), dtype=torch.int32)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    labels = torch.zeros(2, dtype=torch.int32)
    ours = model.model(SquadBatch(ids, ones, zeros, labels, labels))
    expected = theirs.eval()(ids.long(), ones, zeros.long())
    torch.testing.assert_close(ours.start_logits, expected.start_logits)
    torch.testing.assert_close(ours.end_logits, expected.end_logits)


@pytest.mark.parametrize("build", [lambda: pretraining_model(PRETRAIN), lambda: squad_model(SQUAD)])
def test_loading_gives_back_what_was_saved(tmp_path: Path, build: object) -> None:
    torch.manual_seed(3)
    saved, other = build(), build()
    path = save(tmp_path, saved)
    assert load_checkpoint(path, other, SHAPE, make_optimizer(other, OptimConfig())) == STATE
    for name, tensor in other.model.state_dict().items():
        assert torch.equal(tensor, saved.model.state_dict()[name]), name


def test_only_whole_checkpoints_are_taken_and_old_ones_go(tmp_path: Path) -> None:
    model = squad_model(SQUAD)
    paths = [save(tmp_path, model, STATE._replace(step=step), keep=3) for step in (8, 9, 10, 11)]
    assert [path.exists() for path in paths] == [False, True, True, True]
    weights = (paths[3] / "model.safetensors").read_bytes()
    (paths[3] / "model.safetensors").write_bytes(weights[:-1])
    (paths[2] / "optimizer.safetensors").unlink()
    (tmp_path / ".step_00000012.partial").mkdir()
    assert newest_checkpoint(tmp_path) == paths[1]
    with pytest.raises(DataError, match="no whole checkpoint"):
        newest_checkpoint(tmp_path / "nowhere")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, squad_model(SQUAD))
    wide = dataclasses.replace(SHAPE, hidden_size=32, num_attention_heads=4)
    model = squad_model(dataclasses.replace(SQUAD, model=wide))
    with pytest.raises(ConfigError, match=r"model\.hidden_size = 32, but the folder has 16"):
        load_checkpoint(path, model, wide, make_optimizer(model, OptimConfig()))


def test_starting_from_real_weights(shared_data: Path) -> None:
    folder = shared_data / "models/all-MiniLM-L6-v2"
    shape = ModelConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    model = squad_model(SquadConfig(model=shape, ipu=IpuConfig(layers_per_ipu=(6,))))
    missing = load_initial_weights(folder, model, shape)
    assert missing == ["qa_outputs.bias", "qa_outputs.weight"]
    stored = load_file(folder / "model.safetensors")["encoder.layer.5.output.dense.weight"]
    assert torch.equal(model.model.bert.encoder.layer[5].output.dense.weight, stored.half())


def test_starting_from_names_of_old(tmp_path: Path) -> None:
    """The published bert-base-uncased has gamma and beta in its layer norms; Hugging Face renames them, too."""
    torch.manual_seed(4)
    theirs = transformers.BertModel(transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=12))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
        tensor for name, tensor in theirs.state_dict().items()}
    theirs.config.save_pretrained(tmp_path)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = transformers.BertModel.from_pretrained(tmp_path).state_dict()
    model = squad_model(SQUAD)
    assert load_initial_weights(tmp_path, model, SHAPE) == ["qa_outputs.bias", "qa_outputs.weight"]
    for name, tensor in model.model.bert.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_upper_case_is_kept_where_the_vocabulary_keeps_it(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    path = save(tmp_path / "out", pretraining_model(PRETRAIN), vocab=vocab)
    for folder in (tmp_path, path):
        assert load_tokenizer(folder / "vocab.txt").encode("a A").ids == [5, 6]
    assert transformers.AutoTokenizer.from_pretrained(path)("a A")["input_ids"] == [2, 5, 6, 3]


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = squad_model(SQUAD)
    (tmp_path / ".step_00000003.partial").mkdir()  # of a run that was killed
    first = save(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("bert_ipu.checkpoint.save_file", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left on device"):
        save(tmp_path, model, STATE._replace(step=8))
    assert newest_checkpoint(tmp_path) == first
    (tmp_path / "file").touch()
    monkeypatch.undo()
    with pytest.raises(DataError, match="file cannot be written"):
        save(tmp_path / "file", model)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    model = squad_model(SQUAD)
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        load_initial_weights(tmp_path, model, SHAPE)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type is gpt2"):
        load_initial_weights(tmp_path, model, SHAPE)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        load_initial_weights(tmp_path, model, SHAPE)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_initial_weights(tmp_path, model, SHAPE)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="no parameter of a BERT encoder"):
        load_initial_weights(tmp_path, model, SHAPE)
