"""Optimum Graphcore's pipelined models in a simulation and in plain torch.

`run.py` starts it in an environment of its own.  Each model is a small one with random weights, on two IPUs.  What it
is held to is the same pipelined model in plain torch, which PopTorch's marks leave as it is: in training the losses of
three steps of SGD and what they change of the weights, in inference the outputs.  The tokens that a model generates
are held to those of Transformers' own model of the same weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import poptorch
import torch
import transformers
from optimum.graphcore import IPUConfig
from optimum.graphcore.modeling_utils import _PRETRAINED_TO_PIPELINED_REGISTRY, to_pipelined
from optimum.graphcore.models.groupbert import GroupBertConfig

VOCABULARY, BATCH, LENGTH, FRAMES, STEPS = 200, 2, 16, 800, 3
ALLOWED = 1e-5
"""Relative difference that the order of float32 sums may make."""
SGD = {"lr": 0.01, "momentum": 0.9}

MODELS = {plain.__name__: plain for plain in _PRETRAINED_TO_PIPELINED_REGISTRY}
WITHOUT_LOSS = ("BertModel", "MPNetModel", "T5EncoderModel")
NOT_IN_PLAIN_TORCH = ("Wav2Vec2ForPreTraining",)
"""Its loss writes into what torch's autograd has saved."""

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_POSITIONS = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_ENCODER_DECODER = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
_SPEECH = {
    **_SMALL, "vocab_size": 32, "conv_dim": [16] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3],
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
    "final_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "Bert": lambda: transformers.BertConfig(**_POSITIONS, **_SMALL, **_NO_DROPOUT),
    "GroupBert": lambda: GroupBertConfig(vocab_size=VOCABULARY, **_SMALL, **_NO_DROPOUT),
    "Roberta": lambda: transformers.RobertaConfig(**_POSITIONS, **_SMALL, **_NO_DROPOUT),
    "MPNet": lambda: transformers.MPNetConfig(**_POSITIONS, **_SMALL, **_NO_DROPOUT),
    "Deberta": lambda: transformers.DebertaConfig(
        **_POSITIONS, **_SMALL, **_NO_DROPOUT, relative_attention=True, pos_att_type=["c2p", "p2c"],
        problem_type="single_label_classification",
    ),
    "DistilBert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=64, dropout=0.0, attention_dropout=0.0,
        seq_classif_dropout=0.0, qa_dropout=0.0,
    ),
    "GPT2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, classifier_dropout=0.0, summary_first_dropout=0.0, pad_token_id=0,
    ),
    "Bart": lambda: transformers.BartConfig(**_ENCODER_DECODER, max_position_embeddings=64),
    "T5": lambda: transformers.T5Config(**_T5),
    "MT5": lambda: transformers.MT5Config(**_T5),
    "Whisper": lambda: transformers.WhisperConfig(
        **_ENCODER_DECODER, num_mel_bins=8, max_source_positions=20, max_target_positions=30, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
    ),
    "ViT": lambda: transformers.ViTConfig(image_size=32, patch_size=8, **_SMALL, **_NO_DROPOUT),
    "ConvNext": lambda: transformers.ConvNextConfig(
        image_size=32, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], num_labels=2
    ),
    "Hubert": lambda: transformers.HubertConfig(**_SPEECH),
    "Wav2Vec2": lambda: transformers.Wav2Vec2Config(
        **_SPEECH, codevector_dim=16, proj_codevector_dim=16, num_codevectors_per_group=8, num_negatives=4
    ),
    "Lxmert": lambda: transformers.LxmertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=2, intermediate_size=64, l_layers=2, x_layers=1,
        r_layers=1, visual_feat_dim=16, num_qa_labels=5, **_NO_DROPOUT,
    ),
}  # fmt: skip
"""A small configuration for models whose name begins so; the longest such beginning counts."""


def family(name: str) -> str:
    """The architecture that a model's name begins with."""
    return max((known for known in CONFIGURATIONS if name.startswith(known)), key=len)


def _text() -> dict[str, torch.Tensor]:
    """Two sentences that end in token 2, the second with a padded end."""
    ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH))
    ids[:, -1] = 2
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _media(architecture: str) -> dict[str, torch.Tensor]:
    """Pictures, sounds, or what goes with a text; nothing where a model reads text alone."""
    return {
        "ViT": lambda: {"pixel_values": torch.randn(BATCH, 3, 32, 32)},
        "ConvNext": lambda: {"pixel_values": torch.randn(BATCH, 3, 32, 32)},
        "Hubert": lambda: {"input_values": torch.randn(BATCH, FRAMES)},
        "Wav2Vec2": lambda: {"input_values": torch.randn(BATCH, FRAMES)},
        "Whisper": lambda: {"input_features": torch.randn(BATCH, 8, 40)},
        "Lxmert": lambda: {**_text(), "visual_feats": torch.randn(BATCH, 6, 16), "visual_pos": torch.rand(BATCH, 6, 4)},
    }.get(architecture, dict)()  # fmt: skip


def inputs(name: str) -> dict[str, torch.Tensor]:
    """A batch with labels for a model's task."""
    architecture = family(name)
    given = _media(architecture) or _text()
    classes = torch.randint(0, 2, (BATCH,))
    if architecture == "GroupBert":
        given["attention_mask"].fill_(1)  # padding makes NaN of it, in plain torch as well
    if name in WITHOUT_LOSS:
        return given
    if "ConditionalGeneration" in name:
        tokens = torch.randint(5, 190, (BATCH, LENGTH))
        return {**given, "decoder_input_ids": tokens, "labels": tokens}
    if "QuestionAnswering" in name and architecture != "Lxmert":
        positions = {end: torch.randint(0, 12, (BATCH,)) for end in ("start_positions", "end_positions")}
        return {**given, **positions}
    if "MultipleChoice" in name:
        given = {key: value[None].repeat(BATCH, 1, 1) for key, value in given.items()}
        return {**given, "labels": torch.zeros_like(classes)}
    if "CTC" in name:
        return {**given, "labels": torch.randint(1, 32, (BATCH, 6))}
    if "TokenClassification" in name:
        return {**given, "labels": torch.randint(0, 2, (BATCH, LENGTH))}
    if "MaskedLM" in name or "PreTraining" in name:
        masked = torch.rand(BATCH, LENGTH) < 0.3
        given["labels"] = torch.where(masked, given["input_ids"], -100)
        return {**given, "next_sentence_label": classes} if "PreTraining" in name else given
    return {**given, "labels": given["input_ids"] if "LMHead" in name else classes}


def _configuration() -> IPUConfig:
    return IPUConfig(
        layers_per_ipu=[-1], inference_layers_per_ipu=[-1], ipus_per_replica=2, inference_ipus_per_replica=2,
        gradient_accumulation_steps=8, embedding_serialization_factor=1, output_mode="all",
        executable_cache_dir="disabled",
    )  # fmt: skip


def _plain(name: str) -> torch.nn.Module:
    """Transformers' model, with the same random weights each time."""
    transformers.set_seed(1)  # GroupBERT draws with NumPy
    model: torch.nn.Module = MODELS[name](CONFIGURATIONS[family(name)]())
    return model


def _pipelined(name: str, configuration: IPUConfig) -> Any:
    """Optimum's model of the same weights, with its marks for PopTorch, which plain torch does not mind."""
    model = to_pipelined(_plain(name), configuration)
    model.parallelize(**configuration.parallelize_kwargs)
    return model


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def _flat(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in parameters])


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))


def training_difference(name: str) -> float:
    """The larger of the relative differences of three steps' losses and of what they change of the weights."""
    configuration = _configuration().train()
    simulated, expected = _pipelined(name, configuration).train(), _pipelined(name, configuration).train()
    options = configuration.to_options()
    trainer = poptorch.trainingModel(simulated, options, poptorch.optim.SGD(simulated.parameters(), **SGD))
    optimizer = torch.optim.SGD(expected.parameters(), **SGD)
    before = _flat(expected.parameters())
    torch.manual_seed(2)
    batch = inputs(name)
    count = options.Training.gradient_accumulation
    micro_batches = {key: value.repeat(count, *[1] * (value.dim() - 1)) for key, value in batch.items()}
    worst = 0.0
    for _ in range(STEPS):
        losses = next(_tensors(trainer(**micro_batches)))
        loss = next(_tensors(expected(**batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        worst = max(worst, _difference(losses.mean(), loss.detach()))
    trainer.copyWeightsToHost()
    return max(
        worst, _difference(_flat(simulated.parameters()) - before, _flat(expected.parameters()) - before)
    )


def inference_difference(name: str) -> float:
    """The largest relative difference of a model's outputs."""
    configuration = _configuration().eval()
    simulated, expected = _pipelined(name, configuration).eval(), _pipelined(name, configuration).eval()
    torch.manual_seed(2)
    batch = inputs(name)
    got = list(
        _tensors(poptorch.inferenceModel(simulated, configuration.to_options(for_inference=True))(**batch))
    )
    with torch.no_grad():
        wanted = list(_tensors(expected(**batch)))
    if [value.numel() for value in got] != [value.numel() for value in wanted]:
        raise AssertionError(f"{len(got)} outputs instead of {len(wanted)}, or of other shapes")
    return max(_difference(mine.flatten(), theirs.flatten()) for mine, theirs in zip(got, wanted))


GENERATING = {
    "GPT2LMHeadModel": False,
    "MT5ForConditionalGeneration": False,
    "T5ForConditionalGeneration": True,
    "BartForConditionalGeneration": True,
    "WhisperForConditionalGeneration": True,
}
"""The models that generate, and whether Optimum keeps their keys and values in buffers on the device."""


def generates_the_same(name: str, beams: int) -> bool:
    """Whether the simulated model generates the tokens of Transformers' own."""
    configuration = _configuration().eval()
    model = to_pipelined(_plain(name), configuration).eval()
    buffers = {"use_cache": True, "batch_size": BATCH, "max_length": 12, "num_beams": beams}
    model.parallelize(for_generation=True, **(buffers if GENERATING[name] else {}))
    torch.manual_seed(2)
    prompt = _media(family(name)) or {"input_ids": torch.randint(5, VOCABULARY, (BATCH, 6))}
    wanted = {"max_length": 12, "num_beams": beams, "do_sample": False}
    with torch.no_grad():
        return torch.equal(
            model.generate(**prompt, **wanted), _plain(name).eval().generate(**prompt, **wanted)
        )


def checks(name: str) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """What is asked of a model: a name, and what says whether it holds and what was measured."""

    def within(difference: Callable[[str], float]) -> tuple[bool, str]:
        measured = difference(name)
        return measured <= ALLOWED, f"{measured:.1e}"

    if name not in NOT_IN_PLAIN_TORCH:
        yield "inference", partial(within, inference_difference)
        if name not in WITHOUT_LOSS:
            yield "training", partial(within, training_difference)
    for beams in (1, 3) if name in GENERATING else ():
        yield f"generation, {beams} beams", lambda beams=beams: (generates_the_same(name, beams), "tokens")


def main() -> int:
    """Prints a table; 1 where a model differs by more than the order of sums explains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    wanted = parser.parse_args().only
    transformers.logging.set_verbosity_error()
    print("| model | what | relative difference | held |\n|---|---|---|---|")
    results = []
    for name in wanted:
        for what, check in checks(name):
            try:
                held, measured = check()
            except Exception as error:  # a row of its own: the other models go on
                held, measured = False, f"{type(error).__name__}: {str(error).splitlines()[0]}"
            results.append(held)
            print(f"| {name} | {what} | {measured} | {'yes' if held else '**no**'} |", flush=True)
    print(f"{sum(results)} of {len(results)} hold")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
