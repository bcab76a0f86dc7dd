"""What the machine is, as far as a timing depends on it."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpt_fast

_CPUINFO = Path("/proc/cpuinfo")
_SETS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "sve",
    "sve2",
)


def machine() -> dict[str, Any]:
    """The processor and the versions behind a timing; neither host nor user nor path.

    cpu: model name; cores: those this process may use; threads: torch's; instruction_sets: those
    of interest that the processor reports (on Linux; empty elsewhere); os, python, torch, numpy,
    mpt_fast; gpu: its name, only where CUDA is in use already.
    """
    name, flags = _processor(_CPUINFO.read_text() if _CPUINFO.exists() else "")
    facts: dict[str, Any] = {
        "cpu": name or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": flags,
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mpt_fast": mpt_fast.__version__,
    }
    if torch.cuda.is_initialized():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor(cpuinfo: str) -> tuple[str, list[str]]:
    """(model name, instruction sets) from the text of /proc/cpuinfo, of its first processor."""
    fields: dict[str, str] = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    flags = set(f"{fields.get('flags', '')} {fields.get('features', '')}".split())
    return fields.get("model name", ""), [name for name in _SETS if name in flags]
