"""What a command prints: tables for people, one JSON object for machines, one line per error.

Results go to standard output, progress and notes to standard error.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


@dataclass
class Output:
    """Where a command's words go. `json` and `debug` are set by the options of those names."""

    json: bool = False
    debug: bool = False

    def result(self, data: Mapping[str, Any], *renderables: Any) -> None:
        """The command's answer: `data` with --json, otherwise the renderables, in order."""
        if self.json:
            sys.stdout.write(json.dumps(_plain(data), indent=2, allow_nan=False) + "\n")
            return
        for renderable in renderables:
            self.console().print(renderable)

    def say(self, text: str) -> None:
        """A line of the story on standard output; silent with --json."""
        if not self.json:
            self.console().print(text, markup=False)

    def note(self, text: str) -> None:
        """One line beside the result, on standard error."""
        self.console(stderr=True).print(f"note: {text}", markup=False, style="yellow")

    def console(self, stderr: bool = False) -> Console:
        """A rich console on the current stream. Wide when piped, so that no line is folded."""
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        width = None if stream.isatty() else 200
        return Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), width=width)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """A moving bar with `text` while the block runs, for work whose length is unknown."""
        with self.progress() as display:
            display.add_task(text, total=None)
            yield

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress display on standard error; draws nothing where that is not a terminal."""
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ) as display:
            yield display


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    strong: frozenset[int] = frozenset(),
    left: Collection[int] = (0,),
) -> Table:
    """A rich table: columns `left` to the left, the others to the right, `strong` rows in bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title or None,
        box=SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        show_header=any(header),
    )
    for index, name in enumerate(header):
        made.add_column(name, justify="left" if index in left else "right", no_wrap=index > 0)
    for index, row in enumerate(rows):
        made.add_row(*(Text(cell) for cell in row), style="bold" if index in strong else None)
    return made


def one_line(error: BaseException) -> str:
    """The error's message on one line; its kind in front where the message alone says little."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror}{place}"
    if isinstance(error, KeyError):
        message = f"missing entry {message}"
    if isinstance(error, (ValueError, TypeError, RuntimeError, OSError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def fail(text: str) -> None:
    """One `error:` line on standard error."""
    sys.stderr.write(f"error: {text}\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no NumPy: numbers become Python's, non-finite ones null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
