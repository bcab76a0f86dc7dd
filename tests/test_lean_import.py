"""What importing costs: no torch until a torch name is touched, and never a CUDA context."""

import subprocess
import sys

import pytest

import mpt_fast


def run(code: str) -> str:
    """stdout of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "touch",
    [
        "import mpt_fast",
        "import mpt_fast; mpt_fast.TicketConfig(sparsity=0.9)",
        "import mpt_fast; dir(mpt_fast)",
        "import mpt_fast.kernels.cpu as cpu; cpu.available()",
    ],
)
def test_no_torch(touch: str) -> None:
    heavy = "[m for m in ('torch', 'numpy', 'matplotlib', 'triton') if m in sys.modules]"
    assert run(f"{touch}; import sys; print({heavy})") == "[]"


def test_torch_names_import_torch_but_no_triton_kernel_and_no_cuda() -> None:
    """The first custom op imports torch._dynamo, and that the triton package, but no kernel."""
    code = (
        "import sys, mpt_fast; mpt_fast.MPTConv2d(1, 1, 1); mpt_fast.functional.select_topk; "
        "mpt_fast.convert; import torch; "
        "kernels = [m for m in sys.modules if m.startswith('mpt_fast') and m.endswith('.triton')]; "
        "print(kernels, torch.cuda.is_initialized())"
    )
    assert run(code) == "[] False"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'mpt_fast' has no attribute 'prune'"):
        getattr(mpt_fast, "prune")  # noqa: B009 - looking the name up is the test
