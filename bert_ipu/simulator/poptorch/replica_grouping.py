"""`model.weight.replicaGrouping(...)`: values of a parameter that groups of replicas do not share."""

from __future__ import annotations

from typing import Any

import torch

from .enums import CommGroupType, VariableRetrievalMode

Grouping = tuple[CommGroupType, int, VariableRetrievalMode]


class GroupableParameter:
    """A parameter as an attribute of an executor: itself, and `replicaGrouping`."""

    def __init__(self, groupings: dict[str, Grouping], name: str, parameter: torch.nn.Parameter) -> None:
        self._groupings, self._name, self._parameter = groupings, name, parameter

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of replicas values of their own: the parameter's first dimension counts the groups."""
        self._groupings[self._name] = (comm_group_type, shards, variable_retrieval_mode)

    def __getattr__(self, attr: str) -> Any:
        return getattr(self._parameter, attr)
