"""A report as Markdown: the same document, its pictures left out for the tables beside them."""

from __future__ import annotations

from mpt_fast.report.document import (
    Block,
    Code,
    Document,
    Figure,
    Figures,
    Paragraph,
    Section,
    Table,
)

__all__ = ["markdown"]


def markdown(document: Document) -> str:
    """`document` as one Markdown page; ValueError for a block that has no Markdown form."""
    parts = [f"# {document.title}", document.lead]
    for section in document.sections:
        parts += _section(section)
    if document.footer:
        parts.append(f"*{document.footer}*")
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    return [f"## {section.title}", section.lead, *(_block(block) for block in section.blocks)]


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return block.text
        case Code():
            return f"```\n{block.text}\n```"
        case Table():
            return _table(block)
        case Figure():
            return f"*{block.title}: {block.description}*"
        case Figures():
            return "\n\n".join(_block(figure) for figure in block.figures)
    raise ValueError(f"{type(block).__name__} has no Markdown form")


def _table(table: Table) -> str:
    rows = [
        f"| {' | '.join(_cell(cell) for cell in table.header)} |",
        f"|{'---|' * len(table.header)}",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table.rows),
    ]
    caption = [f"{table.caption}:", ""] if table.caption else []
    return "\n".join([*caption, *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
