"""Compiles every Triton kernel at every shipped configuration, without a GPU.

`python -m benchmarks.compile_report` compiles ahead of time for sm_80, sm_90, sm_100 and gfx942,
reads registers, spills, shared memory and the tensor-core instruction out of the machine code,
writes `benchmarks/results/compile_report.json` and a Markdown table beside it, and exits with 1
where a check fails:

- no kernel spills registers;
- on sm_90 the products of convolution and matrix kernels are HGMMA;
- the bit-sliced inner loop loads 128 bits at a time and spends at most 2.5 LOP3 per tap-word;
- the popcount inner loop spends one POPC per word.
"""

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
TENSOR_CORE = re.compile(r"\b(HGMMA|UTC\w*MMA|HMMA|IMMA|QGMMA|v_mfma_\w+)")
LOP3_LIMIT = 2.5


@dataclasses.dataclass(frozen=True)
class Row:
    """What one kernel at one configuration became on one target."""

    operation: str
    kernel: str
    configuration: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    tensor_core: str
    counts: dict[str, float]
    failures: tuple[str, ...]


def operations() -> list[str]:
    """Folders of kernels/ that have Triton kernels."""
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/triton.py"))


def cases(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(operation, CompileCase) of the named operations."""
    for name in names:
        module = importlib.import_module(f"mpt_fast.kernels.{name}.triton")
        for case in module.compile_cases():
            yield name, case


def compile_case(case: Any, target: str) -> Any:
    """The compiled kernel; raises whatever Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    aligned = [
        (names.index(name),)
        for name, kind in case.signature.items()
        if (kind.startswith("*") and name not in case.unaligned) or name in case.multiples
    ]
    source = ASTSource(
        case.kernel, signature, constants, {place: [["tt.divisibility", 16]] for place in aligned}
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def inspect(operation: str, case: Any, target: str) -> Row:
    """Compile and read the machine code."""
    compiled = compile_case(case, target)
    if target == "gfx942":
        text = compiled.asm["amdgcn"]
        registers = _field(text, r"\.vgpr_count:\s+(\d+)")
        spills = _field(text, r"\.vgpr_spill_count:\s+(\d+)")
    else:
        usage = _tool("cuobjdump", ["-res-usage"], compiled.asm["cubin"])
        text = _tool("nvdisasm", ["-c"], compiled.asm["cubin"])
        registers = _field(usage, r"REG:(\d+)")
        # Local memory that is not a stack array is spilled registers.
        spills = len(re.findall(r"\b(?:STL|LDL)\b", text))
    found = sorted(set(TENSOR_CORE.findall(text)))
    counts, failures = _loop_counts(case, target, text)
    if spills:
        failures.append(f"{spills} spills")
    if case.tensor_core and not found:
        failures.append("no tensor-core instruction")
    if case.tensor_core and target == "sm_90" and "HGMMA" not in found:
        failures.append(f"no HGMMA on sm_90, found {found}")
    return Row(
        operation,
        case.kernel.fn.__name__,
        case.name,
        target,
        registers,
        spills,
        compiled.metadata.shared,
        " ".join(found),
        counts,
        tuple(failures),
    )


def _field(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"compile_report: {pattern!r} is not in the tool's output")
    return int(match.group(1))


def _tool(name: str, arguments: list[str], cubin: bytes) -> str:
    """Output of one of the binary tools that come with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), *arguments, file.name], capture_output=True, text=True, check=True
        )
    return done.stdout


def loops(sass: str) -> list[list[str]]:
    """The instructions of every innermost loop of an nvdisasm listing."""
    lines = sass.splitlines()
    labels = {line.strip().rstrip(":"): i for i, line in enumerate(lines) if _is_label(line)}
    spans = []
    for position, line in enumerate(lines):
        jump = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", line)
        if jump and labels.get(jump.group(1), position) < position:
            spans.append((labels[jump.group(1)], position))
    innermost = [
        (a, b)
        for a, b in spans
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)
    ]
    return [
        [line for line in lines[start : stop + 1] if re.search(r"/\*[0-9a-f]{4,}\*/", line)]
        for start, stop in innermost
    ]


def _is_label(line: str) -> bool:
    return re.fullmatch(r"\.L_x_\d+:", line.strip()) is not None


def opcodes(instructions: Sequence[str]) -> Counter[str]:
    """How often each opcode stands in a list of SASS lines; LDG with its width."""
    counter: Counter[str] = Counter()
    for line in instructions:
        match = re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)", line)
        if match:
            counter[match.group(1)] += 1
            if match.group(1) == "LDG" and ".128" in match.group(2):
                counter["LDG.128"] += 1
    return counter


def _loop_counts(case: Any, target: str, text: str) -> tuple[dict[str, float], list[str]]:
    """Instructions per word of the inner loops that `case.checks` speaks of, on NVIDIA.

    checks: "bitsliced": tap-words of one thread in one turn of the adder loop; "popcount":
    whether there is a popcount loop.
    """
    counts: dict[str, float] = {}
    failures: list[str] = []
    if target == "gfx942" or not case.checks:
        return counts, failures
    inner = [opcodes(loop) for loop in loops(text)]
    if "bitsliced" in case.checks:
        adders = [loop for loop in inner if loop["LOP3"] > 16 and loop["LDG"]]
        if not adders:
            failures.append("no adder loop found")
        for loop in adders:
            words = case.checks["bitsliced"]
            counts["lop3_per_tap_word"] = max(
                counts.get("lop3_per_tap_word", 0.0), loop["LOP3"] / words
            )
            if loop["LDG.128"] * 4 < words:
                failures.append(f"{loop['LDG.128']} LDG.128 for {words} words")
        if counts.get("lop3_per_tap_word", 0.0) > LOP3_LIMIT:
            failures.append(f"{counts['lop3_per_tap_word']:.2f} LOP3 per tap-word")
    if "popcount" in case.checks:
        loop = max(inner, key=lambda found: found["POPC"], default=Counter())
        # The compiler may unroll the loop: the words of a turn are what it loads.
        words = 4 * loop["LDG.128"]
        counts["popc_per_word"] = loop["POPC"] / max(1, words)
        counts["lop3_per_word"] = loop["LOP3"] / max(1, words)
        if not words or loop["POPC"] != words:
            failures.append(f"{loop['POPC']} POPC for {words} words in 128-bit loads")
    return counts, failures


def markdown(rows: Sequence[Row], versions: dict[str, str]) -> str:
    """The table, one line for each kernel, configuration and target."""
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"Triton {versions['triton']}. Nothing here was run on a GPU.",
        "",
        "| operation | kernel | configuration | target | registers | spills | shared bytes "
        "| tensor core | inner loop | check |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loop = ", ".join(f"{name} {value:.2f}" for name, value in row.counts.items())
        verdict = "; ".join(row.failures) or "ok"
        lines.append(
            f"| {row.operation} | {row.kernel} | {row.configuration} | {row.target} "
            f"| {row.registers} | {row.spills} | {row.shared_bytes} | {row.tensor_core} "
            f"| {loop} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_report", description=__doc__
    )
    parser.add_argument("--operation", action="append", choices=operations(), help="only these")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only these")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the two files")
    chosen = parser.parse_args(arguments)

    import triton

    rows, failed = [], 0
    for operation, case in cases(chosen.operation or operations()):
        for target in chosen.target or TARGETS:
            row = inspect(operation, case, target)
            rows.append(row)
            failed += bool(row.failures)
            print(
                f"{row.kernel} [{row.configuration}] {target}: {row.registers} registers, "
                f"{row.spills} spills, {row.shared_bytes} B shared {row.tensor_core} "
                f"{row.counts or ''} {'; '.join(row.failures) or 'ok'}",
                flush=True,
            )
    versions = {"triton": triton.__version__}
    chosen.output.mkdir(parents=True, exist_ok=True)
    report = {"versions": versions, "rows": [dataclasses.asdict(row) for row in rows]}
    (chosen.output / "compile_report.json").write_text(json.dumps(report, indent=1) + "\n")
    (chosen.output / "compile_report.md").write_text(markdown(rows, versions))
    print(f"{len(rows)} compiled, {failed} with failed checks")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
