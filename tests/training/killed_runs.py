"""Starts runs and kills each with SIGKILL at a chosen point: a script, run by test_resume.py.

Argument: JSON list of jobs {"folder", "point", "recipe", "resume", "steps"}. Each runs in a fork of
this process, which has imported everything and trained nothing; the exit status of each is
printed as JSON.

Points, N counting from 1 within the process: "step:N" after N steps; "evaluate:N" before the Nth
evaluation; "metrics:N" with half of the Nth row written; "partial:N", "renaming:N", "renamed:N" in
the Nth file written atomically: half written, whole but not yet renamed, just renamed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mpt_fast import data
from mpt_fast.training import Recipe, Trainer, checkpoint, metrics, train, trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(limit: int, action: Callable[..., None]) -> Callable[..., None]:
    """A function that does `action` with its arguments at call number `limit`."""
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            action(*args)

    return count


def arm(point: str) -> None:
    kind, number = point.split(":")
    limit = int(number)
    if kind == "step":
        take_step, reached = Trainer._step, counted(limit, die)

        def step(self: Trainer, *args: Any) -> float | None:
            value = take_step(self, *args)
            reached()
            return value

        Trainer._step = step  # type: ignore[method-assign, assignment]  # this process dies soon
    elif kind == "evaluate":
        measure, reached = trainer.run_evaluation, counted(limit, die)

        def evaluation(*args: Any) -> Any:
            reached()
            return measure(*args)

        trainer.run_evaluation = evaluation  # type: ignore[assignment]  # as above
    elif kind == "metrics":
        append = metrics.MetricsLog._append

        def half(self: metrics.MetricsLog, content: dict[str, str], mode: str) -> None:
            append(self, {k: v[: len(v) // 2] for k, v in content.items()}, mode)
            die()

        reached = counted(limit + 1, half)  # the first call writes the heads of the files

        def halved(self: metrics.MetricsLog, content: dict[str, str], mode: str) -> None:
            reached(self, content, mode)
            append(self, content, mode)

        metrics.MetricsLog._append = halved  # type: ignore[method-assign, assignment]  # as above
    else:
        replace = os.replace

        def truncate(source: Path, _: Path) -> None:
            os.truncate(source, source.stat().st_size // 2)
            die()

        def renamed(source: Path, target: Path) -> None:
            replace(source, target)
            die()

        actions = {"partial": truncate, "renaming": lambda *_: die(), "renamed": renamed}
        reached = counted(limit, actions[kind])

        def watched(source: Path, target: Path) -> None:
            reached(source, target)
            replace(source, target)

        checkpoint.os.replace = watched  # type: ignore[assignment]  # as above


def prepare(recipe: Recipe) -> None:
    """Import what a run imports late, so that the forks need not, each for itself."""
    dataset = data.load(recipe.data)
    model = recipe.build(dataset.image_shape, dataset.num_classes)
    with torch.no_grad():
        model(dataset.normalize(dataset.train.batch(range(2))))


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(sys.argv[1])
    prepare(Recipe.from_dict(jobs[0]["recipe"]))
    statuses = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            arm(job["point"])
            train(
                Recipe.from_dict(job["recipe"]),
                job["folder"],
                job["resume"],
                device="cpu",
                quiet=True,
                checkpoint_steps=job["steps"],
            )
            os._exit(0)
        statuses.append(os.waitpid(child, 0)[1])
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main()
