"""machine(): what it says, and what it must never say."""

import getpass
import json
import socket
from pathlib import Path

import torch

from mpt_fast.measure import machine
from mpt_fast.runtime.processor import parse

X86 = """processor\t: 0
model name\t: Some CPU 9000 @ 3.00GHz
flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512bw avx512_vpopcntdq avx512_bitalg

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd asimddp sve
CPU part\t: 0xd40
"""


def test_x86parse() -> None:
    name, flags = parse(X86)
    assert name == "Some CPU 9000 @ 3.00GHz"
    assert flags == [
        "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_bitalg", "avx512_vpopcntdq",
    ]  # fmt: skip


def test_armparse() -> None:
    assert parse(ARM) == ("", ["asimd", "asimddp", "sve"])


def test_no_cpuinfo() -> None:
    assert parse("") == ("", [])


def test_facts() -> None:
    facts = machine()
    assert {"cpu", "cores", "threads", "instruction_sets", "os", "python"} <= set(facts)
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["torch"] == torch.__version__
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert machine()["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_nothing_private() -> None:
    values = [str(value) for value in machine().values()]
    assert socket.gethostname() not in values
    assert getpass.getuser() not in values
    assert str(Path.home()) not in json.dumps(machine())
    assert not torch.cuda.is_initialized()
