"""The engine is the one its sources describe: a stale build says so; test builds add up."""

import shutil
from pathlib import Path

import pytest

from mpt_fast.kernels import cpu
from mpt_fast.kernels.cpu.build import source_digest

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "kernels"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The C++ sources as in a development checkout."""
    (tmp_path / "setup.py").touch()
    for path in [*KERNELS.rglob("*.cpp"), *KERNELS.rglob("*.h")]:
        target = tmp_path / "kernels" / path.relative_to(KERNELS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "kernels"


@pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
def test_the_engine_under_test_is_built_from_these_sources() -> None:
    assert cpu.engine().source_digest == source_digest(KERNELS)


def test_digest_sees_names_and_contents_of_sources_only(checkout: Path) -> None:
    first = source_digest(checkout)
    assert first == source_digest(KERNELS)
    (checkout / "cpu" / "notes.txt").write_text("no source")
    assert source_digest(checkout) == first
    header = checkout / "cpu" / "lanes.h"
    text = header.read_text()
    header.write_text(text + "\n")
    changed = source_digest(checkout)
    assert changed != first
    header.write_text(text)
    assert source_digest(checkout) == first
    header.rename(header.with_name("other.h"))
    assert source_digest(checkout) not in (first, changed)


def test_a_stale_engine_is_one_clear_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = source_digest(checkout)
    assert not cpu._is_stale(checkout, built)
    (checkout / "cpu" / "step.h").write_text("// pulled\n")
    cpu._is_stale.cache_clear()
    assert cpu._is_stale(checkout, built)
    (checkout.parent / "setup.py").unlink()  # an installed package: its sources are documentation
    cpu._is_stale.cache_clear()
    assert not cpu._is_stale(checkout, built)
    if cpu.available():
        monkeypatch.setattr(cpu, "_is_stale", lambda *_: True)
        with pytest.raises(cpu.EngineStale, match="rebuild it: python setup") as error:
            cpu.engine()
        assert "\n" not in str(error.value)
