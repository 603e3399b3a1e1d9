"""The key of an executable: everything its program was made from, as texts in named parts."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

from ..executables.cache import Key
from ..executables.dependencies import Texts
from ..executables.fingerprint import Fingerprint, digest_of_file, module_state
from ..graph.optimizer_spec import HyperParameter, OptimizerSpec
from ..graph.request import CompileRequest
from ..native.abi import runtime_is_loaded as native_runtime_is_loaded
from .compile_request import Subject
from .options import current_attributes

FITTING = ("inputs", "settings", "parameters")
"""The parts that a program loaded from a file must have in common with the model it is loaded for."""

_FED_BY_THE_HOST = ("learningRate", "lossScaling")
"""Hyper-parameters that enter a program by variables only, where they are not constant."""


def executable_key(subject: Subject, request: CompileRequest) -> Key:
    """The whole key. Raises NoFingerprint for a model that holds what no text can stand for."""
    return {
        "simulator": _versions(),
        **fitting_key(subject, request),
        "model": dict(_model(subject)),
        "placement": {"strategy": Fingerprint().of(subject.options._execution_strategy, "the strategy")},
        "libraries": _libraries(),
    }


def fitting_key(subject: Subject, request: CompileRequest) -> Key:
    """The parts named by `FITTING`. Raises NoFingerprint for inputs that no text can stand for."""
    return {
        "inputs": _inputs(subject),
        "settings": _settings(request),
        "parameters": _parameters(request.module),
    }


def forward_changes(before: Key, after: Key) -> list[str]:
    """What a capture has changed of the model, apart from the numbers that blocks without a name get."""
    old, new = before["model"], after["model"]
    changed = (item for item in {**old, **new} if old.get(item) != new.get(item))
    return [item for item in changed if not item.endswith("._forward_pre_hooks")]


def _versions() -> Texts:
    return {
        "bert_ipu.simulator": _own_digest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def _own_digest() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _inputs(subject: Subject) -> Texts:
    inputs = subject.inputs.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
    named = [*zip(inputs.names, inputs.args), *inputs.kwargs.items()]
    return {name: Fingerprint().of(value, f"input {name}") for name, value in named}


def _settings(request: CompileRequest) -> Texts:
    found = {
        "training": str(request.training),
        **{f"reduction.{name}": str(value) for name, value in dataclasses.asdict(request.reduction).items()},
        "loss scaling": str(request.loss_scaling),
        "strided channel groups": str(request.strided_channel_groups),
        "module scopes": str(request.module_scopes),
        "patterns": str(request.patterns),
        "default dtype": str(torch.get_default_dtype()),
        "autocast": str(torch.is_autocast_enabled("cpu")),
        "attributes": str(current_attributes()),
    }
    found.update({f"replica groups of {name}": str(groups) for name, groups in request.groups.items()})
    found.update({f"anchor {anchor.short_name}": str(anchor) for anchor in request.anchors})
    if request.optimizer is not None:
        found.update(_optimizer(request.optimizer))
    return found


def _optimizer(spec: OptimizerSpec) -> Iterator[tuple[str, str]]:
    own = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    groups, group_of, scaling = own.pop("groups"), own.pop("group_of"), own.pop("loss_scaling")
    yield from ((f"optimizer.{name}", str(value)) for name, value in own.items())
    yield "optimizer.lossScaling", _hyper_parameter("lossScaling", scaling)
    for index, group in enumerate(groups):
        yield from (
            (f"optimizer.groups[{index}].{name}", _hyper_parameter(name, value))
            for name, value in group.items()
        )
    yield from ((f"optimizer's group of {name}", str(index)) for name, index in group_of.items())


def _hyper_parameter(name: str, given: HyperParameter) -> str:
    if name in _FED_BY_THE_HOST and not given.constant:
        return "variable"
    return f"{float(given.value)} ({'constant' if given.constant else 'variable'})"


def _parameters(module: torch.nn.Module) -> Texts:
    """Every parameter and buffer, shared ones under each of their names."""
    found: Texts = {}
    first: dict[int, str] = {}
    tables = (module.named_parameters, module.named_buffers)
    for name, tensor in (entry for table in tables for entry in table(remove_duplicate=False)):
        text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        if isinstance(tensor, torch.nn.Parameter):
            text += ", trained" if tensor.requires_grad else ", not trained"
        same = first.setdefault(id(tensor), name)
        found[name] = text if same == name else f"the same as {same}"
    return found


def _model(subject: Subject) -> Iterator[tuple[str, str]]:
    """Every module's class and attributes; for a function, the function."""
    model = subject.model
    if not isinstance(model, torch.nn.Module):
        yield "function", Fingerprint().of(model, "the model")
        return
    tensors = (*model.named_parameters(), *model.named_buffers())
    for name, tensor in tensors:
        if not tensor.is_floating_point():  # A constant of the program.
            yield f"{name} (constant)", Fingerprint().of(tensor, name)
    texts = Fingerprint({id(tensor): name for name, tensor in tensors})
    for path, module in model.named_modules(remove_duplicate=False):
        place = path or "(root)"
        yield f"{place} class", f"{type(module).__module__}.{type(module).__qualname__}"
        yield f"class {type(module).__qualname__}", Fingerprint().of(type(module), type(module).__qualname__)
        for name, value in module_state(module):
            yield f"{place}.{name}", texts.of(value, f"{place}.{name}")


def _libraries() -> Texts:
    """The custom ops and their runtime: shared libraries outside of Python, its packages and the system."""
    if not native_runtime_is_loaded():
        return {}
    mapped = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in mapped if line.endswith(".so")}
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    known = ("/usr/", "/lib", sys.prefix, sys.base_prefix, *packages)
    return {path: digest_of_file(path) for path in sorted(paths) if not path.startswith(known)}
