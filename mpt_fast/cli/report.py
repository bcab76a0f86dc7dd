"""`mpt-fast report`: the studies' results as one HTML and one Markdown page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mpt_fast.cli.options import Debug, Json, output

NAME = "report"
EXAMPLE = (
    "Example: [bold]mpt-fast report benchmarks/studies/results -o report.html[/bold]\n\n"
    "Results come from [bold]python -m benchmarks.studies NAME[/bold]."
)
_DEFAULT = Path("benchmarks/studies/results")


def command(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", help="Folder with the studies' JSON results."),
    ] = _DEFAULT,
    file: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE.html", help="Page to write; FILE.md beside it."
        ),
    ] = Path("report.html"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one page of the papers' figures and tables beside what the studies measured.

    The HTML page needs no network. Studies declared (YAML files in the folder above FOLDER) that
    have no result yet are listed with the command that runs them.
    """
    from mpt_fast.report import studies, write_text
    from mpt_fast.report.markdown import markdown

    if file.suffix != ".html":
        raise typer.BadParameter(f"{file} does not end in .html", param_hint="'--output'")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name that of python -m benchmarks.studies")
    page = studies.document(folder, _declared(folder.parent))
    write_text(file, page.html())
    beside = write_text(file.with_suffix(".md"), markdown(page))
    overview: Any = page.sections[0].blocks[0]
    out = output(context)
    out.result(
        {"html": str(file), "markdown": str(beside), "verdicts": dict(overview.rows)},
        "\n".join(f"{source}: {verdict}" for source, verdict in overview.rows),
    )
    out.say(f"Written: {file} and {beside}")


def _declared(folder: Path) -> dict[str, Any]:
    """The declared studies of a folder, by name; files that are none are left out."""
    import yaml

    found = {}
    for path in sorted(folder.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and {"name", "title", "source", "claim"} <= values.keys():
            found[str(values["name"])] = values
    return found
