"""Runs declared studies.

    python -m benchmarks.studies                          # what there is and what is still to do
    python -m benchmarks.studies figure1 [--seconds 240]  # run it, or go on with it
    python -m benchmarks.studies all

Fashion-MNIST is the default; `--set data=cifar10 --set train_images=0 --data-root FOLDER` changes
the base of a study and writes `results/NAME-cifar10.json` beside it (see --suffix).
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from benchmarks.studies.kinds import KINDS
from benchmarks.studies.study import Results, Study, names


def main(arguments: list[str]) -> int:
    """Exit status: 0 everything done, 3 the time was up before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("studies", nargs="*", help="names, or all")
    parser.add_argument("--seconds", type=float, help="start no run after so long")
    parser.add_argument("--scratch", type=Path, default=Path("runs/studies"), help="for runs")
    parser.add_argument("--data-root", type=Path, help="folder of the data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--suffix", default="", help="of the results' name, with --set")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.studies:
        return _list()
    end = time.monotonic() + (options.seconds or float("inf"))
    chosen = names() if options.studies == ["all"] else options.studies
    unfinished = False
    for name in chosen:
        study = _changed(Study.load(name), options.changes, options.suffix)
        command = f"python -m benchmarks.studies {' '.join([name, *_flags(options)])}"
        scratch = options.scratch / study.name
        unfinished |= not _run(study, command, scratch, options.data_root, end)
    return 3 if unfinished else 0


def _run(study: Study, command: str, scratch: Path, data_root: Path | None, end: float) -> bool:
    results = Results(study, command)
    missing = results.missing()
    for number, settings in enumerate(missing, 1):
        if time.monotonic() >= end:
            return False
        result = KINDS[study.kind](study, settings, scratch, data_root)
        results.add(settings, result)
        said = f"{result['accuracy']:.4f}" if "accuracy" in result else "timed"
        said = result.get("diverged", said)
        sys.stdout.write(f"{study.name} {number}/{len(missing)} {settings} {said}\n")
        sys.stdout.flush()
    return True


def _list() -> int:
    for name in names():
        study = Study.load(name)
        missing = len(Results(study, "").missing())
        planned = len(list(study.settings()))
        sys.stdout.write(f"{name}: {planned - missing} of {planned} runs; {study.title}\n")
    return 0


def _changed(study: Study, changes: list[str], suffix: str) -> Study:
    if not changes:
        return study
    base = {**study.base, **{k: yaml.safe_load(v) for k, v in (c.split("=", 1) for c in changes)}}
    name = f"{study.name}-{suffix or base['data']}"
    return replace(study, name=name, base=base, declared={**study.declared, "base": base})


def _flags(options: argparse.Namespace) -> list[str]:
    flags = [f"--set {change}" for change in options.changes]
    flags += [f"--suffix {options.suffix}"] if options.suffix else []
    return flags + ([f"--threads {options.threads}"] if options.threads != 1 else [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
