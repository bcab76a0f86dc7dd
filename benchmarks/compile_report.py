"""Compiles every Triton kernel at every shipped configuration, without a GPU.

`python -m benchmarks.compile_report` compiles ahead of time for sm_80, sm_90, sm_100 and gfx942,
reads registers, spills, shared memory and the tensor-core instruction out of the machine code,
writes `benchmarks/results/compile_report.json` and a Markdown table beside it, and exits with 1
where a check fails:

- no kernel spills registers or takes more shared memory than a block of the target may have;
- the products of convolution and matrix kernels run on tensor cores: on sm_90 they are warpgroup
  instructions (HGMMA, IGMMA) and nothing else, and their operands are copied asynchronously;
- the bit-sliced inner loop loads 128 bits at a time and spends at most 2.5 LOP3 per tap-word;
- the popcount inner loop spends one POPC per word.

A kernel whose loop is not found fails its check: nothing passes by being overlooked. With
`--operation` or `--target` the report keeps its other rows of the same Triton, so that it can be
made in parts; it is written after every operation.
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
TENSOR_CORE = re.compile(r"\b(HGMMA|IGMMA|QGMMA|UTC\w*MMA|HMMA|IMMA|v_mfma_\w+)")
WARPGROUP = {"HGMMA", "IGMMA", "QGMMA"}
# Most shared memory of a block: 163, 227 and 227 KiB after what the system takes; 64 KiB of LDS.
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
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
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": case.fp_fusion,
        **case.registers.options(major_capability(target)),
    }
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def major_capability(target: str) -> int | None:
    """Major compute capability of a target; None for AMD's."""
    backend, architecture, _ = TARGETS[target]
    return int(architecture) // 10 if backend == "cuda" else None


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
    counts, failures = loop_counts(case, target, text)
    if spills:
        failures.append(f"{spills} spills")
    shared = compiled.metadata.shared
    if shared > SHARED_LIMIT[target]:
        failures.append(f"{shared} bytes of shared memory, a block may have {SHARED_LIMIT[target]}")
    if case.tensor_core:
        failures += product_failures(case, target, found, text, counts)
    return Row(
        operation,
        case.kernel.fn.__name__,
        case.name,
        target,
        registers,
        spills,
        shared,
        " ".join(found),
        counts,
        tuple(failures),
    )


def product_failures(
    case: Any, target: str, found: Sequence[str], text: str, counts: dict[str, float]
) -> list[str]:
    """What is wrong with a tensor-core product; adds its asynchronous copies to `counts`."""
    failures = [] if found else ["no tensor-core instruction"]
    if target == "sm_90" and not (found and WARPGROUP.issuperset(found)):
        failures.append(f"not only warpgroup products on sm_90: {' '.join(found) or 'none'}")
    if target != "gfx942":
        counts["async_copies"] = len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", text))
        if case.asynchronous and not counts["async_copies"]:
            failures.append("operands are not copied asynchronously")
    return failures


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


def loop_counts(case: Any, target: str, text: str) -> tuple[dict[str, float], list[str]]:
    """Instructions per word of the inner loops that `case.checks` speaks of."""
    counts: dict[str, float] = {}
    failures: list[str] = []
    if target == "gfx942":
        if "popcount" in case.checks and "v_bcnt_u32_b32" not in text:
            failures.append("no v_bcnt")
        return counts, failures
    inner = [opcodes(loop) for loop in loops(text)] if case.checks else []
    if "bitsliced" in case.checks:
        words = case.checks["bitsliced"]
        adders = [loop for loop in inner if loop["LOP3"] > 16 and loop["LDG"]]
        if len(adders) != 2:
            failures.append(f"{len(adders)} adder loops, expected positive and negative taps")
        worst = max((loop["LOP3"] / words for loop in adders), default=0.0)
        counts["lop3_per_tap_word"] = worst
        if worst > LOP3_LIMIT:
            failures.append(f"{worst:.2f} LOP3 per tap-word")
        failures += [
            f"{loop['LDG.128']} LDG.128 for {words} words"
            for loop in adders
            if loop["LDG.128"] * 4 < words
        ]
    if "popcount" in case.checks:
        words = case.checks["popcount"]
        loop = max(inner, key=lambda found: found["POPC"] * found["LOP3"], default=Counter())
        # The compiler may unroll the loop; its loads tell how many turns there are.
        turns = loop["LDG"] // case.checks["loads"]
        counts["popc_per_word"] = loop["POPC"] / max(1, turns * words)
        counts["lop3_per_word"] = loop["LOP3"] / max(1, turns * words)
        if not turns or loop["POPC"] != turns * words:
            failures.append(f"{loop['POPC']} POPC in {turns} turns of {words} words")
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

    versions = {"triton": triton.__version__}
    targets = chosen.target or list(TARGETS)
    compiled, failed = 0, 0
    for operation in chosen.operation or operations():
        rows = []
        for _, case in cases([operation]):
            for target in targets:
                rows.append(inspect(operation, case, target))
                failed += bool(rows[-1].failures)
                print(_line(rows[-1]), flush=True)
        compiled += len(rows)
        others = [
            row
            for row in read(chosen.output, versions)
            if row.operation in operations()
            and (row.operation != operation or row.target not in targets)
        ]
        write(chosen.output, [*others, *rows], versions)
    print(f"{compiled} compiled, {failed} with failed checks")
    return 1 if failed else 0


def _line(row: Row) -> str:
    return (
        f"{row.kernel} [{row.configuration}] {row.target}: {row.registers} registers, "
        f"{row.spills} spills, {row.shared_bytes} B shared {row.tensor_core} "
        f"{row.counts or ''} {'; '.join(row.failures) or 'ok'}"
    )


def read(folder: Path, versions: dict[str, str]) -> list[Row]:
    """The rows of the report in `folder`; none where another Triton made them."""
    path = folder / "compile_report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("versions") != versions:
        return []
    return [Row(**{**row, "failures": tuple(row["failures"])}) for row in report["rows"]]


def write(folder: Path, rows: Sequence[Row], versions: dict[str, str]) -> None:
    """Both files, sorted by operation, then as the operation lists its cases, then by target."""
    order = list(TARGETS)
    places: dict[tuple[str, str, str], int] = {}
    for row in rows:
        places.setdefault((row.operation, row.kernel, row.configuration), len(places))
    ordered = sorted(
        rows,
        key=lambda row: (
            row.operation,
            places[row.operation, row.kernel, row.configuration],
            order.index(row.target),
        ),
    )
    folder.mkdir(parents=True, exist_ok=True)
    report = {"versions": versions, "rows": [dataclasses.asdict(row) for row in ordered]}
    for name, text in (
        ("compile_report.json", json.dumps(report, indent=1) + "\n"),
        ("compile_report.md", markdown(ordered, versions)),
    ):
        beside = folder / f"{name}.part"
        beside.write_text(text)
        beside.replace(folder / name)


if __name__ == "__main__":
    sys.exit(main())
