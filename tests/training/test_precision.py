"""What a run's precision, threads and determinism come to."""

from pathlib import Path

import pytest
import torch

from mpt_fast.training import RecipeError, precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", "bf16"),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", "bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", "bf16"),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: avx512_bf16\n", "none"),
        ("model name\t: avx512_bf16\n", "none"),
        ("", "none"),
    ],
)
def test_auto_is_bf16_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(precision, "_CPU_INFO", path)
    assert precision.resolve_amp("auto", CPU) == expected
    assert precision.resolve_amp("none", CPU) == "none"
    assert precision.resolve_amp("bf16", CPU) == "bf16"


def test_auto_is_float32_where_the_system_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "gone")
    assert precision.resolve_amp("auto", CPU) == "none"


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(RecipeError, match="fp16 needs a CUDA device; use bf16, none or auto"):
        precision.resolve_amp("fp16", CPU)


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_it(amp: str, dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(3, 2)
    with precision.autocast(amp, CPU):
        assert linear(torch.ones(1, 3)).dtype == dtype


def test_computing_puts_back_what_it_set() -> None:
    torch.set_num_threads(1)

    def fail() -> None:
        with precision.computing(2, True, CPU):
            assert torch.get_num_threads() == 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
