"""`mpt-fast run`: classes of images by a packed file, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mpt_fast.cli import runs
from mpt_fast.cli.options import Debug, Json, output
from mpt_fast.cli.output import table
from mpt_fast.report import text

NAME = "run"
EXAMPLE = "Example: [bold]mpt-fast run mpt-demo/binary.mpt mpt-demo/images/*.png[/bold]"
_BATCH = 512


def command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE.mpt", help="The packed network.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="Pictures (png, jpg, ...), .npy arrays or IDX files (plain or .gz).",
        ),
    ],
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="Classes to name for each image.")
    ] = 1,
    invert: Annotated[
        bool, typer.Option("--invert", help="Swap dark and light (ink on paper).")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Stop after so many images.", show_default="all"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="CPU threads.", show_default="all processors"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what packed network FILE.mpt sees in IMAGES: class and confidence, without PyTorch.

    Pictures are made grey or RGB and resized to what the network takes, then normalised as in
    training: the file remembers how, and the names of the classes.
    """
    import numpy as np

    from mpt_fast.cli import images as pictures

    out = output(context)
    model = runs.load_packed(file, threads, out)
    shape = tuple(model.input_shape)
    if len(shape) != 3:
        raise ValueError(f"{file}: takes input of shape {shape}, not images; use mpt_fast.runtime")
    names: list[str] = []
    arrays: list[Any] = []
    for path in images:
        for name, image in pictures.read_images(path, shape):
            if limit is None or len(names) < limit:
                names.append(name)
                arrays.append(image)
    metadata = model.metadata
    answers: list[dict[str, Any]] = []
    for start in range(0, len(arrays), _BATCH):
        batch = pictures.network_input(arrays[start : start + _BATCH], model.pixels, invert)
        chances = pictures.softmax(model(batch).reshape(len(batch), -1))
        classes = metadata.get("classes") or [str(index) for index in range(chances.shape[1])]
        if len(classes) != chances.shape[1]:
            raise ValueError(
                f"{file}: {len(classes)} class names for {chances.shape[1]} outputs; "
                "pack the network again"
            )
        for name, chance in zip(names[start:], chances, strict=False):
            best = np.argsort(-chance, kind="stable")[:top]
            answers.append(
                {
                    "image": name,
                    "class": classes[best[0]],
                    "confidence": float(chance[best[0]]),
                    "top": [{"class": classes[i], "confidence": float(chance[i])} for i in best],
                }
            )
    if model.pixels is None:
        out.note(f"{file} does not say how pixels are normalised: they are fed as they are, 0..1")
    out.result(
        {"file": str(file), "images": answers},
        table(
            ["image", *(["class", "confidence"] * min(top, len(answers[0]["top"])))],
            [
                [
                    answer["image"],
                    *(
                        cell
                        for choice in answer["top"]
                        for cell in (choice["class"], text.percent(choice["confidence"]))
                    ),
                ]
                for answer in answers
            ],
        ) if answers else "no images",
    )  # fmt: skip
