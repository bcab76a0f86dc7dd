"""`python -m benchmarks.gpu.merge TABLE...`: one cost table of several, the later figure wins.

All must be of one device and Triton version. The result is for MPT_FAST_COST_TABLE, see
`mpt_fast.kernels.costs`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mpt_fast.kernels import costs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.merge", description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+", help="files of python -m benchmarks.gpu")
    parser.add_argument("--output", type=Path, required=True, help="file of the joined table")
    chosen = parser.parse_args(arguments)
    try:
        merged = costs.merged([json.loads(path.read_text()) for path in chosen.tables])
    except (OSError, ValueError) as error:
        print(f"cannot merge: {error}", file=sys.stderr)
        return 1
    beside = chosen.output.with_name(chosen.output.name + ".part")
    beside.write_text(json.dumps(merged, indent=1) + "\n")
    beside.replace(chosen.output)
    print(f"wrote {chosen.output}: {len(merged['cases'])} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
