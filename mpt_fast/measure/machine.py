"""What the machine is, as far as a timing depends on it."""

import os
import platform
from typing import Any

import numpy as np
import torch

import mpt_fast
from mpt_fast.runtime.processor import processor


def machine() -> dict[str, Any]:
    """The processor and the versions behind a timing; neither host nor user nor path.

    cpu: model name; cores: those this process may use; threads: torch's; instruction_sets: those
    of interest that the processor reports (on Linux; empty elsewhere); os, python, torch, numpy,
    mpt_fast; gpu: its name, only where CUDA is in use already.
    """
    name, flags = processor()
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
