"""Reports: data in, one self-contained HTML page or SVG figure out.

`document` holds the blocks a page is made of, `plots` the pictures, `demo` the page of
`mpt-fast demo`, `studies` that of `mpt-fast report`, read from the studies' results. Nothing here
trains or measures; only `write_text` writes.
"""

from mpt_fast.report.document import (
    Block,
    Code,
    Document,
    Figure,
    Figures,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Table,
    Tile,
    Tiles,
    write_text,
)

__all__ = [
    "Block",
    "Code",
    "Document",
    "Figure",
    "Figures",
    "Gallery",
    "Paragraph",
    "Picture",
    "Section",
    "Table",
    "Tile",
    "Tiles",
    "write_text",
]
