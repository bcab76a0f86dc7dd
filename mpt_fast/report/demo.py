"""The page and the figure of `mpt-fast demo`, made from the numbers in its report.json.

`Demo` is what report.json holds: `Demo.from_json(json.load(...))` reads it back, so that page,
figure and terminal table can be made again without measuring again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from mpt_fast.report import plots, text
from mpt_fast.report.document import (
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
)

SCHEMA = "mpt_fast demo"
VERSION = 1
TICKETS = ("float", "binary")
TWINS = {"float": "float_twin", "binary": "binary_twin"}
ROLES = ("float", "float_twin", "binary", "binary_twin")
TITLES = {
    "float": "Float ticket",
    "float_twin": "its dense twin",
    "binary": "Binary ticket",
    "binary_twin": "its dense twin",
}
_COLOURS = {"float": "float", "binary": "binary", "float_twin": "dense", "binary_twin": "dense"}


@dataclass(frozen=True)
class Speed:
    """Seconds for one batch: median and the 20th and 80th percentile, and how it was run."""

    median: float
    low: float
    high: float
    setting: str

    def images_per_second(self, batch: int) -> tuple[float, float, float]:
        """Median, lowest and highest rate for batches of `batch` images."""
        return batch / self.median, batch / self.high, batch / self.low


@dataclass(frozen=True)
class Network:
    """One of the demo's networks, a ticket or a dense twin; shares are of 1, sizes in bytes.

    `accuracy` and `speed` are of the network as it is deployed: a ticket packed, a twin in eager
    PyTorch.
    `file_bytes`, `bound_bytes`, `kernel_rate`, `weight_rate` and `disagreements` (test images that
    the packed ticket and the eager one in float64 put in different classes) are None for a twin.
    `empty_kernels` are (layer, share of its kernels that kept no weight), none for a twin.
    """

    role: str
    accuracy: float
    train_seconds: float
    epochs: Sequence[int]
    test_accuracy: Sequence[float]
    train_loss: Sequence[float]
    weights: int
    kept: int
    fp32_bytes: int
    file_bytes: int | None
    bound_bytes: int | None
    kernel_rate: float | None
    weight_rate: float | None
    speed: Speed
    empty_kernels: Sequence[tuple[str, float]]
    disagreements: int | None = None


@dataclass(frozen=True)
class Example:
    """One test image and what the packed binary ticket said: pixels are [H][W] or [H][W][3]."""

    pixels: Sequence[Any]
    truth: str
    answer: str
    confidence: float


@dataclass(frozen=True)
class Demo:
    """Everything the demo measured. `kernels` is [count][h][w] of -1, 0, +1 of one layer."""

    model: str
    dataset: str
    train_images: int
    test_images: int
    image_shape: tuple[int, int, int]
    sparsity: float
    batch: int
    threads: int
    seconds: float
    command: str
    machine: Mapping[str, str]
    networks: Sequence[Network]
    kernels: Sequence[Any]
    kernels_layer: str
    examples: Sequence[Example]

    def network(self, role: str) -> Network:
        """The network of that role; KeyError when the demo has none."""
        for network in self.networks:
            if network.role == role:
                return network
        raise KeyError(role)

    def speedup(self, ticket: str) -> float:
        """How many times faster a ticket is than its dense twin, medians of one run."""
        return self.network(TWINS[ticket]).speed.median / self.network(ticket).speed.median

    def to_json(self) -> dict[str, Any]:
        """What report.json holds."""
        return {"schema": SCHEMA, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Demo:
        """Reads `to_json` back; ValueError when `data` is something else."""
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ValueError("not a report of mpt-fast demo; give the report.json that it wrote")
        if data.get("version") != VERSION:
            raise ValueError(
                f"demo report version {data.get('version')!r} is unknown (this package reads "
                f"{VERSION}); run mpt-fast demo again"
            )
        try:
            return cls(
                **{
                    **{f.name: data[f.name] for f in fields(cls)},
                    "image_shape": tuple(data["image_shape"]),
                    "networks": [
                        Network(
                            **{
                                **network,
                                "speed": Speed(**network["speed"]),
                                "empty_kernels": [
                                    tuple(layer) for layer in network["empty_kernels"]
                                ],
                            }
                        )
                        for network in data["networks"]
                    ],
                    "examples": [Example(**example) for example in data["examples"]],
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"demo report is incomplete ({error}); run mpt-fast demo again"
            ) from error


def table(demo: Demo) -> Table:
    """The comparison: one column per network, one row per measure."""

    def row(name: str, cell: Any) -> list[str]:
        return [name, *(cell(demo.network(role)) for role in ROLES)]

    rows = [
        row("Test accuracy", lambda n: text.percent(n.accuracy, 2)),
        row("Weights trained", lambda n: "none" if n.role in TICKETS else "all"),
        row("Activations", lambda n: "1 bit" if n.role == "binary" else "float"),
        row("Weights kept", lambda n: text.count(n.kept)),
        row("… of all", lambda n: text.percent(n.kept / n.weights)),
        row("Size in fp32", lambda n: text.size(n.fp32_bytes)),
        row("Packed file", lambda n: text.size(n.file_bytes)),
        row("… times smaller", lambda n: text.ratio(n.file_bytes and n.fp32_bytes / n.file_bytes)),
        row("Entropy bound", lambda n: text.size(n.bound_bytes)),
        row("Images per second", lambda n: text.count(n.speed.images_per_second(demo.batch)[0])),
        row(
            "… against the twin",
            lambda n: text.ratio(demo.speedup(n.role)) if n.role in TICKETS else "1×",
        ),
        row("Acceleration, kernels", lambda n: text.ratio(n.kernel_rate)),
        row("Acceleration, weights", lambda n: text.ratio(n.weight_rate)),
        row("Training time", lambda n: text.duration(n.train_seconds)),
    ]
    return Table(
        header=["", *(TITLES[role] for role in ROLES)],
        rows=rows,
        caption=f"{demo.model} on {demo.dataset}, {text.percent(demo.sparsity, 0)} of the weights "
        f"pruned; speed at batch {demo.batch}, {text.threads(demo.threads)}",
        strong=frozenset({0, 7, 10}),
    )


def document(demo: Demo) -> Document:
    """The HTML report of a demo run."""
    return Document(
        title="Multi-prize tickets: never trained, a tenth kept, one bit each"
        if abs(demo.sparsity - 0.9) < 1e-9
        else "Multi-prize tickets: never trained, mostly removed, one bit each",
        lead="A multi-prize ticket is found inside a random network by learning which weights to "
        "keep. The weights themselves are never trained: the kept ones are reduced to their sign. "
        f"This run found two tickets in {demo.model} on {demo.dataset}, one with float and one "
        "with binary activations, trained the same networks the ordinary way (their dense twins), "
        "and packed, reloaded and ran the tickets.",
        sections=[
            _result(demo),
            _speed_and_size(demo),
            _training(demo),
            _inside(demo),
            *([_examples(demo)] if demo.examples else []),
            _method(demo),
        ],
        footer=f"Written by {demo.command} in {text.duration(demo.seconds)}. "
        + " · ".join(f"{name} {value}" for name, value in demo.machine.items()),
    )


def figure(demo: Demo) -> str:
    """The README's figure: speed, size and accuracy as one SVG file on its own."""
    accuracy = [
        plots.Bar(TITLES[role], value, text.percent(value), _COLOURS[role])
        for role in ROLES
        for value in [demo.network(role).accuracy]
    ]
    return plots.panels(
        [("Images per second", _speed_bars(demo)), ("Size", _size_bars(demo)),
         ("Test accuracy", accuracy)],
        f"{demo.model} on {demo.dataset}, {text.percent(demo.sparsity, 0)} pruned, "
        f"batch {demo.batch}, {text.threads(demo.threads)}",
    )  # fmt: skip


def _result(demo: Demo) -> Section:
    twin, binary = demo.network("binary_twin"), demo.network("binary")
    assert binary.file_bytes is not None
    return Section(
        "The result",
        [
            Tiles(
                [
                    Tile(
                        text.ratio(demo.speedup("binary")),
                        "faster",
                        "binary ticket, packed, against its dense twin in eager PyTorch",
                    ),
                    Tile(
                        text.ratio(binary.fp32_bytes / binary.file_bytes),
                        "smaller",
                        f"{text.size(binary.file_bytes)} on disk, {text.size(binary.fp32_bytes)} "
                        "in fp32",
                    ),
                    Tile(
                        text.percent(binary.accuracy),
                        "test accuracy",
                        f"binary ticket; its dense twin {text.percent(twin.accuracy)}",
                    ),
                    Tile(
                        text.percent(binary.kept / binary.weights, 0),
                        "of the weights kept",
                        f"{text.count(binary.kept)} of {text.count(binary.weights)}",
                    ),
                ]
            ),
            table(demo),
        ],
    )


def _speed_bars(demo: Demo) -> list[plots.Bar]:
    items = []
    for role in ROLES:
        rate, low, high = demo.network(role).speed.images_per_second(demo.batch)
        gain = f" ({text.ratio(demo.speedup(role))})" if role in TICKETS else ""
        label = f"{TITLES[role]}, {'packed' if role in TICKETS else 'eager PyTorch'}"
        shown = f"{text.count(rate)}{gain}"
        items.append(plots.Bar(label, rate, shown, _COLOURS[role], (low, high)))
    return items


def _size_bars(demo: Demo) -> list[plots.Bar]:
    fp32 = demo.network("binary").fp32_bytes
    items = [plots.Bar("Weights in fp32", fp32, text.size(fp32), "dense")]
    for role in TICKETS:
        network = demo.network(role)
        assert network.file_bytes is not None
        items.append(
            plots.Bar(
                f"{TITLES[role]}, file", network.file_bytes, text.size(network.file_bytes), role
            )
        )
    bound = demo.network("binary").bound_bytes
    assert bound is not None
    items.append(plots.Bar("Bound: n·H(density) + kept bits", bound, text.size(bound), "bound"))
    return items


def _speed_and_size(demo: Demo) -> Section:
    return Section(
        "Speed and size",
        [
            Figures(
                [
                    Figure(
                        "Images per second",
                        plots.bars(_speed_bars(demo), ""),
                        "Bar chart of images per second: "
                        + "; ".join(f"{bar.label} {bar.text}" for bar in _speed_bars(demo)),
                        f"Batch {demo.batch}, {text.threads(demo.threads)}, medians; thin lines "
                        "span the 20th to the 80th percentile.",
                    ),
                    Figure(
                        "Size",
                        plots.bars(_size_bars(demo), ""),
                        "Bar chart of sizes: "
                        + "; ".join(f"{bar.label} {bar.text}" for bar in _size_bars(demo)),
                        "The bound is what no lossless coding of a random mask and its signs can "
                        "go below on average.",
                    ),
                ]
            )
        ],
        lead="All networks alternate in one process, so that a busy machine slows all alike. The "
        "twins run at the best of PyTorch's own settings.",
    )


def _training(demo: Demo) -> Section:
    def curves(values: str) -> list[plots.Line]:
        return [
            plots.Line(
                TITLES[role],
                network.epochs,
                getattr(network, values),
                role.removesuffix("_twin"),
                dashed=role not in TICKETS,
            )
            for role in ROLES
            for network in [demo.network(role)]
        ]

    final = "; ".join(f"{TITLES[r]} {text.percent(demo.network(r).accuracy)}" for r in ROLES)
    return Section(
        "Finding the tickets",
        [
            Figures(
                [
                    Figure(
                        "Test accuracy",
                        plots.lines(curves("test_accuracy"), "epoch", "", percent=True),
                        f"Curves of test accuracy by epoch, ending at {final}",
                    ),
                    Figure(
                        "Training loss",
                        plots.lines(curves("train_loss"), "epoch", ""),
                        "Curves of training loss by epoch for the tickets and their twins",
                    ),
                ]
            )
        ],
        lead="For the tickets, training changes scores; the scores decide which weights stay.",
    )


def _inside(demo: Demo) -> Section:
    tickets = [demo.network(role) for role in TICKETS]
    names = [name for name, _ in tickets[0].empty_kernels]
    shares = [
        (TITLES[network.role], [empty for _, empty in network.empty_kernels], network.role)
        for network in tickets
    ]
    codes = np.asarray(demo.kernels, dtype=np.int8)
    return Section(
        "Inside",
        [
            Figures(
                [
                    Figure(
                        "Empty kernels, layer by layer",
                        plots.profile(names, shares, ""),
                        "Bar chart of the share of kernels without a weight in each layer: "
                        + "; ".join(
                            f"{name} {' and '.join(text.percent(s[i]) for _, s, _ in shares)}"
                            for i, name in enumerate(names)
                        ),
                        "A kernel is the slice of weights between two channels (in a linear "
                        "layer, one weight). Packed networks never touch an empty one.",
                    ),
                    Figure(
                        f"The first {len(codes)} kernels of {demo.kernels_layer}",
                        plots.kernels(codes),
                        f"Tiles of {len(codes)} kernels: kept entries are +1 or -1, most are empty",
                        "Blue is +1, orange is −1, empty is pruned: a packed file holds little "
                        "else.",
                    ),
                ]
            )
        ],
    )


def _examples(demo: Demo) -> Section:
    wrong = sum(example.answer != example.truth for example in demo.examples)
    pictures = [
        Picture(
            plots.png_uri(np.asarray(example.pixels, dtype=np.float64)),
            f"{example.answer}, {text.percent(example.confidence, 0)}"
            if example.answer == example.truth
            else f"{example.answer}, not {example.truth}",
            example.answer != example.truth,
        )
        for example in demo.examples
    ]
    return Section(
        "What it says",
        [Gallery(pictures)],
        lead="Test images and the packed binary ticket's answers"
        + (", its mistakes first." if wrong else "."),
    )


def _method(demo: Demo) -> Section:
    channels, height, width = demo.image_shape
    agreement = [
        f"{TITLES[n.role].lower()} {n.disagreements} of {demo.test_images}"
        for n in demo.networks
        if n.disagreements is not None
    ]
    blocks: list[Any] = [
        Table(
            ["", "how it was run", "median per batch", "20th to 80th percentile"],
            [
                [
                    TITLES[n.role],
                    n.speed.setting,
                    text.duration(n.speed.median),
                    f"{text.duration(n.speed.low)} to {text.duration(n.speed.high)}",
                ]
                for n in demo.networks
            ],
        ),
        Paragraph(
            f"{text.count(demo.train_images)} training and {text.count(demo.test_images)} test "
            f"images of {channels} × {height} × {width}. The sizes in fp32 and of the bound "
            "are those of the weights alone; the packed file holds everything needed to run, "
            "and a ticket's accuracy is the packed file's. The "
            "acceleration rates count how many times fewer operations remain where empty kernels "
            "(Eq. 4 of Efficient-MPT) or pruned weights are left out: what is possible, where "
            "images per second are what was reached."
        ),
    ]
    if agreement:
        blocks.append(
            Paragraph(
                "Classes in which the packed networks differ from eager PyTorch in float64 on the "
                f"test images: {', '.join(agreement)}."
            )
        )
    return Section("How it was measured", [*blocks, Code(demo.command)])
