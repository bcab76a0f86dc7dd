"""What `mpt-fast demo` does, step by step: train, pack, time, look inside."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import mpt_fast as mpt
from mpt_fast.cli import images as pictures
from mpt_fast.cli import runs
from mpt_fast.kernels import cpu
from mpt_fast.measure import AccelerationRate, baselines, interleave
from mpt_fast.nn import MPTConv2d, TicketLayer
from mpt_fast.report import demo as page
from mpt_fast.report import text
from mpt_fast.selection import realised_sparsity, ticket_layers
from mpt_fast.training import Recipe, Result, recipe_for
from mpt_fast.training import train as train_run

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mpt_fast.cli.output import Output
    from mpt_fast.cli.runs import Packed
    from mpt_fast.data import Dataset

_WEIGHTED = (TicketLayer, torch.nn.Conv2d, torch.nn.Linear)
_KERNELS = 192
_PICTURES = 20
_SAVED = 5
_ROUNDS = 100


@dataclass(frozen=True)
class Ticket:
    """A packed ticket as reloaded from its file; `accuracy` is its own, not the eager network's."""

    file: Path
    model: Packed
    accuracy: float
    disagreements: int


def recipes(model: str, data: str, sparsity: float, epochs: int, seed: int) -> dict[str, Recipe]:
    """The recipe of each network.

    Layerwise pruning and weights scaled to the density keep the tickets trainable at any sparsity.
    """
    common: dict[str, Any] = {"sparsity": sparsity, "epochs": epochs, "seed": seed}
    ticket = {**common, "scope": "layer", "scale_fan": True}
    made = {}
    for role, activation in (("float", "relu"), ("binary", "binary")):
        made[role] = recipe_for(model, data, activation=activation, **ticket)
        made[page.TWINS[role]] = recipe_for(
            model, data, activation=activation, dense=True, **common,
            optimizer="adam", lr=1e-3, weight_decay=0.0,
        )  # fmt: skip
    return made


def train(
    made: dict[str, Recipe], out: Path, data_root: Path | None, shown: Output
) -> dict[str, Result]:
    """Train every network into `out`/<role>, replacing what an earlier demo left there."""
    results = {}
    with shown.progress() as progress:
        for role, recipe in made.items():
            folder = out / role
            if (folder / "recipe.yaml").is_file():
                shutil.rmtree(folder)
            title = page.TITLES[role]
            task = progress.add_task(f"Training: {title.lower()}", total=recipe.epochs)
            result = train_run(
                recipe,
                folder,
                data_root=data_root,
                quiet=True,
                on_epoch=partial(_advance, progress, task),
            )
            results[role] = result
            shown.say(
                f"  {title:<15} {text.percent(result.accuracy, 2):>8} test accuracy after "
                f"{recipe.epochs} epochs, {text.duration(result.seconds)}"
            )
    return results


def _advance(progress: Progress, task: TaskID, row: Mapping[str, Any]) -> None:
    progress.advance(task)


def pack(
    recipe: Recipe, result: Result, dataset: Dataset, file: Path, threads: int, shown: Output
) -> Ticket:
    """Pack into `file`, reload it, and compare with eager PyTorch in float64."""
    packed = mpt.pack(
        result.model.eval(),
        torch.zeros(1, *dataset.image_shape),
        threads=threads,
        pixels=(dataset.mean, dataset.std),
    )
    pixels = raw(dataset)
    accuracy = float((packed(pixels).argmax(dim=1) == dataset.test.labels).double().mean())
    packed.save(file, metadata=runs.metadata(recipe, dataset, accuracy))
    model = runs.load_packed(file, threads, shown)
    double = copy.deepcopy(result.model).double()
    with torch.inference_mode():
        eager = torch.cat([double(part.double()) for part in inputs(dataset).split(256)])
    differ = model(pixels.numpy()).argmax(axis=1) != eager.argmax(dim=1).numpy()
    return Ticket(file, model, accuracy, int(differ.sum()))


def described(machine: Mapping[str, Any]) -> dict[str, str]:
    """`measure.machine()` as words."""
    return {
        name.replace("_", " "): " ".join(value) if isinstance(value, list | tuple) else str(value)
        for name, value in machine.items()
    }


def raw(dataset: Dataset, count: int | None = None) -> torch.Tensor:
    """The first test images as uint8, repeated where `count` exceeds them: what a ticket takes."""
    total = len(dataset.test)
    return dataset.test.batch(torch.arange(count or total) % total)


def inputs(dataset: Dataset, count: int | None = None) -> torch.Tensor:
    """The same images normalised: what eager networks are fed."""
    return dataset.normalize(raw(dataset, count))


def speeds(
    results: dict[str, Result],
    tickets: dict[str, Ticket],
    dataset: Dataset,
    batch: int,
    seconds: float,
) -> dict[str, page.Speed]:
    """Seconds per batch of every network, all alternating; twins at PyTorch's best setting."""
    images = inputs(dataset, batch)
    array = raw(dataset, batch).numpy()
    calls: dict[str, tuple[str, Callable[[], object]]] = {}
    for role, ticket in tickets.items():
        twin = baselines(results[page.TWINS[role]].model, images, seconds=seconds / 4).best
        how = "packed" if cpu.available() else "packed, through PyTorch"
        calls[role] = how, partial(ticket.model, array)
        calls[page.TWINS[role]] = f"eager PyTorch, {twin.setting}", twin
    timings = interleave([call for _, call in calls.values()], repeats=_ROUNDS, seconds=seconds / 2)
    return {
        role: page.Speed(timing.median, timing.p20, timing.p80, setting)
        for (role, (setting, _)), timing in zip(calls.items(), timings, strict=True)
    }


def network(
    role: str, result: Result, ticket: Ticket | None, speed: page.Speed, dataset: Dataset
) -> page.Network:
    """One column of the comparison."""
    rows = result.history
    layers = [m for m in result.model.modules() if isinstance(m, _WEIGHTED)]
    weights = sum(layer.weight.numel() for layer in layers)
    size = ticket.model.size_report() if ticket else None
    rate = mpt.acceleration_rate(result.model, dataset.image_shape) if ticket else None
    return page.Network(
        role=role,
        accuracy=ticket.accuracy if ticket else result.accuracy,
        train_seconds=result.seconds,
        epochs=[row["epoch"] for row in rows],
        test_accuracy=[row["test_accuracy"] for row in rows],
        train_loss=[row["train_loss"] for row in rows],
        weights=weights,
        kept=realised_sparsity(result.model).kept if ticket else weights,
        fp32_bytes=4 * weights,
        file_bytes=ticket.file.stat().st_size if ticket else None,
        bound_bytes=round(size.bound_bytes) if size else None,
        kernel_rate=rate.kernel_rate if rate else None,
        weight_rate=rate.weight_rate if rate else None,
        speed=speed,
        empty_kernels=_empty_kernels(rate) if rate else [],
        disagreements=ticket.disagreements if ticket else None,
    )


def _empty_kernels(rate: AccelerationRate) -> list[tuple[str, float]]:
    """Layers counted by kind: the tickets' layouts differ, so their modules' names do too."""
    seen: Counter[str] = Counter()
    rows = []
    for layer in rate.layers:
        seen[layer.kind] += 1
        rows.append((f"{layer.kind} {seen[layer.kind]}", layer.zero_fraction))
    return rows


def kernels(model: torch.nn.Module) -> tuple[str, list[Any]]:
    """Name and first kernels [n][h][w] of -1, 0, +1 of the second convolution."""
    convolutions = [
        layer for layer in ticket_layers(model).values() if isinstance(layer, MPTConv2d)
    ]
    number = min(2, len(convolutions))
    codes = convolutions[number - 1].sign_code().contiguous().flatten(0, 1)[:_KERNELS]
    return f"conv {number}", codes.tolist()


def examples(model: Packed, dataset: Dataset, folder: Path) -> list[page.Example]:
    """Answers for a few test images, mistakes first; some images are written as PNG to `folder`."""
    from PIL import Image

    chances = pictures.softmax(model(raw(dataset).numpy()))
    answers = chances.argmax(axis=1)
    truth = dataset.test.labels.numpy()
    wrong = np.flatnonzero(answers != truth)[: _PICTURES // 4]
    right = np.flatnonzero(answers == truth)
    spread = right[np.linspace(0, len(right) - 1, _PICTURES - len(wrong)).astype(int)]
    chosen = np.unique(np.concatenate([wrong, spread]))
    chosen = np.concatenate([wrong, np.setdiff1d(chosen, wrong)])
    shown = dataset.test.batch(torch.from_numpy(chosen)).numpy().transpose(0, 2, 3, 1)
    shown = shown[..., 0] if shown.shape[3] == 1 else shown
    folder.mkdir(parents=True, exist_ok=True)
    for pixels, index in list(zip(shown, chosen, strict=True))[-_SAVED:]:
        Image.fromarray(pixels).save(folder / f"{dataset.classes[truth[index]]}-{index}.png")
    return [
        page.Example(
            pixels.tolist(),
            str(dataset.classes[truth[index]]),
            str(dataset.classes[answers[index]]),
            float(chances[index, answers[index]]),
        )
        for pixels, index in zip(shown, chosen, strict=True)
    ]
