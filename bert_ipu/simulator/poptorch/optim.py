"""PopTorch's optimizers: torch's, with the IPU's extra arguments, and LAMB.

They hold hyper-parameters and state; the update itself is compiled into the program. LAMB's and the
others' `step` run the same formula on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ._logging import logger

_ACCUMULATION_TYPES = (torch.float16, torch.float32)

_ON_IPU = ("ipu_state", "ipu_param")
"""What a state dict has of the IPU's: moments and such, and hyper-parameters."""


class VariableAttributes:
    """Which hyper-parameters the host may change after compilation."""

    def __init__(self, variable_attributes: list[str], allowed_attributes: list[str]) -> None:
        self._variable_attributes = variable_attributes
        self._allowed_attributes = allowed_attributes

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is compiled in."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Compile the attribute in."""
        self._mark(attr, is_variable=False)

    def markAsVariable(self, attr: str) -> None:
        """Let the host change the attribute."""
        self._mark(attr, is_variable=True)

    def _mark(self, attr: str, is_variable: bool) -> None:
        known = self._allowed_attributes
        assert attr in known, f"{attr} is no attribute of this optimizer, which has {', '.join(known)}"
        others = [each for each in self._variable_attributes if each != attr]
        self._variable_attributes = [*others, attr] if is_variable else others


class Optimizer:
    """What PopTorch's optimizers share: the state that lives on the IPU, and which copy of it is newer."""

    _group_vars: list[str]
    """Hyper-parameters of a group of parameters."""
    _child_vars: list[str] = ["loss_scaling"]
    """Hyper-parameters of the optimizer as a whole."""
    _child_only: list[str]
    """Arguments of the constructor that torch's class does not take."""

    loss_scaling: float
    variable_attrs: VariableAttributes

    read_from_ipu: Callable[[], None] | None = None
    """Brings the host's copy up to date; set by the model that uses the optimizer."""

    def __init__(self) -> None:
        self._state_dict: dict[str, Any] = dict.fromkeys(_ON_IPU)
        self.ipu_state_is_dirty = False
        """The host's state is newer than the IPU's."""
        self.host_state_is_dirty = False
        """The IPU's state is newer than the host's."""

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict with `ipu_state` and `ipu_param`, as they are on the IPU now."""
        if self.read_from_ipu is not None:
            self.read_from_ipu()
        return self.get_state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state dict that a PopTorch optimizer made; RuntimeError for others."""
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]
        self.set_state_dict(state)

    def get_state_dict(self) -> dict[str, Any]:
        """The host's copy of the state."""
        return {**self._state_dict, **torch.optim.Optimizer.state_dict(self)}  # type: ignore[arg-type]

    def set_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the host's copy of the state, for the IPU to take over."""
        if not state.keys() >= set(_ON_IPU):
            raise RuntimeError(
                "Only IPU optimizer states can be loaded onto the IPU. They have "
                f"{' and '.join(_ON_IPU)}; this one has {', '.join(map(str, state)) or 'nothing'}."
            )
        self._state_dict = state
        self.ipu_state_is_dirty, self.host_state_is_dirty = True, False

    def take_from_ipu(self, state: dict[str, Any]) -> None:
        """Replace the host's copy of what is on the IPU by what is there now."""
        self.set_state_dict({**self.get_state_dict(), **state})
        self.ipu_state_is_dirty = False

    def has_state(self) -> bool:
        """Whether the host has a copy of the IPU's state."""
        return all(self._state_dict.get(key) is not None for key in _ON_IPU)

    def _set_own(self, arguments: dict[str, Any], **own: Any) -> None:
        """Keep what torch's class does not: `own`, and those of the constructor's arguments that all optimizers have.

        Raises AssertionError for an accumulation type other than float16 and float32.
        """
        loss_scaling = arguments["loss_scaling"]
        self.loss_scaling = 1.0 if loss_scaling is None else loss_scaling
        for name, dtype in arguments.items():
            if name.endswith("accum_type"):
                dtype = torch.float32 if dtype is None else dtype
                assert dtype in _ACCUMULATION_TYPES, (
                    f"{name} is {dtype}, and must be torch.float32 or torch.float16"
                )
                setattr(self, name, dtype)
        for name, value in own.items():
            setattr(self, name, value)
        changeable = [*self.defaults, *self._child_vars]  # type: ignore[attr-defined]
        self.variable_attrs = VariableAttributes(_given(arguments), changeable)


def _given(arguments: dict[str, Any]) -> list[str]:
    """Names of the constructor arguments that the user gave: these start as variable."""
    return [
        name for name, value in arguments.items() if name not in ("self", "__class__") and value is not None
    ]


def _parent_arguments(arguments: dict[str, Any], own: list[str]) -> dict[str, Any]:
    return {name: arguments[name] for name in _given(arguments) if name not in own}


def _pickled(optimizer: Any, torch_state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    own = {name: getattr(optimizer, name) for name in names if hasattr(optimizer, name)}
    return {
        **torch_state,
        **own,
        "variable_attrs": optimizer.variable_attrs,
        "_state_dict": optimizer._state_dict,
        "ipu_state_is_dirty": optimizer.has_state(),
        "host_state_is_dirty": False,
    }


class SGD(Optimizer, torch.optim.SGD):
    """torch's SGD with loss scaling and accumulation types; `use_combined_accum` shares one accumulator."""

    _child_only = [
        "loss_scaling",
        "velocity_scaling",
        "use_combined_accum",
        "accum_type",
        "velocity_accum_type",
        "max_grad_norm",
    ]
    _group_vars = ["lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float | None = None,
        dampening: float | None = None,
        weight_decay: float | None = None,
        nesterov: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        velocity_scaling: float | None = None,
        use_combined_accum: bool | None = None,
        accum_type: torch.dtype | None = None,
        velocity_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        arguments = dict(locals())
        Optimizer.__init__(self)
        torch.optim.SGD.__init__(self, **_parent_arguments(arguments, SGD._child_only))
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning("velocity_scaling has no effect without use_combined_accum=True")
        if use_combined_accum:
            scaling = 1.0 if velocity_scaling is None else velocity_scaling
            self.defaults["velocity_scaling"] = scaling
            for group in self.param_groups:
                group.setdefault("velocity_scaling", scaling)
        self._set_own(
            arguments,
            use_combined_accum=bool(use_combined_accum),
            max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm,
        )

    def __getstate__(self) -> dict[str, Any]:
        return _pickled(self, torch.optim.SGD.__getstate__(self), self._child_only)


class Adam(Optimizer, torch.optim.Adam):
    """torch's Adam with loss scaling and accumulation types."""

    _child_only = [
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "max_grad_norm",
    ]
    _group_vars = ["lr", "betas", "eps", "weight_decay", "amsgrad"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        arguments = dict(locals())
        Optimizer.__init__(self)
        torch.optim.Adam.__init__(self, **_parent_arguments(arguments, Adam._child_only))
        self._set_own(arguments, max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm)

    def __getstate__(self) -> dict[str, Any]:
        return _pickled(self, torch.optim.Adam.__getstate__(self), self._child_only)


class AdamW(Optimizer, torch.optim.AdamW):
    """torch's AdamW with loss scaling, accumulation types and optional bias correction."""

    _child_only = [
        "loss_scaling",
        "bias_correction",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "max_grad_norm",
    ]
    _group_vars = ["lr", "betas", "weight_decay", "eps", "amsgrad"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool | None = None,
        maximize: bool | None = None,
        foreach: bool | None = None,
        capturable: bool | None = None,
        differentiable: bool | None = None,
        fused: bool | None = None,
        loss_scaling: float | None = None,
        bias_correction: bool | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        arguments = dict(locals())
        Optimizer.__init__(self)
        torch.optim.AdamW.__init__(self, **_parent_arguments(arguments, AdamW._child_only))
        self._set_own(
            arguments,
            bias_correction=True if bias_correction is None else bias_correction,
            max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm,
        )

    def __getstate__(self) -> dict[str, Any]:
        return _pickled(self, torch.optim.AdamW.__getstate__(self), self._child_only)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """torch's RMSprop with loss scaling, accumulation types and TensorFlow's variant."""

    _child_only = [
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "use_tf_variant",
    ]
    _group_vars = ["lr", "momentum", "weight_decay", "alpha", "eps", "centered"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        momentum: float | None = None,
        centered: bool | None = None,
        foreach: bool | None = None,
        maximize: bool | None = None,
        differentiable: bool | None = None,
        loss_scaling: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
        use_tf_variant: bool | None = None,
    ) -> None:
        arguments = dict(locals())
        Optimizer.__init__(self)
        torch.optim.RMSprop.__init__(self, **_parent_arguments(arguments, RMSprop._child_only))
        self._set_own(arguments, use_tf_variant=bool(use_tf_variant))

    def __getstate__(self) -> dict[str, Any]:
        return _pickled(self, torch.optim.RMSprop.__getstate__(self), self._child_only)


class LAMB(Optimizer, torch.optim.Optimizer):
    """LAMB (You et al., arXiv:1904.00962), with PopTorch's clipping of the weight norm."""

    bias_correction: bool

    _child_only = [
        "loss_scaling",
        "bias_correction",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
    ]
    _group_vars = ["lr", "weight_decay", "betas", "eps", "max_weight_norm"]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        bias_correction: bool | None = None,
        loss_scaling: float | None = None,
        max_weight_norm: float | None = None,
        accum_type: torch.dtype | None = None,
        first_order_momentum_accum_type: torch.dtype | None = None,
        second_order_momentum_accum_type: torch.dtype | None = None,
    ) -> None:
        arguments = dict(locals())
        # 65500 is near the largest float16: PopTorch's default keeps the norm representable.
        self.max_weight_norm = 65500.0 if max_weight_norm is None else max_weight_norm
        defaults = {
            "lr": 1e-3 if lr is None else lr,
            "betas": (0.9, 0.999) if betas is None else betas,
            "eps": 1e-8 if eps is None else eps,
            "weight_decay": 1e-2 if weight_decay is None else weight_decay,
            "max_weight_norm": self.max_weight_norm,
        }
        Optimizer.__init__(self)
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._set_own(arguments, bias_correction=True if bias_correction is None else bias_correction)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters on the host; returns what `closure` returns."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        gradient, (beta1, beta2) = parameter.grad, group["betas"]
        assert gradient is not None, "only parameters with a gradient are updated"
        momentum = state["exp_avg"].lerp_(gradient, 1 - beta1)
        variance = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1 = 1 - beta1 ** state["step"] if self.bias_correction else 1.0
        correction2 = 1 - beta2 ** state["step"] if self.bias_correction else 1.0
        direction = momentum / correction1 / ((variance / correction2).sqrt() + group["eps"])
        direction += group["weight_decay"] * parameter
        weight_norm = min(parameter.norm().item(), self.max_weight_norm)
        direction_norm = direction.norm().item()
        trust = weight_norm / direction_norm if weight_norm and direction_norm else 1.0
        parameter.sub_(direction, alpha=group["lr"] * trust)

    def __getstate__(self) -> dict[str, Any]:
        return _pickled(self, torch.optim.Optimizer.__getstate__(self), self._child_only)
