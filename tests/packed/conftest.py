"""Fixtures of the packed tests."""

import helpers
import pytest

from mpt_fast.runtime import engine


@pytest.fixture(params=helpers.suite_backends(("reference", "cpu")))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend of packed models that can run here, the engine once per instruction set."""
    name, _, isa = request.param.partition("/")
    if isa:
        monkeypatch.setattr(engine, "ISA", isa)
    return name
