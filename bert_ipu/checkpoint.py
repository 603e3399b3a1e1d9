"""Checkpoints: a model folder that Hugging Face loads as it is, and beside it the state of the training.

    config.json, model.safetensors, vocab.txt, tokenizer_config.json    what Hugging Face reads
    optimizer.safetensors                                               optimizer state, as PopTorch names it
    training_state.json                                                 the rest, and the size of every file

A checkpoint is written to a folder of another name, synced and renamed, so a folder with the right name is
whole.  Nothing in it is a pickle: reading one runs no code.
"""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bert_ipu.config import ModelConfig
from bert_ipu.errors import ConfigError, DataError, writing_to
from bert_ipu.pipeline import PipelinedModel
from bert_ipu.sampler import Position
from bert_ipu.tokenizer import TOKENIZER_CONFIG_NAME, lower_cases

STATE_NAME = "training_state.json"
TIED_WEIGHTS = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Second names of shared weights: Hugging Face leaves them out of files and ties them again."""
ARCHITECTURE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "max_position_embeddings", "type_vocab_size")


class TrainingState(NamedTuple):
    """Where a run stands, apart from weights and optimizer."""

    step: int
    """Steps taken."""
    position: Position
    """Place in the stream of samples."""
    random_state: List[int]
    """Of the device: its seed, then its generators."""
    configuration: Dict[str, Any]
    """Of the run that saved."""


def save_checkpoint(
    folder: Path, model: PipelinedModel, shape: ModelConfig, optimizer: torch.optim.Optimizer,
    state: TrainingState, vocab_file: Optional[Path], keep: int,
) -> Path:
    """Write `folder`/step_N, then remove all but the newest `keep`; returns the path.

    Raises DataError where the folder cannot be written; the checkpoints that are there stay.
    """
    final = folder / f"step_{state.step:08d}"
    partial = folder / f".{final.name}.partial"
    with writing_to(folder):
        for leftover in folder.glob(".*.partial"):  # of a run that was killed while saving
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        _write_model(partial, model, shape, vocab_file)
        _save_tensors(_named_tensors(optimizer.state_dict()), partial / "optimizer.safetensors")
        sizes = {file.name: file.stat().st_size for file in partial.iterdir()}
        (partial / STATE_NAME).write_text(json.dumps({**state._asdict(), "files": sizes}, indent=1))
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(folder)
        for old in _whole_checkpoints(folder)[:-keep]:
            os.replace(old, partial)  # so that a kill leaves none half-removed
            shutil.rmtree(partial)
    return final


def newest_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint in `folder`; raises DataError where there is none."""
    whole = _whole_checkpoints(folder)
    if not whole:
        raise DataError(
            f"There is no whole checkpoint in {folder} to resume from. Give the train.output_dir of the run "
            f"to go on with, or start it without --resume.")
    return whole[-1]


def load_checkpoint(
    path: Path, model: PipelinedModel, shape: ModelConfig, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Put weights and optimizer state in place; returns the rest, which concerns the loop.

    The optimizer keeps its own settings.  Raises ConfigError: the checkpoint is of another architecture.
    DataError: a file is missing or damaged.
    """
    _check_architecture(path, shape)
    weights = _read_tensors(path / "model.safetensors")
    weights.update(_tied(weights))
    network = model.model
    if weights.keys() != network.state_dict().keys():
        raise ConfigError(
            f"{path} is of another kind of run: this one trains {type(network).__name__}, whose parameters "
            f"are others. Set train.output_dir to a folder of its own; to start from these weights, set "
            f"checkpoint.initial_weights={path}, without --resume.")
    network.load_state_dict(weights)
    content = json.loads((path / STATE_NAME).read_text())
    optimizer.load_state_dict({
        **optimizer.state_dict(), **_tensor_groups(_read_tensors(path / "optimizer.safetensors"))})
    return TrainingState(
        content["step"], Position(*content["position"]), content["random_state"], content["configuration"])


def load_initial_weights(folder: Path, model: PipelinedModel, shape: ModelConfig) -> List[str]:
    """Start from a Hugging Face model folder; returns the parameters it lacks, which stay random.

    Parameters that our model lacks (heads of other tasks) are left out.  Raises ConfigError: the folder holds
    another architecture.  DataError: it holds no weights, or a file is damaged.
    """
    _check_architecture(folder, shape)
    tensors = _read_tensors(folder / "model.safetensors")
    stored = {_full_name(name): tensor for name, tensor in tensors.items()}
    stored.update(_tied(stored))
    found = {name: stored[name] for name in model.model.state_dict() if name in stored}
    missing = model.model.load_state_dict(found, strict=False).missing_keys
    if not any(name.startswith("bert.encoder.") for name in found):
        raise DataError(
            f"{folder}/model.safetensors has no parameter of a BERT encoder (bert.encoder.layer...). "
            f"checkpoint.initial_weights must name a BERT model.")
    return sorted(set(missing))


def _write_model(folder: Path, model: PipelinedModel, shape: ModelConfig, vocab_file: Optional[Path]) -> None:
    network = model.model
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()
               if name not in TIED_WEIGHTS}
    _save_tensors(weights, folder / "model.safetensors")
    hugging_face = {
        "architectures": [type(network).__name__], "model_type": "bert",
        "hidden_act": "gelu", "pad_token_id": 0,
        **_architecture(shape),
        "hidden_dropout_prob": shape.hidden_dropout_prob,
        "attention_probs_dropout_prob": shape.attention_probs_dropout_prob,
        "layer_norm_eps": shape.layer_norm_eps, "initializer_range": shape.initializer_range,
        "torch_dtype": str(next(iter(weights.values())).dtype).split(".")[1],
    }
    (folder / "config.json").write_text(json.dumps(hugging_face, indent=1))
    if vocab_file is not None:
        shutil.copyfile(vocab_file, folder / "vocab.txt")
        tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_cases(vocab_file),
                     "model_max_length": shape.max_position_embeddings}
        (folder / TOKENIZER_CONFIG_NAME).write_text(json.dumps(tokenizer, indent=1))


def _architecture(shape: ModelConfig) -> Dict[str, int]:
    sizes = {name: getattr(shape, name) for name in ARCHITECTURE}
    return {**sizes, "intermediate_size": shape.feed_forward_size}


def _check_architecture(folder: Path, shape: ModelConfig) -> None:
    try:
        stored = dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder} is no model folder: config.json cannot be read ({error}). A folder is needed that "
            f"Hugging Face's save_pretrained or a run of ours wrote.") from error
    ours = _architecture(shape)
    different = [f"model.{name} = {ours[name]}, but the folder has {stored[name]}"
                 for name in ARCHITECTURE if name in stored and stored[name] != ours[name]]
    if stored.get("model_type", "bert") != "bert":
        different.insert(0, f"model_type is {stored['model_type']}, bert is needed")
    if different:
        raise ConfigError(
            f"{folder} holds another architecture: {'; '.join(different)}. Change the configuration to the "
            f"folder's values, or take another folder.")


def _read_tensors(path: Path) -> Dict[str, torch.Tensor]:
    try:
        tensors: Dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors: {error}. Take an older checkpoint, or fetch the file "
            f"again; pickled weights (.bin) are not read, as they may run code.") from error


def _save_tensors(tensors: Dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, for example
        raise OSError(f"{path.name}: {error}") from error


def _full_name(name: str) -> str:
    """The name inside a model with heads, as it is today, of a parameter of a bare or an old BertModel.

    The published bert-base-uncased is an old one: gains and offsets of its layer norms are gamma and beta.
    """
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if name.split(".")[0] in ("embeddings", "encoder", "pooler") else name


def _tied(weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The second names of shared weights, where there is a pretraining head."""
    if "cls.predictions.bias" not in weights:
        return {}
    return {second: weights[first] for second, first in TIED_WEIGHTS.items()}


def _named_tensors(optimizer_state: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """PopTorch's two groups of optimizer tensors, state and scalars such as the loss scale, in one."""
    return {
        f"{group}/{name}": tensor.detach().clone().contiguous()
        for group in ("ipu_state", "ipu_param")
        for name, tensor in (optimizer_state.get(group) or {}).items()
    }


def _tensor_groups(tensors: Dict[str, torch.Tensor]) -> Dict[str, Dict[str, torch.Tensor]]:
    """The inverse of `_named_tensors`."""
    groups: Dict[str, Dict[str, torch.Tensor]] = {"ipu_state": {}, "ipu_param": {}}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups[group][name] = tensor
    return groups


def _whole_checkpoints(folder: Path) -> List[Path]:
    """Checkpoints whose files are all there in their full sizes, oldest first."""
    return [path for path in sorted(folder.glob("step_*")) if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        sizes: Dict[str, int] = json.loads((path / STATE_NAME).read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
