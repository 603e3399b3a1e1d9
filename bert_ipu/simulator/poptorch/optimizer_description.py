"""Descriptions of optimizers: whether PopART takes one, whether it can follow another, and how the log shows it."""

from __future__ import annotations

from typing import Any

from ..errors import poptorch_error

Description = dict[str, Any]
"""As `optimizer_attributes.describe` makes it."""

_NOT_NEGATIVE = ("learningRate", "weightDecay", "beta1", "beta2", "momentum", "dampening", "alpha")
_POSITIVE = ("eps", "velocityScaling")


def check_values(described: Description) -> None:
    """Raise Error for what PopART's optimizers refuse (`runValueChecks`)."""
    if described["defaults"]["lossScaling"][0] == 0:
        raise poptorch_error("Loss scaling cannot be 0: gradients are divided by it. 1 is none.")
    for index, group in enumerate(described["groups"]):
        for name, (value, constant) in group.items():
            if value < 0 and name in _NOT_NEGATIVE:
                needed = "not negative"
            elif value <= 0 and name in _POSITIVE:
                needed = "greater than 0"
            elif value == 0 and constant and name == "learningRate":
                needed = "variable, or not 0"
            else:
                continue
            raise poptorch_error(f"{name} of the optimizer's group {index} is {value}: it must be {needed}.")


def check_replacement(compiled: Description, given: Description) -> None:
    """Raise Error for an optimizer that the program compiled for another one cannot carry out."""
    kinds = compiled["optimizer_type"], given["optimizer_type"]
    if kinds[0] != kinds[1]:
        raise poptorch_error(
            f"The model is compiled for an optimizer of kind {kinds[0]}, the new one is of kind {kinds[1]}. Call "
            "destroy() on the model before setOptimizer()."
        )
    counts = len(compiled["groups"]), len(given["groups"])
    if counts[0] != counts[1]:
        raise poptorch_error(
            f"The model is compiled for an optimizer with {counts[0]} parameter groups, the new one has "
            f"{counts[1]}. Call destroy() on the model before setOptimizer()."
        )
    for name in _COMPILED_IN:
        _check_constant(name, compiled.get(name), given.get(name))
    places = {"the defaults": (compiled["defaults"], given["defaults"])} | {
        f"group {index}": pair for index, pair in enumerate(zip(compiled["groups"], given["groups"]))
    }
    for place, (before, after) in places.items():
        for name in before:
            if not (name == "velocityScaling" and kinds[0] == "SGD2"):  # PopTorch ties it to the loss scaling
                _check_attribute(f"{name} of {place}", before[name], after[name])


_COMPILED_IN = ("maxGradNorm", "useTfVariant")
"""Attributes of a whole optimizer that PopART compares; it ignores new accumulation types."""


def _check_attribute(name: str, before: tuple[Any, bool], after: tuple[Any, bool]) -> None:
    (old, was_constant), (new, is_constant) = before, after
    if was_constant != is_constant:
        kinds = {True: "constant", False: "variable"}
        raise poptorch_error(
            f"{name} was compiled in as a {kinds[was_constant]}, {old}, and is a {kinds[is_constant]} now, {new}. "
            f"{_STAY_VARIABLE}"
        )
    if was_constant:
        _check_constant(name, old, new)


def _check_constant(name: str, old: Any, new: Any) -> None:
    if old != new:
        raise poptorch_error(f"{name} is compiled in as {old}, and is {new} now. {_STAY_VARIABLE}")


_STAY_VARIABLE = (
    "Attributes that are to change must be variable from the start: pass them to the constructor of an optimizer "
    "of poptorch.optim, or call its variable_attrs.markAsVariable(). Or call destroy() on the model and compile again."
)


def log_lines(description: Description) -> list[str]:
    """A description as PopTorch logs it: the optimizer with its defaults, then each group."""
    kind = description["optimizer_type"]
    types = [
        f"{'firstOrderMomentumAccumType' if name == 'velocityAccumType' else name}="
        f"{'float16' if half else 'float32'},"
        for name, half in description.items()
        if name.endswith("AccumType") or name == "accumType"
    ]
    loss_scaling = description["defaults"]["lossScaling"]
    found = [
        f"graph optimizer with {kind} "
        f"{' '.join(types + _attributes(description['defaults'], kind, loss_scaling, True))}"
    ]
    for index, group in enumerate(description["groups"]):
        found.append(
            f"group {index} optimizer with {kind} {' '.join(_attributes(group, kind, loss_scaling, False))}"
        )
    return found


def _attributes(group: dict[str, Any], kind: str, loss_scaling: Any, default: bool) -> list[str]:
    shown = []
    for name, (value, constant) in group.items():
        if kind == "SGD2" and name == "velocityScaling":  # PopTorch ties them for the separate variant
            value, constant = loss_scaling
        if default and name != "lossScaling":
            name = f"default{name[0].upper()}{name[1:]}"
        shown.append(f"{name}={value:g}{' (const)' if constant else ''},")
    return shown
