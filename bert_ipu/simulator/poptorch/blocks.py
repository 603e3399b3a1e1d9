"""Blocks: the parts of a model that a strategy's stages are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..errors import poptorch_error
from ..graph.annotations import Placement
from . import recording, strategies


def _begin(user_id: str | None, ipu_id: int | None) -> None:
    if ipu_id is not None and not isinstance(ipu_id, int):
        raise TypeError(f"A block's ipu_id must be an int, not {ipu_id!r}.")
    if strategies.current_placer is not None:
        strategies.current_placer.begin(user_id, ipu_id)


def _begin_again(user_id: str | None, ipu_id: int | None) -> str | None:
    """Begin a block that has its place in a model; the id to begin it by the next time, a number if it had none."""
    if user_id is None and strategies.current_placer is not None:
        user_id = strategies.current_placer.next_name()
    _begin(user_id, ipu_id)
    return user_id


class Block(torch.nn.Module):
    """A context whose operators form a block: `with poptorch.Block("encoder", ipu_id=1):`."""

    def __init__(self, user_id: str | None = None, ipu_id: int | None = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id
        self._outer: Placement | None = None

    @staticmethod
    def useAutoId() -> None:
        """Number unnamed blocks from 0; call it at the start of the forward."""
        if strategies.current_placer is not None:
            strategies.current_placer.restart_names()

    @staticmethod
    def start(user_id: str | None = None, ipu_id: int | None = None) -> None:
        """Begin a block that lasts until the next one begins."""
        _begin(user_id, ipu_id)

    def __enter__(self) -> None:
        self._outer = recording.current_placement()
        _begin(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        in_block = self._outer is not None and self._outer.ipu is not None
        recording.place(self._outer if in_block else recording.NO_BLOCK)
        self._outer = None


class _Beginning:
    """The beginning of a block, called before a module's forward."""

    def __init__(self, user_id: str | None, ipu_id: int | None) -> None:
        self._user_id, self._ipu_id = user_id, ipu_id

    def __call__(self, *_: Any) -> None:
        self._user_id = _begin_again(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        """What stands behind a module's name where its model is printed."""
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


class LegacyBeginBlockFn(torch.nn.Module):
    """A function that begins a block each time it is called."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: str | None = None, ipu_id: int | None = None
    ) -> None:
        super().__init__()
        self._user_id, self._ipu_id = user_id, ipu_id
        self._layer_to_call = layer_to_call

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        self._user_id = _begin_again(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


def _beginnings(module: torch.nn.Module) -> list[int]:
    """The keys under which a module's forward hooks begin a block."""
    return [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, _Beginning)]


def BeginBlock(layer_to_call: Any, user_id: str | None = None, ipu_id: int | None = None) -> torch.nn.Module:
    """Begin a block at a module, which is changed in place and returned, or at a function, which is wrapped.

    Raises Error for anything else, or where a block already begins.
    """
    if isinstance(layer_to_call, torch.nn.Module):
        if _beginnings(layer_to_call):
            raise poptorch_error(
                f"{type(layer_to_call).__name__}: this module has already been assigned to a block; removeBlocks() "
                "takes it out."
            )
        layer_to_call.register_forward_pre_hook(_Beginning(user_id, ipu_id))
        return layer_to_call
    if callable(layer_to_call):
        return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
    raise poptorch_error(f"BeginBlock takes a torch.nn.Module or a function, not {type(layer_to_call)}.")


def removeBlocks(module: torch.nn.Module) -> None:
    """Undo every `BeginBlock` in a module and its children."""
    assert isinstance(module, torch.nn.Module), f"removeBlocks takes a torch.nn.Module, not {type(module)}"
    for each in module.modules():
        for key in _beginnings(each):
            del each._forward_pre_hooks[key]


def BlockFunction(
    user_id: str | None = None, ipu_id: int | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function so that its operators form a block."""

    def within_block(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return call

    return within_block


class NameScope:
    """A context that puts its name before those of its operators."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), f"NameScope takes a string, not {name!r}"
        self.name = name

    def __enter__(self) -> None:
        recording.push_name_scope(self.name)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        recording.pop_name_scope()
