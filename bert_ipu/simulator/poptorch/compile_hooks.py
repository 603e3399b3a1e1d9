"""What users have called before and after each compilation."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator

from torch.utils.hooks import RemovableHandle

_Hooks = dict[int, Callable[[], None]]

_before: _Hooks = collections.OrderedDict()
_after: _Hooks = collections.OrderedDict()


@contextlib.contextmanager
def called_around() -> Iterator[None]:
    """Call the hooks before and after what runs inside, a compilation."""
    for hook in list(_before.values()):
        hook()
    try:
        yield
    finally:
        for hook in list(_after.values()):
            hook()


def _register(hooks: _Hooks, hook: Callable[[], None]) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"A hook must be callable, not {hook!r}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` before each model is compiled, until the handle is removed."""
    return _register(_before, hook)


def registerPostCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` after each model is compiled, until the handle is removed."""
    return _register(_after, hook)
