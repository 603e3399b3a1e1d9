"""Which backend is chosen, and what is said where it cannot be had."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bert_ipu import backend
from bert_ipu.config import IpuConfig
from bert_ipu.errors import ConfigError


def in_new_process(code: str) -> str:
    """What a fresh interpreter prints, in which nothing has chosen a backend yet."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_without_sdk_auto_takes_the_simulator() -> None:
    output = in_new_process(
        "from bert_ipu.backend import activate; from bert_ipu.config import IpuConfig\n"
        "print(*activate(IpuConfig(numerics='ipu')))\n"
        "import poptorch; print(poptorch.Options().__module__)")
    assert output.startswith("simulator no Poplar SDK is installed; numerics ipu: half precision is rounded")
    assert "bert_ipu.simulator" in output.splitlines()[-1]


def test_the_simulators_poptorch_on_the_path_is_no_sdk() -> None:
    # As poprun starts a program, for those that import poptorch themselves.
    output = in_new_process(
        "import sys, bert_ipu; sys.path.append(bert_ipu.__path__[0] + '/simulator/importable')\n"
        "from bert_ipu.backend import activate; from bert_ipu.config import IpuConfig\n"
        "print(*activate(IpuConfig()))")
    assert output.startswith("simulator no Poplar SDK is installed")


@pytest.mark.parametrize("name", ["ipu", "ipu_model"])
def test_forcing_what_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_sdk_is_installed", lambda: False)
    with pytest.raises(ConfigError, match=f"ipu.backend = {name} needs the Poplar SDK"):
        backend.activate(IpuConfig(backend=name))


def test_hardware_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_sdk_is_installed", lambda: True)
    monkeypatch.setattr(backend, "_hardware_is_there", lambda: False)
    with pytest.raises(ConfigError, match="finds no IPU"):
        backend.activate(IpuConfig(backend="ipu"))
    assert backend.activate(IpuConfig(backend="ipu"), compile_only=True).name == "ipu"


def test_hardware_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_sdk_is_installed", lambda: True)
    monkeypatch.setattr(backend, "_hardware_is_there", lambda: True)
    assert backend.activate(IpuConfig()).name == "ipu"


@pytest.mark.parametrize(("settings", "part"), [
    ({"replication_factor": 2}, "cannot replicate"), ({"executable_cache_dir": "cache"}, "cannot cache")])
def test_limits_of_the_ipu_model(
    settings: dict[str, object], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_sdk_is_installed", lambda: True)
    with pytest.raises(ConfigError, match=part):
        backend.activate(IpuConfig(backend="ipu_model", **settings))
