"""Where the user says a piece of the forward runs, and what else they attach to it.

The facade's `Block`, `BeginBlock`, `Stage`, `Phase`, `Attribute` and the like change the current
`Annotations` while the forward is captured; every node recorded meanwhile takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Optional


@dataclass(frozen=True)
class Placement:
    """One IPU, pipeline stage and execution phase; None where the user has not said."""

    ipu: Optional[int] = None
    stage: Optional[int] = None
    phase: Optional[int] = None
    block: Optional[str] = None
    """The block's name, for messages and for stages that options define later."""


@dataclass
class Annotations:
    """What the next recorded node gets: a placement, attributes, name scopes."""

    placement: Placement = field(default_factory=Placement)
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    scopes: tuple[tuple[int, str], ...] = ()
    """The name scopes around it: the depth of the module that each was entered in, and its name."""
    multi_conv: Optional[int] = None
    """The number of the multi-convolution being recorded."""

    def place(self, placement: Placement) -> None:
        """Everything from here on runs there, until the next call."""
        self.placement = placement

    def push_scope(self, name: str, depth: int) -> None:
        """Names of tensors from here on have `name` after those of the first `depth` modules."""
        self.scopes = (*self.scopes, (depth, name))

    def pop_scope(self) -> None:
        """The scope entered last ends."""
        self.scopes = self.scopes[:-1]

    def meta(self) -> dict[str, Any]:
        """The node metadata these annotations amount to."""
        found = {"ipu": self.placement.ipu, "stage": self.placement.stage, "phase": self.placement.phase}
        meta: dict[str, Any] = {key: value for key, value in found.items() if value is not None}
        if self.placement.block is not None:
            meta["block"] = self.placement.block
        if self.attributes:
            meta["attrs"] = dict(self.attributes)
        if self.scopes:
            meta["scopes"] = self.scopes
        if self.multi_conv is not None:
            meta["multi_conv"] = self.multi_conv
        return meta
