"""What all tests share: where the real data lies, and that CI never skips for want of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BERT_IPU_SHARED", REPOSITORY.parent / "shared"))


def pytest_configure() -> None:
    """Before tests are imported, let `import poptorch` mean the simulator."""
    from bert_ipu import simulator

    simulator.install()


@pytest.fixture(autouse=True)
def simulator_defaults() -> Iterator[None]:
    """Scripts called in a test choose how models are simulated; the next test starts from the defaults."""
    yield
    from bert_ipu import simulator

    simulator.install()


@pytest.fixture(autouse=True)
def patterns_of_other_tests_are_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library stays loaded as long as the process, with its patterns on: tests of custom ops alone want them."""
    if not any(word in str(request.path.relative_to(REPOSITORY)) for word in ("custom_op", "pattern")):
        monkeypatch.setattr("bert_ipu.simulator.graph.patterns.registered_patterns", dict)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files beside the checkout; skips where it is absent, fails in CI."""
    folder = SHARED / "data"
    if folder.is_dir():
        return folder
    reason = f"real data not found at {folder}; set BERT_IPU_SHARED to the folder that holds data/"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
