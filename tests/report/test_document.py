"""Blocks, the page they make, and writing it whole."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from mpt_fast import report
from mpt_fast.report import plots

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a page refers to, its ids and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"tags left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href") and value is not None:
                self.links.append(value)
            if name == "id" and value is not None:
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


NASTY = '<script>alert("1")</script> & $title'


def page_of_everything() -> report.Document:
    bar = plots.bars([plots.Bar("a < b", 2.0, "2 & more", "binary", (1.5, 2.5))], "x")
    line = plots.lines([plots.Line("a", [1, 2], [0.5, 0.7], "float")], "epoch", "", percent=True)
    return report.Document(
        NASTY,
        NASTY,
        [
            report.Section(
                NASTY,
                [
                    report.Paragraph(NASTY),
                    report.Code(NASTY),
                    report.Tiles([report.Tile(NASTY, NASTY, NASTY)]),
                    report.Table([NASTY, "b"], [["r", NASTY]], NASTY, frozenset({0})),
                    report.Figures([report.Figure(NASTY, bar, NASTY, NASTY)]),
                    report.Figure("again", line, 'a "quoted" picture'),
                    report.Gallery([report.Picture("data:image/png;base64,AA==", NASTY, True)]),
                ],
                lead=NASTY,
            )
        ],
        footer=NASTY,
    )


def test_page_is_well_formed_and_escapes_all_text() -> None:
    html = page_of_everything().html()
    page = Page(html)
    assert "script" not in page.tags
    # Document 4 (its title stands twice), section 2, paragraph 1, code 1, tile 3, table 3,
    # figure 2 (its description is an attribute), gallery 1.
    assert "".join(page.words).count(NASTY) == 17
    assert html.startswith("<!doctype html>")


def test_page_needs_nothing_from_outside() -> None:
    page = Page(page_of_everything().html())
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []
    assert "link" not in page.tags


def test_page_serves_phone_light_and_dark() -> None:
    html = page_of_everything().html()
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    for role in plots.ROLES:
        assert html.count(f"--{role}:") == 2, f"colour {role} must be set for light and for dark"


def test_plots_of_one_page_share_no_id() -> None:
    one = plots.bars([plots.Bar("a", 1.0, "1", "float")], "")
    two = plots.bars([plots.Bar("b", 1.0, "1", "float")], "")
    html = report.Document(
        "t", "", [report.Section("s", [report.Figure("1", one, ""), report.Figure("2", two, "")])]
    ).html()
    ids = Page(html).ids
    assert ids
    assert len(ids) == len(set(ids))


def test_numbers_keep_their_units_on_the_line_and_long_cells_fold() -> None:
    html = report.Table(["", "a"], [["row", "1.5 MB"], ["row", "a long setting of words"]]).html()
    assert "<td>1.5&nbsp;MB</td>" in html
    assert "<td>a long setting of words</td>" in html


def test_table_refuses_a_ragged_row() -> None:
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        report.Table(["a", "b"], [["only one"]])


def test_write_text_makes_folders_and_replaces_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    assert report.write_text(target, "ä\n") == target
    assert target.read_bytes() == "ä\n".encode()
    report.write_text(target, "second")
    assert target.read_text(encoding="utf-8") == "second"
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    report.write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        report.write_text(target, "half \ud800")
    assert target.read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_written_report_is_readable_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x", encoding="utf-8")
    written = report.write_text(tmp_path / "report", "x")
    assert written.stat().st_mode == plain.stat().st_mode
