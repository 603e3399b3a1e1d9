"""Merged instructions against the operators they stand for, in a whole training program."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator.params import SimulatorParams

pytestmark = pytest.mark.cpp

WIDTH, HEADS, LENGTH, WORDS, BATCH = 128, 2, 64, 40, 4


class Layer(nn.Module):
    """One encoder layer, with query, key and value in one product."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.joined, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        parts = self.joined(x).view(-1, LENGTH, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(parts[0], parts[1].transpose(-1, -2)) * (1 / math.sqrt(WIDTH // HEADS))
        chances = self.dropout(torch.softmax(scores + bias, -1))
        mixed = torch.matmul(chances, parts[2]).transpose(1, 2).reshape(x.shape)
        x = self.first(self.dropout(self.output(mixed)) + x)
        narrow = self.narrow(torch.nn.functional.gelu(self.wide(x)))
        return self.second(self.dropout(narrow) + x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Two layers over embeddings that its decoder shares; returns the loss of each word."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList([Layer(dropout), Layer(dropout)])

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        bias = (1.0 - mask.to(self.words.weight.dtype))[:, None, None, :] * -10000.0
        x = self.words(ids) + self.places(torch.arange(LENGTH, dtype=torch.int32, device=ids.device))
        for layer in self.layers:
            x = layer(x, bias)
        scores = torch.nn.functional.linear(x, self.words.weight)
        loss = torch.nn.functional.cross_entropy(scores.view(-1, WORDS), labels.view(-1).long())
        return scores, loss


class Marked(nn.Module):
    """The same with its loss named for the device."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        import poptorch

        scores, loss = self.model(*batch)
        return scores, poptorch.identity_loss(loss, reduction="none")


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, WORDS, (rows, LENGTH), generator=generator, dtype=torch.int32)
    mask = torch.ones(rows, LENGTH, dtype=torch.int32)
    mask[:, -7:] = 0
    return ids, mask, torch.roll(ids, 1, 1)


def trained(
    params: SimulatorParams, dropout: float, accumulation: int, half: bool = False, stochastic: bool = False
) -> tuple[Tensor, dict[str, Tensor], str]:
    """Losses of three updates by SGD, the weights afterwards, and the code that ran."""
    simulator.install(params)
    import poptorch

    torch.manual_seed(1)
    model = Encoder(dropout)
    marked = Marked(model.half() if half else model)
    options = poptorch.Options()
    options.randomSeed(5)
    options.Precision.enableStochasticRounding(stochastic)
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(poptorch.OutputMode.All)
    trainer = poptorch.trainingModel(marked, options, poptorch.optim.SGD(model.parameters(), lr=0.05))
    given = batch(BATCH * accumulation)
    losses = torch.stack([trainer(*given)[1].float().mean() for _ in range(3)])
    trainer.copyWeightsToHost()
    source = trainer._session.executable.micro.source
    return losses, {name: value.detach().float() for name, value in model.named_parameters()}, source


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


MERGED = (
    "softmax(",
    "softmax_grad(",
    "add_norm(",
    "norm_grad(",
    "gelu_grad(",
    "join_slices(",
    "add_embedding_grad(",
)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_merged_instructions_change_nothing(dropout: float, accumulation: int) -> None:
    """Same masks, same losses, same weights; the kernels' rounding apart."""
    losses, weights, source = trained(SimulatorParams(), dropout, accumulation)
    expected, expected_weights, plain = trained(SimulatorParams(fuse=False), dropout, accumulation)
    assert [call for call in MERGED[1:] if f"= {call}" not in source] == []
    assert [call for call in MERGED[1:] if f"= {call}" in plain] == []
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for name, weight in weights.items():
        assert relative(weight, expected_weights[name]) < 1e-5, name


@pytest.mark.parametrize("accumulation", [1, 3])
def test_merged_training_equals_torch(accumulation: int) -> None:
    losses, weights, _ = trained(SimulatorParams(), 0.0, accumulation)
    torch.manual_seed(1)
    model = Encoder(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        micro_batches = zip(*(tensor.split(BATCH) for tensor in batch(BATCH * accumulation)))
        loss = torch.stack([model(*each)[1] for each in micro_batches]).mean()
        loss.backward()
        optimizer.step()
        expected.append(loss.detach())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-5)
    for name, weight in model.named_parameters():
        assert relative(weights[name], weight.detach()) < 1e-5, name


@pytest.mark.parametrize("numerics", ["fast", "ipu"])
def test_half_precision_stays_near_float32(numerics: str) -> None:
    losses, _, _ = trained(SimulatorParams(numerics=numerics), 0.1, 1, half=True)
    expected, _, _ = trained(SimulatorParams(), 0.1, 1)
    torch.testing.assert_close(losses, expected, rtol=2e-2, atol=0.0)


def test_rounding_stays_between_operators() -> None:
    """Under "ipu" numerics a merged kernel would skip a rounding: only whole operators become kernels."""
    _, _, source = trained(SimulatorParams(numerics="ipu"), 0.1, 1, half=True)
    assert "add_norm(" not in source
    assert "round_half" in source


@pytest.mark.parametrize("stochastic", [False, True])
def test_merging_under_ipu_numerics_changes_no_rounding(stochastic: bool) -> None:
    """The heads' gradients are joined without the roundings of zeros added to them, which round nothing."""
    losses, weights, source = trained(SimulatorParams(), 0.1, 1, half=True, stochastic=stochastic)
    expected, expected_weights, plain = trained(
        SimulatorParams(fuse=False), 0.1, 1, half=True, stochastic=stochastic
    )
    assert "join_slices(" in source
    assert "join_slices(" not in plain
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=0.0)
    for name, weight in weights.items():
        assert relative(weight, expected_weights[name]) < 2e-3, name


class Normed(nn.Module):
    """A norm of the input, whose gradient nobody wants, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.norm(x), target)


@pytest.mark.parametrize("fuse", [False, True])
def test_a_norm_of_float16_inputs_trains_as_in_torch(fuse: bool) -> None:
    simulator.install(SimulatorParams(fuse=fuse))
    import poptorch

    torch.manual_seed(2)
    model, reference = Normed().half(), Normed()
    x, target = torch.randn(8, 4).half(), torch.randn(8, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trained = poptorch.trainingModel(model, poptorch.Options(), optimizer)
    loss = trained(x, target)
    expected = reference(x.float(), target.float())
    expected.backward()
    torch.testing.assert_close(loss.float(), expected.detach(), rtol=2e-3, atol=0.0)
    for ours, weight in zip(model.parameters(), reference.parameters()):
        moved = weight.detach() - 0.5 * weight.grad
        torch.testing.assert_close(ours.detach().float(), moved, rtol=2e-3, atol=1e-3)


class Scorer(nn.Module):
    """The loss of each row of scores; `and_more` says what else it returns of them."""

    def __init__(self, and_more: str) -> None:
        super().__init__()
        self.decoder, self.and_more = nn.Linear(WIDTH, WORDS), and_more

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        scores = self.decoder(x)
        rows = scores.view(-1, WORDS)
        loss = torch.nn.functional.cross_entropy(rows, labels.view(-1).long(), reduction="none").mean()
        more = {"": loss, "scores": scores, "part": scores[:, 1], "rows": rows, "best": scores.argmax(-1)}
        return loss, more[self.and_more]


class MarkedScorer(Scorer):
    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        import poptorch

        loss, more = super().forward(x, labels)
        return poptorch.identity_loss(loss, reduction="none"), more


@pytest.mark.parametrize("and_more", ["", "scores", "part", "rows", "best"])
def test_a_gradient_is_written_over_scores_that_nothing_reads_any_more(and_more: str) -> None:
    """The model's results and weights are torch's in any case."""
    simulator.install(SimulatorParams())
    import poptorch

    torch.manual_seed(2)
    x, labels = torch.randn(BATCH, LENGTH, WIDTH), torch.randint(0, WORDS, (BATCH, LENGTH), dtype=torch.int32)
    plain, model = Scorer(and_more), MarkedScorer(and_more)
    model.load_state_dict(plain.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    trainer = poptorch.trainingModel(
        model, poptorch.Options(), poptorch.optim.SGD(model.parameters(), lr=0.5)
    )
    for _ in range(3):
        found = trainer(x, labels)
        optimizer.zero_grad()
        expected = plain(x, labels)
        expected[0].backward()
        optimizer.step()
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-4, atol=1e-5)
    trainer.copyWeightsToHost()
    torch.testing.assert_close(model.decoder.weight, plain.decoder.weight, rtol=1e-5, atol=1e-6)
    call = next(line for line in trainer._session.executable.micro.source.split("\n") if "rows_grad(" in line)
    assert (", True)" in call) == (and_more in ("", "best"))
