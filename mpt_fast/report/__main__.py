"""`python -m mpt_fast.report REPORT.json OUT.html|OUT.svg`: page or figure of a finished demo."""

import json
import sys
from pathlib import Path

from mpt_fast.report import demo, write_text

USAGE = "usage: python -m mpt_fast.report REPORT.json OUT.html|OUT.svg"


def main(arguments: list[str]) -> int:
    """Exit status: 0 written, 1 failed, 2 wrong usage."""
    if len(arguments) != 2 or Path(arguments[1]).suffix not in (".html", ".svg"):
        sys.stderr.write(USAGE + "\n")
        return 2
    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        results = demo.Demo.from_json(json.loads(source.read_text(encoding="utf-8")))
        page = target.suffix == ".html"
        write_text(target, demo.document(results).html() if page else demo.figure(results))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
