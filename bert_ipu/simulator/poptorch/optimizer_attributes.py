"""What an optimizer object says, as the compiler needs it: its kind, and which attributes are constant."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch

from ..graph.optimizer_spec import KINDS
from . import enums, optim
from ._logging import logger
from .optimizer_description import Description, check_values
from .options import Options

# PopTorch's optimizer classes by torch's; AdamW first, as torch's AdamW is an Adam.
_CLASSES: list[tuple[type, type[optim.Optimizer], str]] = [
    (torch.optim.SGD, optim.SGD, "SGD2"),
    (torch.optim.AdamW, optim.AdamW, "ADAMW"),
    (torch.optim.Adam, optim.Adam, "ADAM"),
    (torch.optim.RMSprop, optim.RMSprop, "RMSPROP"),
    (optim.LAMB, optim.LAMB, "LAMB"),
]

# An attribute left at this value is compiled in, where the optimizer does not say what is variable.
_CONSTANT_AT: dict[str, float] = {
    "weight_decay": 0.0,
    "momentum": 0.0,
    "velocity_scaling": 1.0,
    "dampening": 0.0,
    "eps": 1e-8,
    "max_weight_norm": 65500.0,
}
_GROUP_DEFAULTS = {"velocity_scaling": 1.0}
_NAMES = {"lr": "learningRate"}
_NEVER_CONSTANT = ("lr",)
_ALWAYS_CONSTANT = ("alpha", "nesterov", "betas")


class AttributeTracker:
    """Warns once of each optimizer attribute that appears after the first look at the optimizer."""

    def __init__(self, options: Options) -> None:
        self._log = logger.debug if options._relax_optimizer_checks else logger.warning
        self._known: dict[str, set[str]] = {"group": set(), "optimizer": set()}
        self._recording = True
        self._said: set[str] = set()

    def enableChecks(self) -> None:
        """From now on, warn instead of taking note."""
        self._recording = False

    def check(self, scope: str, provided: Iterable[str], where: str, kind: str) -> None:
        """Take note of the names, or warn of those that are new."""
        extra = [name for name in provided if name not in self._known[scope]]
        if self._recording:
            self._known[scope].update(extra)
        elif extra:
            message = f"Ignoring unexpected {where} in {kind} optimizer: {extra}"
            if message not in self._said:
                self._log(message)
                self._said.add(message)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def optimizer_class(optimizer: torch.optim.Optimizer) -> tuple[type[optim.Optimizer], str]:
    """The PopTorch class whose rules the optimizer follows, and its kind.

    Raises AssertionError for an optimizer the IPU does not have.
    """
    known: set[type] = {kind for torch_class, popt_class, _ in _CLASSES for kind in (torch_class, popt_class)}
    found = next((row for row in _CLASSES if isinstance(optimizer, row[0])), None)
    assert found is not None, (
        f"The IPU has no optimizer {type(optimizer).__name__}; it has {', '.join(KINDS)}"
    )
    if type(optimizer) not in known:
        logger.warning(
            "Poptorch does not run Python optimizer code directly: what %s changes of the class it derives from has no "
            "effect.",
            type(optimizer).__name__,
        )
    return found[1], _kind(optimizer, found[2])


def _kind(optimizer: Any, kind: str) -> str:
    if kind == "SGD2":
        return "SGD1" if getattr(optimizer, "use_combined_accum", False) else "SGD2"
    if kind == "RMSPROP":
        return "RMSPROP_CENTERED" if _same_centered(optimizer) else "RMSPROP"
    if kind in ("ADAMW", "LAMB") and not getattr(optimizer, "bias_correction", True):
        return f"{kind}_NO_BIAS"
    return kind


def _same_centered(optimizer: torch.optim.Optimizer) -> bool:
    first = optimizer.param_groups[0]["centered"]
    for index, group in enumerate(optimizer.param_groups):
        assert group["centered"] == first, (
            f"centered is {first} in group 0 and {group['centered']} in group {index}: make it the same in all groups"
        )
    return bool(first)


class _Reader:
    """Reads one optimizer's attributes into PopTorch's dicts."""

    def __init__(self, optimizer: Any, kind: str, automatic_loss_scaling: bool) -> None:
        self._optimizer = optimizer
        self._variable: optim.VariableAttributes | None = getattr(optimizer, "variable_attrs", None)
        self._constant_at = dict(_CONSTANT_AT)
        if kind == "ADAMW":
            self._constant_at["weight_decay"] = 0.01
        if self._variable and automatic_loss_scaling:
            self._variable.markAsVariable("loss_scaling")
        self._automatic_loss_scaling = automatic_loss_scaling

    def is_constant(self, name: str, value: Any) -> bool:
        """Whether the attribute is compiled in."""
        if self._variable:
            return self._variable.isConstant(name)
        if name == "loss_scaling":
            return bool(value == 1.0) and not self._automatic_loss_scaling
        return name in _ALWAYS_CONSTANT or (
            name not in _NEVER_CONSTANT and value == self._constant_at.get(name)
        )

    def loss_scaling(self) -> dict[str, Any]:
        """The loss scaling, which is not a group's."""
        value = getattr(self._optimizer, "loss_scaling", 1.0)
        _assert_number("loss_scaling", value)
        return {"lossScaling": (value, self.is_constant("loss_scaling", value))}

    def group_attribute(self, group: dict[str, Any], name: str) -> dict[str, Any]:
        """One attribute of a parameter group, or of the defaults."""
        if name == "centered":
            return {}
        value = group.get(name, _GROUP_DEFAULTS.get(name))
        assert value is not None, f"A parameter group of the optimizer has no {name}"
        if name == "amsgrad":
            if value:
                raise ValueError("The IPU has no AMSGrad: set amsgrad=False.")
            return {}
        if name == "betas":
            return self._betas(value)
        _assert_number(name, value)
        return {_NAMES.get(name, _camel(name)): (value, self.is_constant(name, value))}

    def _betas(self, value: Any) -> dict[str, Any]:
        assert isinstance(value, tuple) and len(value) == 2, (
            f"betas is {value!r}, and must be a tuple of two numbers"
        )
        for index, beta in enumerate(value):
            _assert_number(f"betas[{index}]", beta)
        constant = self.is_constant("betas", value)
        return {"beta1": (value[0], constant), "beta2": (value[1], constant)}

    def own_attribute(self, name: str) -> dict[str, Any]:
        """One attribute that is compiled in and belongs to the whole optimizer."""
        if name in ("bias_correction", "use_combined_accum"):
            return {}
        if name.endswith("accum_type"):
            dtype = getattr(self._optimizer, name, torch.float32)
            if dtype not in (torch.float16, torch.float32):
                raise ValueError(f"{name} is {dtype}, and must be torch.float16 or torch.float32")
            return {_camel(name): dtype == torch.float16}
        value = getattr(self._optimizer, name, math.inf if name == "max_grad_norm" else False)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{name} is NaN, and must be a number")
        return {_camel(name): value}


def _assert_number(name: str, value: Any) -> None:
    assert isinstance(value, numbers.Number), f"{name} is {value!r}, and must be a number"


def _use_running_mean(optimizer: Any, options: Options, is_compiled: bool) -> None:
    """float16 accumulators would overflow with a sum: PopTorch divides as it accumulates."""
    if getattr(optimizer, "accum_type", None) != torch.float16 or getattr(
        optimizer, "use_combined_accum", False
    ):
        return
    running = enums.MeanReductionStrategy.Running
    if not is_compiled:
        options._unfreeze()
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(running)
        options._freeze()
    elif options.Training.meanAccumulationAndReplicationReductionStrategy != running:
        raise ValueError(
            "accum_type torch.float16 needs MeanReductionStrategy.Running, and the model is already compiled without "
            "it. Call destroy() on the model before setOptimizer()."
        )


def describe(
    optimizer: torch.optim.Optimizer, tracker: AttributeTracker, options: Options, is_compiled: bool
) -> Description:
    """The optimizer as nested dicts: `optimizer_type`, compiled-in attributes, `defaults` and `groups`.

    In `defaults` and each group, an attribute under PopART's camel-case name is (value, is it constant).
    Raises AssertionError or ValueError for what the IPU's optimizers cannot do.
    """
    popt_class, kind = optimizer_class(optimizer)
    _use_running_mean(optimizer, options, is_compiled)
    reader = _Reader(
        optimizer, kind, options._Popart.options.get("automaticLossScalingSettings.enabled", False)
    )
    described: Description = {"optimizer_type": kind}
    group_names = popt_class._group_vars
    for name in popt_class._child_only:
        if name not in (*group_names, *popt_class._child_vars):
            described.update(reader.own_attribute(name))

    def read(group: dict[str, Any]) -> dict[str, Any]:
        return _merged(reader.group_attribute(group, name) for name in group_names)

    described["defaults"] = {**read(optimizer.defaults), **reader.loss_scaling()}
    described["groups"] = [read(group) for group in optimizer.param_groups]
    check_values(described)
    _check_names(optimizer, tracker, kind)
    logger.debug("Python optimizer %s", described)
    tracker.enableChecks()
    return described


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _check_names(optimizer: torch.optim.Optimizer, tracker: AttributeTracker, kind: str) -> None:
    own = vars(optimizer).keys() - {"defaults", "state", "param_groups", "variable_attrs", "read_from_ipu"}
    tracker.check("group", sorted(optimizer.defaults), "default group variable", kind)
    tracker.check("optimizer", sorted(own), "optimizer attribute", kind)
    for index, group in enumerate(optimizer.param_groups):
        tracker.check("group", sorted(group.keys() - {"params"}), f"group {index} attribute", kind)
