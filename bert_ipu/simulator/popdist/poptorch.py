"""`popdist.poptorch.Options`: PopTorch's options with the layout that poprun chose."""

from __future__ import annotations

from typing import Any, NoReturn

from bert_ipu.simulator import popdist
from bert_ipu.simulator.poptorch.options import Options as _PopTorchOptions
from bert_ipu.simulator.poptorch.options import _DistributedOptions


def _refuse(method: str) -> NoReturn:
    raise RuntimeError(f"Cannot call `{method}` with popdist.poptorch.Options: poprun has set it.")


class _PopdistDistributed(_DistributedOptions):
    """The instances as poprun laid them out; none of it can be changed."""

    def disable(self) -> NoReturn:
        """Refused."""
        _refuse("Distributed.disable")

    def setEnvVarNames(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        _refuse("Distributed.configureProcessId")


class Options(_PopTorchOptions):
    """Options with this instance's replicas and its place among the instances.

    `ipus_per_replica` is checked against poprun's; raises poptorch.Error where they differ.
    """

    def __init__(self, ipus_per_replica: int | None = None) -> None:
        super().__init__()
        super().useIpuId(popdist.getDeviceId(ipus_per_replica or 0))
        super().replicationFactor(popdist.getNumLocalReplicas())
        self._distributed.configureProcessId(popdist.getInstanceIndex(), popdist.getNumInstances())
        self._distributed.__class__ = _PopdistDistributed

    def useIpuId(self, ipu_id: int) -> NoReturn:
        """Refused."""
        _refuse("useIpuId")

    def replicationFactor(self, replication_factor: int) -> NoReturn:
        """Refused."""
        _refuse("replicationFactor")
