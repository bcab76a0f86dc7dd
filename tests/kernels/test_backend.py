"""The choice of a backend: automatic, explicit, and every way it is refused."""

import logging
import sys
from collections.abc import Iterator

import pytest

from mpt_fast.kernels import backend, cpu
from mpt_fast.kernels.backend import BackendError, choose

ALL = ("triton", "cpu", "reference")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_module", sys)  # any module: choose() only asks whether there is one


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_module", None)
    monkeypatch.setattr(cpu, "_reason", "No module named '_cpu'")


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "triton_available", lambda: False)


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "triton_available", lambda: True)


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    backend._log_choice.cache_clear()
    yield
    backend._log_choice.cache_clear()


@pytest.mark.usefixtures("engine", "no_triton")
def test_automatic_takes_the_first_that_runs() -> None:
    assert choose("f", None, "cpu", ALL) == "cpu"
    assert choose("f", None, "cpu", ("reference", "cpu")) == "reference"
    assert choose("f", None, "cuda", ALL) == "reference"


@pytest.mark.usefixtures("no_engine", "no_triton")
def test_automatic_without_an_engine_is_the_reference() -> None:
    assert choose("f", None, "cpu", ALL) == "reference"
    with pytest.raises(BackendError, match="f: no backend runs on device 'cpu'"):
        choose("f", None, "cpu", ("triton", "cpu"))


@pytest.mark.usefixtures("engine", "with_triton")
def test_triton_needs_a_gpu_tensor() -> None:
    assert choose("f", "triton", "cuda", ALL) == "triton"
    with pytest.raises(BackendError, match="needs a GPU tensor"):
        choose("f", "triton", "cpu", ALL)


@pytest.mark.usefixtures("engine", "with_triton")
def test_the_interpreter_counts_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("f", "triton", "cpu", ALL) == "triton"


@pytest.mark.usefixtures("no_engine", "with_triton")
def test_triton_is_never_chosen_automatically(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("f", None, "cuda", ALL) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("f", None, "cpu", ALL) == "reference"


@pytest.mark.usefixtures("engine", "with_triton")
def test_a_preferred_backend_is_chosen_where_it_can_run() -> None:
    with backend.preferring("triton"):
        assert choose("f", None, "cuda", ALL) == "triton"
        assert choose("f", None, "cpu", ALL) == "cpu"
        assert choose("f", None, "cuda", ("reference",)) == "reference"
        assert choose("f", "reference", "cuda", ALL) == "reference"
        with backend.preferring("reference"):
            assert choose("f", None, "cpu", ALL) == "reference"
        assert choose("f", None, "cuda", ALL) == "triton"
    assert choose("f", None, "cuda", ALL) == "reference"
    with pytest.raises(BackendError, match="unknown backend 'fpga'"), backend.preferring("fpga"):
        pass
    with pytest.raises(KeyError), backend.preferring("triton"):
        raise KeyError
    assert choose("f", None, "cuda", ALL) == "reference"


@pytest.mark.usefixtures("engine", "no_triton")
def test_explicit_names() -> None:
    assert choose("f", "reference", "cpu", ALL) == "reference"
    assert choose("f", "cpu", "cpu", ALL) == "cpu"


@pytest.mark.usefixtures("engine", "no_triton")
@pytest.mark.parametrize(
    ("name", "device", "supported", "message"),
    [
        ("fpga", "cpu", ALL, "f: unknown backend 'fpga'; choose from"),
        ("cpu", "cpu", ("reference",), "f: no 'cpu' backend; it has 'reference'"),
        ("cpu", "cuda", ALL, "f: backend 'cpu' cannot run on a cuda tensor"),
        ("triton", "cuda", ALL, "f: backend 'triton' needs a GPU tensor and the triton package"),
    ],
)
def test_explicit_names_that_cannot_run(
    name: str, device: str, supported: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        choose("f", name, device, supported)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_engine")
def test_a_missing_engine_names_the_remedy() -> None:
    with pytest.raises(BackendError, match=r"g\+\+ 11 or newer"):
        choose("f", "cpu", "cpu", ALL)


@pytest.mark.usefixtures("no_engine", "no_triton")
def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mpt_fast"):
        for _ in range(3):
            choose("f", None, "cpu", ALL)
        choose("g", None, "cpu", ALL)
        choose("f", "reference", "cpu", ALL)
    assert caplog.messages == ["f on cpu: backend reference", "g on cpu: backend reference"]


def test_triton_door_raises_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="needs the triton package: pip install"):
        backend.triton()
