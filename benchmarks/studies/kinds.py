"""The kinds of studies: how one run is done and what is measured of it."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpt_fast as mpt
from benchmarks.studies.study import Runner, Study
from mpt_fast import data
from mpt_fast.measure import acceleration_rate, interleave, skip_report
from mpt_fast.selection import ticket_layers, update_masks
from mpt_fast.training import (
    Recipe,
    Result,
    TrainingError,
    finetune_run,
    recipe_for,
    train,
)

BINS = 41


def train_kind(
    study: Study, settings: Mapping[str, Any], scratch: Path, data_root: Path | None
) -> Mapping[str, Any]:
    """Train one recipe; resumes a run that was stopped. A run that diverges is a result too."""
    recipe = _recipe({**study.base, **settings})
    folder = _folder(scratch, settings)
    try:
        result = train(recipe, folder, resume=True, quiet=True, data_root=data_root)
    except TrainingError as error:
        return {"diverged": str(error)}
    return {**_outcome(result), **_records(study, result)}


def finetune_kind(
    study: Study, settings: Mapping[str, Any], scratch: Path, data_root: Path | None
) -> Mapping[str, Any]:
    """Train the ticket of this seed once, then fine-tune it as `settings` say."""
    ticket_fields = {k: v for k, v in study.base.items() if k != "finetune_epochs"}
    seed = settings["seed"]
    recipe = _recipe({**ticket_fields, "seed": seed})
    start = scratch / f"ticket-{seed}"
    ticket = train(recipe, start, resume=True, quiet=True, data_root=data_root)
    changes = {k: v for k, v in settings.items() if k not in ("seed", "part")}
    epochs = study.base["finetune_epochs"]
    if changes.get("schedule") == "multistep":
        changes["milestones"] = [max(1, epochs // 2)]
    result = finetune_run(
        start,
        _folder(scratch, settings),
        settings["part"],
        resume=True,
        quiet=True,
        data_root=data_root,
        epochs=epochs,
        **changes,
    )
    return {**_outcome(result), "ticket_accuracy": ticket.accuracy}


def step_time_kind(
    study: Study, settings: Mapping[str, Any], scratch: Path, data_root: Path | None
) -> Mapping[str, Any]:
    """Seconds per training step of one network with masks by each way of selecting, by turns."""
    base = dict(study.base)
    ways, batch, seconds = base["selections"], base["batch"], base["seconds"]
    shape = tuple(base["image"])
    torch.manual_seed(settings.get("seed", 0))
    width = base.get("width", 1.0)
    calls = [
        _training_step(base["model"], width, way, settings["power"], base["sparsity"], batch, shape)
        for way in ways
    ]
    timings = interleave(calls, repeats=200, warmup=1, seconds=seconds)
    return {
        "threads": torch.get_num_threads(),
        "timings": {way: timing.to_dict() for way, timing in zip(ways, timings, strict=True)},
    }


def speed_kind(
    study: Study, settings: Mapping[str, Any], scratch: Path, data_root: Path | None
) -> Mapping[str, Any]:
    """A ticket with untrained scores: zero kernels counted, packed against its dense twin."""
    base = study.base
    shape = tuple(base["image"])
    options = {
        "in_channels": shape[0],
        "activation": settings["activation"],
        "image_size": shape[1],
        "width": base.get("width", 1.0),
    }
    torch.manual_seed(0)
    config = mpt.TicketConfig(sparsity=settings["sparsity"], scope="layer")
    ticket = mpt.models.build(base["model"], config=config, **options).eval()
    twin = mpt.models.dense_twin(base["model"], **options).eval()
    report = skip_report(ticket, twin, shape, batches=base["batches"], seconds=base["seconds"])
    return report.to_dict()


KINDS: dict[str, Runner] = {
    "train": train_kind,
    "finetune": finetune_kind,
    "step_time": step_time_kind,
    "speed": speed_kind,
}


def _recipe(fields: Mapping[str, Any]) -> Recipe:
    """The recipe of these fields over the papers' settings for that kind of network."""
    values = dict(fields)
    return recipe_for(values.pop("model"), values.pop("data"), **values)


def _folder(scratch: Path, settings: Mapping[str, Any]) -> Path:
    return scratch / sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _outcome(result: Result) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "best_accuracy": result.best_accuracy,
        "sparsity": result.history[-1]["sparsity"],
        "epoch_accuracy": [row["test_accuracy"] for row in result.history],
        "steps": result.steps,
        "seconds": result.seconds,
    }


def _records(study: Study, result: Result) -> dict[str, Any]:
    return {name: _RECORDS[name](result) for name in study.record}


def _histogram(result: Result) -> dict[str, Any]:
    """Counts of the layers' importances abs(Psi(s)), signed as the scores, over +-largest."""
    found = {}
    for name, layer in ticket_layers(result.model).items():
        scores = layer.scores.detach()
        signed = scores.sign() * scores.abs().pow(layer.config.power)
        reach = float(signed.abs().max())
        found[name] = {
            "reach": reach,
            "counts": torch.histc(signed, BINS, -reach, reach).int().tolist(),
            "below_percent": float((signed.abs() < 0.01 * reach).float().mean()),
        }
    return found


def _kernels(result: Result) -> dict[str, Any]:
    """Zero kernels by layer and Eq. (4) on the data set's images."""
    shape, _ = data.shape_of(result.recipe.data, result.recipe.image_size)
    return acceleration_rate(result.model, shape).to_dict()


_RECORDS = {"histogram": _histogram, "kernels": _kernels}


def _training_step(
    model: str,
    width: float,
    selection: str,
    power: float,
    sparsity: float,
    batch: int,
    shape: tuple[int, ...],
) -> Any:
    config = mpt.TicketConfig(sparsity=sparsity, selection=selection, power=power)  # type: ignore[arg-type]  # declared as text
    network: nn.Module = mpt.models.build(
        model, in_channels=shape[0], image_size=shape[1:], width=width, config=config
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    scores = [layer.scores for layer in ticket_layers(network).values()]
    optimizer = torch.optim.SGD(scores, lr=1e-3, momentum=0.9, fused=True)
    images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step() -> None:
        update_masks(network)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
