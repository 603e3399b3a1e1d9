"""Files of `save` and `compileAndExport`: loaded without compiling again, and refused where they do not fit."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.executables.serialization import read_program, write_program
from bert_ipu.simulator.graph.ir import Program
from bert_ipu.simulator.graph.program_text import program_text

Pair = collections.namedtuple("Pair", ["first", "second"])


class Counted(torch.nn.Module):
    """Dropout, a loop in its class's own count of entries, nested results."""

    entered = 0

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, width)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        Counted.entered += 1
        self.seen.add_(1)
        y = torch.nn.functional.dropout(self.linear(x), 0.25, training=self.training)
        if labels is None:
            return {"scores": y, "pair": Pair(y.argmax(-1), [y * 2, "text", torch.tensor([7.0])])}
        return y, torch.nn.functional.cross_entropy(y, labels)


def _options() -> poptorch.Options:
    return poptorch.Options().randomSeed(5)


def _trainer(options: poptorch.Options | None = None, width: int = 4, **adam: Any) -> Any:
    torch.manual_seed(1)
    model = Counted(width)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.05, **adam)
    return poptorch.trainingModel(model, options or _options(), optimizer)


X, LABELS = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2])


def test_a_loaded_executable_runs_without_the_forward(tmp_path: Path) -> None:
    path = str(tmp_path / "model.poptorch")
    trained = _trainer()
    trained.compileAndExport(path, X, LABELS)
    expected = [trained(X, LABELS)[1] for _ in range(2)]
    before = Counted.entered
    other = _trainer()
    other.loadExecutable(path)
    assert [other(X, LABELS)[1] for _ in range(2)] == expected
    loaded = poptorch.load(path)
    assert [loaded(X, LABELS)[1] for _ in range(2)] == expected
    assert Counted.entered == before


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    executor = poptorch.inferenceModel(Counted().eval(), _options())
    executor(X)
    (tmp_path / "folder" / "model.poptorch").mkdir(parents=True)
    for path, reason in (("/dev/null/model", "is a file"), (str(tmp_path / "folder"), "cannot be written: Is a dir")):
        with pytest.raises((poptorch.Error, AssertionError), match=reason):
            executor.save(path)
    assert not list((tmp_path / "folder").glob(".*"))


def test_a_model_that_cannot_be_pickled_is_saved_without(tmp_path: Path) -> None:
    class Local(Counted):
        pass

    executor = poptorch.inferenceModel(Local().eval(), _options())
    executor(X)
    with pytest.raises(poptorch.Error, match=r"cannot be pickled: .*Local.*export_model=False"):
        executor.save(str(tmp_path / "model.poptorch"))
    executor.save(str(tmp_path / "model.poptorch"), export_model=False)


def test_nested_results_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "model.poptorch")
    torch.manual_seed(1)
    model = Counted().eval()
    executor = poptorch.inferenceModel(model, _options())
    expected = executor(X)
    executor.save(path, export_model=False)
    found = poptorch.inferenceModel(model, _options())
    found.loadExecutable(path)
    result = found(X)
    assert type(result["pair"]) is Pair and result["pair"].second[1:] == ["text", torch.tensor([7.0])]
    torch.testing.assert_close(result["scores"], expected["scores"])
    torch.testing.assert_close(result["pair"].first, expected["pair"].first)
    with pytest.raises(AssertionError, match="has the executable without its model"):
        poptorch.load(path)


def test_an_offline_executable_runs_on_a_device(tmp_path: Path) -> None:
    path = str(tmp_path / "model.poptorch")
    offline = _trainer(_options().useOfflineIpuTarget())
    offline.compileAndExport(path, X, LABELS)
    before = Counted.entered
    expected = _trainer()(X, LABELS)[1]
    assert poptorch.load(path)(X, LABELS)[1] == expected
    assert Counted.entered == before + 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _trainer(width=5), r"linear.weight was float32\[4, 3\], trained, is float32\[5, 3\]"),
        (lambda: _trainer(weight_decay=0.3), r"weightDecay was 0.01 \(constant\), is 0.3"),
        (
            lambda: _trainer(_options().deviceIterations(2)),
            r"inputs: x was float32\[2, 3\], is float32\[1, 3\]",
        ),
        (lambda: poptorch.inferenceModel(Counted(), _options()), "training was True, is False"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    path = str(tmp_path / "model.poptorch")
    _trainer().compileAndExport(path, X, LABELS)
    with pytest.raises(poptorch.Error, match=f"Invalid file {path}.*another model or other options.*{said}"):
        make().loadExecutable(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "no such file, or damaged"),
        (lambda raw: raw[:-5] + b"xxxxx", "damaged"),
        (lambda raw: raw.replace(b'"format_version":"2"', b'"format_version":"0"'), "has format version 0"),
    ],
)
def test_a_damaged_or_older_file_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    path = tmp_path / "model.poptorch"
    _trainer().compileAndExport(str(path), X, LABELS)
    path.write_bytes(damage(path.read_bytes()))
    for load in (_trainer().loadExecutable, poptorch.load):
        with pytest.raises(poptorch.Error, match=f"Invalid file {path}: .*{said}"):
            load(str(path))


def test_a_program_with_a_part_on_the_host_is_compiled_again(tmp_path: Path, capfd: Any) -> None:
    path = str(tmp_path / "model.poptorch")
    executor = poptorch.inferenceModel(_OnTheHost(), _options())
    expected = executor(X)
    executor.save(path, export_model=False)
    assert re.search(r"compiled again when it is loaded: cpu_op .*it holds CPU._run", capfd.readouterr().err)
    other = poptorch.inferenceModel(_OnTheHost(), _options())
    other.loadExecutable(path)
    torch.testing.assert_close(other(X), expected)


class _OnTheHost(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cpu = poptorch.CPU(lambda x: x + 1, "plus one")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.cpu(x)
        return made


def _loop(x: torch.Tensor) -> Any:
    return poptorch.for_loop(3, lambda y: [y * 2 + 1], [x])[0]


def _branch(x: torch.Tensor) -> Any:
    return poptorch.cond(x.sum() > 0, lambda a: [a + 1], [x], lambda a: [a - 1], [x])[0]


def _listing(program: Program) -> str:
    return re.sub(r"at 0x\w+", "", program_text(program))


@pytest.mark.parametrize("forward", [_loop, _branch, lambda x: x[:, 1:] * torch.arange(2, device=x.device)])
def test_a_program_read_is_the_program_written(forward: Any) -> None:
    executor = poptorch.inferenceModel(forward, _options())
    executor.compile(X)
    program = executor._session.program
    document, constants = write_program(program)
    read = read_program(document, constants, {})
    read.validate()
    assert _listing(read) == _listing(program)
    assert write_program(read)[0] == document
