"""Which processor this is, as far as a timing depends on it."""

from pathlib import Path

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


def processor() -> tuple[str, list[str]]:
    """Its model name (empty where unknown) and the instruction sets of interest it reports.

    On Linux; ("", []) elsewhere.
    """
    return parse(_CPUINFO.read_text() if _CPUINFO.exists() else "")


def parse(cpuinfo: str) -> tuple[str, list[str]]:
    """(model name, instruction sets) from the text of /proc/cpuinfo, of its first processor."""
    fields: dict[str, str] = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    flags = set(f"{fields.get('flags', '')} {fields.get('features', '')}".split())
    return fields.get("model name", ""), [name for name in _SETS if name in flags]
