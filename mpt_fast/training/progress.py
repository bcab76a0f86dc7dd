"""What a person sees of a run: a bar for the steps and one line per epoch, on standard error."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

__all__ = ["RunProgress"]


class RunProgress:
    """A context that shows a run's progress; shows nothing if `quiet`."""

    def __init__(self, title: str, total: int, done: int, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task(title, total=total, completed=done, loss="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, loss: float | None) -> None:
        """One step more; `loss` is shown where it is known."""
        if loss is None:
            self._bar.advance(self._task)
        else:
            self._bar.update(self._task, advance=1, loss=f"loss {loss:.3f}")

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """The line of a finished epoch."""
        if self._quiet:
            return
        self._console.print(
            f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.2%}  test {row['test_accuracy']:.2%}  "
            f"{row['images_per_second']:.0f} images/s",
            highlight=False,
        )
