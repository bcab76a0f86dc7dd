"""A report as data: blocks in sections in a document, rendered to one self-contained HTML page.

Blocks are small frozen dataclasses with an `html()` method; a new study adds sections made of the
same blocks. The page needs no network, no script and no second file, follows the reader's light
or dark setting, and is laid out for a phone first.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Protocol

_TIES = re.compile(r" (?=[±%=])|(?<=[±=]) ")


def _tied(text: str) -> str:
    """Escaped text in which a number keeps its unit, its spread and its name on one line."""
    return _TIES.sub("&nbsp;", escape(text))


class Block(Protocol):
    """Anything that can stand in a section."""

    def html(self) -> str:
        """The block's markup; all text in it is escaped."""


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str

    def html(self) -> str:
        return f"<p>{_tied(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Commands or source, shown as typed."""

    text: str

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Tile:
    """One headline number with the words that say what it is."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A row of headline numbers."""

    tiles: Sequence[Tile]

    def html(self) -> str:
        return f'<div class="tiles">{"".join(self._tile(tile) for tile in self.tiles)}</div>'

    @staticmethod
    def _tile(tile: Tile) -> str:
        note = f"<small>{escape(tile.note)}</small>" if tile.note else ""
        return (
            f'<div class="tile"><strong>{escape(tile.value)}</strong>'
            f"<span>{escape(tile.label)}</span>{note}</div>"
        )


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    `strong` lists rows to set in bold, `left` columns of words, which are set to the left as the
    first is; numbers stand to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: frozenset[int] = frozenset()
    left: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table row {list(row)!r} has {len(row)} cells for {len(self.header)} columns; "
                    "give one cell per column"
                )

    def html(self) -> str:
        caption = f"<caption>{_tied(self.caption)}</caption>" if self.caption else ""
        head = "".join(
            f'<th scope="col"{self._side(column)}>{escape(cell)}</th>'
            for column, cell in enumerate(self.header)
        )
        body = "".join(self._row(index, row) for index, row in enumerate(self.rows))
        return (
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _row(self, index: int, row: Sequence[str]) -> str:
        mark = ' class="strong"' if index in self.strong else ""
        cells = "".join(
            f"<td{self._side(column)}>{self._cell(cell)}</td>"
            for column, cell in enumerate(row)
            if column
        )
        return f'<tr{mark}><th scope="row">{_tied(row[0])}</th>{cells}</tr>'

    def _side(self, column: int) -> str:
        return ' class="left"' if column in self.left else ""

    @staticmethod
    def _cell(text: str) -> str:
        """Long cells may fold, a number and its unit may not."""
        return _tied(text) if len(text) > 12 else escape(text).replace(" ", "&nbsp;")


@dataclass(frozen=True)
class Figure:
    """A plot: `svg` is trusted markup from `mpt_fast.report.plots`, everything else is text.

    `description` says in words what the picture shows, for those who cannot see it.
    """

    title: str
    svg: str
    description: str
    caption: str = ""

    def html(self) -> str:
        caption = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        return (
            f'<figure><h3>{escape(self.title)}</h3><div class="plot" role="img" '
            f'aria-label="{escape(self.description, quote=True)}">{self.svg}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Figures:
    """Plots side by side where the page is wide enough, below each other where it is not."""

    figures: Sequence[Figure]

    def html(self) -> str:
        return f'<div class="figures">{"".join(figure.html() for figure in self.figures)}</div>'


@dataclass(frozen=True)
class Picture:
    """One small image of a gallery: a data URI, a line below it, and whether it is marked wrong."""

    uri: str
    label: str
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """Small images with a line each."""

    pictures: Sequence[Picture]

    def html(self) -> str:
        return f'<div class="gallery">{"".join(self._picture(p) for p in self.pictures)}</div>'

    @staticmethod
    def _picture(picture: Picture) -> str:
        mark = ' class="wrong"' if picture.wrong else ""
        uri, label = escape(picture.uri, quote=True), escape(picture.label)
        return f'<div{mark}><img src="{uri}" alt=""><span>{label}</span></div>'


@dataclass(frozen=True)
class Section:
    """A heading and its blocks; `lead` is the sentence that says what the section shows."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""

    def html(self) -> str:
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        body = "\n".join(block.html() for block in self.blocks)
        return f"<section><h2>{escape(self.title)}</h2>{lead}\n{body}</section>"


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""

    def html(self) -> str:
        """The complete page, UTF-8 text."""
        template = files("mpt_fast.report").joinpath("template.html").read_text(encoding="utf-8")
        return Template(template).substitute(
            title=escape(self.title),
            lead=escape(self.lead),
            body="\n".join(section.html() for section in self.sections),
            footer=escape(self.footer),
        )


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` as UTF-8, whole or not at all; makes the folder when it is missing.

    Raises OSError when the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        # mkstemp makes files private; a report has the permissions any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
