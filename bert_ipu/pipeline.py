"""Places a model on IPUs: blocks, recomputation points, parts computed in slices, and the final loss.

The first and the last IPU of the usual placement are the same: the MLM decoder shares the word embedding's
weight, so both must be where that weight is, and the pipeline runs IPU 0, 1, 2, 3, 0.
"""
from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Tuple, Type, Union

import poptorch
import torch
import torch.nn.functional as F
from torch import nn

from bert_ipu.batch import PretrainBatch, PretrainOutput, SquadBatch, SquadOutput
from bert_ipu.config import IpuConfig, PretrainConfig, SquadConfig
from bert_ipu.model import PAD_ID, BertForPreTraining, BertForQuestionAnswering


class SerializedLinear(nn.Linear):
    """A linear layer whose outputs are computed in `factor` slices, one after the other."""

    def __init__(self, in_features: int, out_features: int, factor: int) -> None:
        super().__init__(in_features, out_features)
        self.factor = factor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = poptorch.serializedMatMul(
            input, self.weight.t(), poptorch.MatMulSerializationMode.OutputChannels, self.factor)
        return product + self.bias


class SerializedEmbedding(nn.Module):
    """An embedding looked up in `factor` slices of its table, one after the other.

    The slices are parameters of their own, as slices of one parameter would each have a gradient of its whole
    size, which is the memory to be saved.  In a state dict they are one `weight`, as in `nn.Embedding`.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, factor: int) -> None:
        super().__init__()
        self.rows = num_embeddings // factor
        for number in range(factor):
            self.register_parameter(f"slice{number}", nn.Parameter(torch.empty(self.rows, embedding_dim)))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """[B, S] indices to [B, S, H]: each slice gives the rows it has and zeros for the others."""
        parts = []
        for number, table in enumerate(self.parameters()):
            local = indices - number * self.rows
            inside = (local >= 0) & (local < self.rows)
            padding = PAD_ID if number == 0 else None
            found = F.embedding(local * inside.to(local.dtype), table, padding_idx=padding)
            parts.append(found * inside[..., None].to(table.dtype))
        return torch.stack(parts).sum(dim=0)

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = torch.cat(list(self.parameters()))
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: List[str], unexpected_keys: List[str], error_msgs: List[str],
    ) -> None:
        key = f"{prefix}weight"
        if key not in state_dict:
            missing_keys.append(key)
            return
        with torch.no_grad():
            for table, rows in zip(self.parameters(), state_dict[key].split(self.rows)):
                table.copy_(rows)


class PipelinedModel(nn.Module):
    """A placed model behind the signature that PopTorch calls: the batch's tensors in, a flat tuple out."""

    def __init__(
        self, model: Union[BertForPreTraining, BertForQuestionAnswering],
        batch_type: Union[Type[PretrainBatch], Type[SquadBatch]],
    ) -> None:
        super().__init__()
        self.model = model
        self.batch_type = batch_type

    def forward(self, *batch: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """All of the model's output; in training its scalars, the loss marked as what is optimised."""
        output = self.model(self.batch_type(*batch))
        if not self.training:
            return tuple(output)
        loss = poptorch.identity_loss(output.loss, reduction="none")
        return (loss, *(value for value in output[1:] if value.dim() == 0))


class Block(NamedTuple):
    """A module that begins a block on an IPU."""

    module: nn.Module
    name: str
    ipu: int


def pretraining_model(config: PretrainConfig) -> PipelinedModel:
    """A freshly initialised BertForPreTraining, placed and in the configured precision."""
    factor = config.ipu.embedding_serialization_factor
    # The lookup needs no slices of its own: the pattern TiedGather (ipu_options.py) gives it the decoder's.
    shape = config.model
    decoder = SerializedLinear(shape.hidden_size, shape.vocab_size, factor) if factor > 1 else None
    model = BertForPreTraining(shape, decoder)
    heads = [Block(model.bert.pooler, "Pooler", config.head_ipu), Block(model.cls, "Heads", config.head_ipu)]
    return _placed(PipelinedModel(model, PretrainBatch), config.ipu, heads)


def squad_model(config: SquadConfig) -> PipelinedModel:
    """A freshly initialised BertForQuestionAnswering, placed and in the configured precision."""
    factor, shape = config.ipu.embedding_serialization_factor, config.model
    embedding = SerializedEmbedding(shape.vocab_size, shape.hidden_size, factor) if factor > 1 else None
    model = BertForQuestionAnswering(shape, embedding)
    return _placed(
        PipelinedModel(model, SquadBatch), config.ipu, [Block(model.qa_outputs, "Heads", config.head_ipu)])


def output_type(model: PipelinedModel) -> Union[Type[PretrainOutput], Type[SquadOutput]]:
    """The names of what the model returns."""
    return PretrainOutput if model.batch_type is PretrainBatch else SquadOutput


def _placed(pipelined: PipelinedModel, ipu: IpuConfig, heads: List[Block]) -> PipelinedModel:
    bert = pipelined.model.bert
    layers = [Block(layer, f"Encoder{n}", ipu.layer_ipus[n]) for n, layer in enumerate(bert.encoder.layer)]
    for block in [Block(bert.embeddings, "Embedding", 0), *layers, *heads]:
        poptorch.BeginBlock(block.module, block.name, ipu_id=block.ipu)
    if ipu.recompute_checkpoint_every_layer:
        for block in layers:
            block.module.register_forward_hook(_stash_output)
    return pipelined.half() if ipu.precision == "float16" else pipelined


def _stash_output(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Keep a layer's output for the backward pass; what lies between two of them is computed again."""
    stashed: torch.Tensor = poptorch.recomputationCheckpoint(output)
    return stashed
