"""A cached executable gives what compiling would, misses whenever anything differs, and says what differed."""

from __future__ import annotations

import errno
import importlib.util
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.poptorch import compilation

SOURCE = """
import torch

SCALE = 2.0
SETTINGS = {"shift": 0.5}


def shifted(x):
    return x + SETTINGS["shift"]


def scaler(factor):
    return lambda x: x * factor


class Net(torch.nn.Module):
    def __init__(self, width=4, factor=1.0, dropout=0.0):
        super().__init__()
        self.linear = torch.nn.Linear(3, width)
        self.register_buffer("seen", torch.zeros(()))
        self.scaled = scaler(factor)
        self.constant = torch.tensor([0.25])
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x, target):
        self.seen.add_(1)
        y = self.dropout(self.scaled(shifted(self.linear(x)))) * SCALE + self.constant.to("ipu")
        return {"prediction": y, "loss": torch.nn.functional.mse_loss(y, target)}
"""


@pytest.fixture
def nets(tmp_path: Path) -> Iterator[ModuleType]:
    """A module of the user's, in a file of its own."""
    path = tmp_path / "nets_of_the_user.py"
    path.write_text(SOURCE)
    yield _imported(path)
    del sys.modules[path.stem]


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


Trained = tuple[list[torch.Tensor], str]


@pytest.fixture
def train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Trained]:
    """Train a model for two steps with a cache; its losses and weights, and what the cache says."""

    def run(
        model: torch.nn.Module, *, rows: int = 2, lr: float = 0.1, accumulation: int = 1, **sgd: Any
    ) -> Trained:
        torch.manual_seed(4)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        options = poptorch.Options().randomSeed(3)
        options.enableExecutableCaching(str(tmp_path / "cache"))
        options.Training.gradientAccumulation(accumulation)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, **sgd)
        trainer = poptorch.trainingModel(model, options, optimizer)
        inputs = (
            torch.randn(rows * accumulation, 3),
            torch.zeros(rows * accumulation, model.linear.out_features),
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, "poptorch::python"):
            losses = [trainer(*inputs)["loss"] for _ in range(2)]
        trainer.destroy()
        text = "\n".join(r.getMessage() for r in caplog.records if "Executable cache" in r.getMessage())
        return [*losses, *model.state_dict().values()], text

    return run


def _entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_a_hit_gives_what_compiling_gave(
    nets: ModuleType, train: Callable[..., Trained], tmp_path: Path
) -> None:
    compiled, first = train(nets.Net(dropout=0.5), momentum=0.9)
    cached, second = train(nets.Net(dropout=0.5), momentum=0.9)
    assert "miss" in first and "holds no executable of Net (training)" in first and "kept as" in first
    assert "hit" in second and len(_entries(tmp_path)) == 1
    for one, other in zip(compiled, cached, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_another_learning_rate_hits_and_counts(nets: ModuleType, train: Callable[..., Trained]) -> None:
    train(nets.Net(), lr=0.1)
    cached, text = train(nets.Net(), lr=0.3)
    assert "hit" in text
    nets.Net.unused = None  # compiles anew
    compiled, text = train(nets.Net(), lr=0.3)
    assert "miss" in text
    for one, other in zip(compiled, cached, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "call", "said"),
    [
        ({"width": 5}, {}, r"parameters: linear.weight was float32\[4, 3\], trained, is float32\[5, 3\]"),
        ({"factor": 3.0}, {}, r"model: \(root\).scaled was .* factor=1.0, is .* factor=3.0"),
        ({"dropout": 0.1}, {}, "model: dropout.p was 0.0, is 0.1"),
        ({}, {"rows": 3}, r"inputs: x was float32\[2, 3\], is float32\[3, 3\]"),
        ({}, {"accumulation": 2}, "settings: reduction.accumulation was 1, is 2"),
        ({}, {"momentum": 0.9}, r"groups\[0\].momentum was 0.0 \(constant\), is 0.9 \(variable\)"),
    ],
)
def test_a_miss_names_what_differs(
    nets: ModuleType, train: Callable[..., Trained], model: dict[str, Any], call: dict[str, Any], said: str
) -> None:
    train(nets.Net())
    _, text = train(nets.Net(**model), **call)
    assert "miss: the nearest executable of Net (training) differs in" in text
    assert re.search(said, text), text


def _set_global(nets: ModuleType) -> str:
    nets.SCALE = 3.0
    return "global nets_of_the_user.SCALE has changed"


def _change_in_place(nets: ModuleType) -> str:
    nets.SETTINGS["shift"] = 7.0
    return "global nets_of_the_user.SETTINGS has changed"


def _replace_function(nets: ModuleType) -> str:
    nets.shifted = lambda x: x - 1
    return "global nets_of_the_user.shifted has changed"


def _replace_forward(nets: ModuleType) -> str:
    original = nets.Net.forward
    nets.Net.forward = lambda self, x, target: original(self, x + 1, target)
    return "model: class Net has changed"


def _edit_the_file(nets: ModuleType) -> str:
    path = Path(str(nets.__file__))
    path.write_text(SOURCE.replace("return x + SETTINGS", "return x - SETTINGS"))
    nets.__dict__.update(vars(_imported(path)))
    return f"file {path} has changed"


@pytest.mark.parametrize(
    "change", [_set_global, _change_in_place, _replace_function, _replace_forward, _edit_the_file]
)
def test_a_change_of_the_code_or_of_what_it_reads_is_seen(
    nets: ModuleType, train: Callable[..., Trained], change: Callable[[ModuleType], str]
) -> None:
    before, _ = train(nets.Net())
    said = change(nets)
    after, text = train(nets.Net())
    assert "hit" not in text and said in text, text
    assert not torch.equal(before[0], after[0])
    assert "hit" in train(nets.Net())[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import random; y = y * random.random()", "draws random numbers on the host"),
        ("y = y + torch.rand(1, device='cpu').item()", "draws random numbers on the host"),
        ("import os; y = y * len(os.environ.get('HOME', ''))", "reads the environment"),
        ("y = y * len(open(__file__).read())", r"calls open\(\)"),
        ("import time; y = y * time.time()", r"calls time\(\)"),
        ("self.count = getattr(self, 'count', 0) + 1", r"the forward changes \(root\).count"),
        ("global SCALE; SCALE = 2.0", "changes a global variable"),
        ("eval(compile('lambda y: y', '<made up>', 'eval'))(y)", "is in no file"),
    ],
)
def test_what_no_key_can_hold_is_not_kept(
    tmp_path: Path, train: Callable[..., Trained], line: str, said: str
) -> None:
    path = tmp_path / "unrepeatable.py"
    forward = "    def forward(self, x, target):\n"
    declared, statement = (line, "pass") if line.startswith("global") else ("pass", line)
    text = SOURCE.replace(forward, f"{forward}        {declared.split(';')[0]}\n")
    statement = line.split(";", 1)[1].strip() if line.startswith("global") else statement
    path.write_text(text.replace("        return {", f"        {statement}\n        return {{"))
    _, said_by_cache = train(_imported(path).Net())
    assert "this executable is not kept" in said_by_cache
    assert re.search(said, said_by_cache), said_by_cache
    assert not _entries(tmp_path)


def test_an_attribute_without_a_text_is_not_kept(
    nets: ModuleType, train: Callable[..., Trained], tmp_path: Path
) -> None:
    model = nets.Net()
    model.log = open(tmp_path / "log", "w")  # noqa: SIM115
    _, text = train(model)
    assert "no key can be made: (root).log is a _io.TextIOWrapper" in text


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-100], lambda raw: raw[:-9] + b"x" + raw[-8:], lambda raw: b""]
)
def test_a_damaged_entry_is_said_and_replaced(
    nets: ModuleType, train: Callable[..., Trained], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    expected, _ = train(nets.Net())
    (entry,) = _entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    found, text = train(nets.Net())
    assert f"miss: {entry} cannot be used" in text and "damaged" in text and "kept as" in text
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "hit" in train(nets.Net())[1]


def test_on_a_full_disk_a_model_runs_and_is_not_kept(
    nets: ModuleType, train: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(nets.Net())
    (entry,) = _entries(tmp_path)
    entry.unlink()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    found, text = train(nets.Net())
    assert "not kept" in text and "No space left" in text and not _entries(tmp_path)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = poptorch.Options().enableExecutableCaching(str(tmp_path / "file" / "cache"))
    with pytest.raises(poptorch.Error, match=r"cannot be made .*POPTORCH_CACHE_DIR"):
        poptorch.inferenceModel(torch.nn.Linear(1, 1), options).compile(torch.zeros(1, 1))


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPTORCH_CACHE_DIR", str(tmp_path / "cache"))
    poptorch.inferenceModel(torch.nn.Linear(1, 1)).compile(torch.zeros(1, 1))
    assert len(_entries(tmp_path)) == 1
    poptorch.inferenceModel(torch.nn.Linear(1, 1), poptorch.Options().enableExecutableCaching(None)).compile(
        torch.zeros(2, 1)
    )
    assert len(_entries(tmp_path)) == 1


def _compile_as_one_of_several(folder: str, process: int, log: str) -> None:
    torch.set_num_threads(1)
    handler = logging.FileHandler(log)
    for name in ("poptorch::python", "poptorch::compiler"):
        logging.getLogger(name).addHandler(handler)
    poptorch.setLogLevel("DEBUG")
    options = poptorch.Options().useOfflineIpuTarget()
    options.enableExecutableCaching(folder)
    options.Distributed.configureProcessId(process, 3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    poptorch.inferenceModel(model, options).compile(torch.zeros(2, 4))
    for name in ("poptorch::python", "poptorch::compiler"):
        logging.getLogger(name).removeHandler(handler)


def _check_that_one_compiled(tmp_path: Path, logs: list[Path]) -> None:
    texts = [log.read_text() for log in logs]
    assert sorted("hit" in text for text in texts) == [False, True, True]
    assert all("cache file locked" in text and "released the cache lock" in text for text in texts)
    assert len(_entries(tmp_path)) == 1, "one executable, and no lock left"


def test_of_several_instances_one_compiles(tmp_path: Path) -> None:
    logs = [tmp_path / f"log{n}" for n in range(3)]
    for n, log in enumerate(logs):
        _compile_as_one_of_several(str(tmp_path / "cache"), n, str(log))
    poptorch.setLogLevel("WARN")
    _check_that_one_compiled(tmp_path, logs)


def _die_while_compiling(folder: str) -> None:
    compilation.compile_program = lambda request: os._exit(3)  # type: ignore[assignment]
    _compile_as_one_of_several(folder, 0, os.devnull)


@pytest.mark.slow
def test_a_process_killed_while_it_compiled_leaves_nothing_that_matters(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(
        target=_die_while_compiling, args=(str(tmp_path / "cache"),)
    )
    killed.start()
    killed.join(300)
    assert killed.exitcode == 3
    test_of_several_instances_one_compiles(tmp_path)


@pytest.mark.slow
def test_of_several_processes_at_once_one_compiles(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    logs = [tmp_path / f"log{n}" for n in range(3)]
    started = [
        context.Process(target=_compile_as_one_of_several, args=(str(tmp_path / "cache"), n, str(log)))
        for n, log in enumerate(logs)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    _check_that_one_compiled(tmp_path, logs)
