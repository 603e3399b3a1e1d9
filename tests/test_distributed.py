"""A job of one instance, and a job whose poprun disagrees with the configuration."""

from __future__ import annotations

import pytest

from bert_ipu.distributed import World, join_world
from bert_ipu.errors import ConfigError


def test_alone_nothing_is_exchanged() -> None:
    world = join_world(replication_factor=4)
    assert world == World(rank=0, size=1, communicator=None) and world.is_first
    assert world.gather("seed") == ["seed"]
    assert world.mean({"loss": 2.0}) == {"loss": 2.0}
    world.check_same({"seed": "1"})


def test_poprun_must_agree_on_the_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("popdist.isPopdistEnvSet", lambda: True)
    monkeypatch.setattr("popdist.init", lambda: None)
    monkeypatch.setattr("popdist.getNumTotalReplicas", lambda: 8)
    with pytest.raises(ConfigError, match=r"poprun started 8 replicas, but ipu\.replication_factor = 4"):
        join_world(replication_factor=4)
