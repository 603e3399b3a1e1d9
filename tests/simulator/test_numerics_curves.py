"""The training curve of a float16 model stays within a band of the float32 curve, in each kind of numerics.

A small language model learns real text (WikiText-2) from the same weights, in the same order of batches: in float32
by a plain torch loop, in float16 by a PopTorch program.  Losses are compared as means of 25 steps, relative to
float32's; `pytest -m slow -s tests/simulator/test_numerics_curves.py` prints them.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.params import SimulatorParams

STEPS, WINDOW = 300, 25
ACCUMULATION, MICRO_BATCH, LENGTH = 2, 8, 32
WIDTH, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 2000
LEARNING_RATE = 2e-3
BAND = 0.002
"""How far a mean of 25 losses may be from float32's, relative to it."""


class Block(nn.Module):
    """Causal attention and a feed-forward part, each normalised before."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.inner_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.joint, self.attended = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        joint = self.joint(self.attention_norm(x)).view(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.outer(F.gelu(self.inner(self.inner_norm(x))))


class LanguageModel(nn.Module):
    """The loss of predicting each next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.decoder = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        for embedding in (self.words, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words[:, :-1]) + self.positions(torch.arange(LENGTH, device=words.device))
        logits = self.decoder(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.view(-1, VOCABULARY), words[:, 1:].reshape(-1))


@functools.cache
def batches(text: Path) -> Tensor:
    """[STEPS, rows, LENGTH + 1]: ids of pieces of the text, by frequency; rare words share the last."""
    words = text.read_text().split()
    ids = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1))}
    numbers = torch.tensor([ids.get(word, VOCABULARY - 1) for word in words])
    starts = torch.randint(
        len(numbers) - LENGTH - 1,
        (STEPS, ACCUMULATION * MICRO_BATCH),
        generator=torch.Generator().manual_seed(0),
    )
    return torch.stack([numbers[start : start + LENGTH + 1] for start in starts.flatten()]).view(
        *starts.shape, LENGTH + 1
    )


def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel()


@functools.cache
def float32_curve(text: Path) -> Tensor:
    trained = model()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    losses = []
    for words in batches(text):
        optimizer.zero_grad()
        loss = trained(words)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def float16_curve(text: Path, numerics: str, stochastic: bool, partials: torch.dtype) -> Tensor:
    simulator.install(SimulatorParams(numerics=numerics))
    trained = model().half()
    options = poptorch.Options().randomSeed(1)
    options.Training.gradientAccumulation(ACCUMULATION)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.Precision.enableStochasticRounding(stochastic).setPartialsType(partials)
    options.outputMode(poptorch.OutputMode.All)
    optimizer = poptorch.optim.AdamW(
        trained.parameters(), lr=LEARNING_RATE, weight_decay=0.01, loss_scaling=64.0, accum_type=torch.float16
    )
    training = poptorch.trainingModel(trained, options, optimizer)
    return torch.stack([training(words).float().mean() for words in batches(text)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numerics", "stochastic", "partials"),
    [
        ("ipu", True, torch.float),
        ("ipu", False, torch.float),
        ("ipu", True, torch.half),
        ("ipu", False, torch.half),
        ("fast", False, torch.float),
    ],
)
def test_the_float16_curve_stays_within_a_band(
    shared_data: Path, numerics: str, stochastic: bool, partials: torch.dtype
) -> None:
    text = shared_data / "wikitext-2" / "valid.txt"
    expected = float32_curve(text).view(-1, WINDOW).mean(1)
    losses = float16_curve(text, numerics, stochastic, partials).view(-1, WINDOW).mean(1)
    apart = ((losses - expected) / expected).abs()
    print(f"\n{numerics}, stochastic rounding {stochastic}, sums of {partials}: at most {apart.max():.2%} away")
    print("float32", *(f"{loss:.3f}" for loss in expected))
    print("float16", *(f"{loss:.3f}" for loss in losses))
    assert expected[-1] < 0.75 * expected[0], "the float32 model learns"
    assert apart.max() <= BAND
