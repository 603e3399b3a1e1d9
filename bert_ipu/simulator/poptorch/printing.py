"""`poptorch.print` and the text of a module with its blocks."""

from __future__ import annotations

import builtins
from typing import Any

import torch


def module_repr(m: torch.nn.Module) -> str:
    """torch's text of a module, with the blocks that begin at it in front of its name."""
    extra = m.extra_repr()
    children = [
        f"({name}): {'' if child is None else _indented(module_repr(child))}"
        for name, child in m._modules.items()
    ]
    hooks = "".join(f"{hook!r} " for hook in m._forward_pre_hooks.values())
    lines = [*(extra.split("\n") if extra else []), *children]
    if not children and len(lines) <= 1:
        body = extra
    else:
        body = "".join(f"\n  {line}" for line in lines) + "\n"
    return f"{hooks}{type(m).__name__}({body})"


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def print(m: Any) -> None:
    """Print a module with its blocks; anything else as the builtin does."""
    builtins.print(module_repr(m) if isinstance(m, torch.nn.Module) else m)
