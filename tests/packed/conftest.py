"""Fixtures of the packed tests."""

import helpers
import pytest

from mpt_fast.runtime import engine

LAYOUTS = ("images", "pixels")


@pytest.fixture(
    params=[
        f"{backend}/{layout}" if "/" in backend else backend
        for backend in helpers.suite_backends(("reference", "cpu"))
        for layout in (LAYOUTS if "/" in backend else ("",))
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend that can run here, the engine once per instruction set and lane layout."""
    name, *options = request.param.split("/")
    if options:
        monkeypatch.setattr(engine, "ISA", options[0])
        monkeypatch.setattr(engine, "LAYOUT", options[1])
    return name
