"""The training loop: one for tickets and dense twins, one or many processes, CPU or GPU."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpt_fast.data import Dataset, Loader
from mpt_fast.data.augmix import VIEWS
from mpt_fast.selection import (
    EmptiedLayerError,
    cubic_sparsity,
    realised_sparsity,
    set_sparsity,
    ticket_layers,
    update_masks,
)
from mpt_fast.training import checkpoint, snapshot
from mpt_fast.training.consistency import jensen_shannon
from mpt_fast.training.distributed import World
from mpt_fast.training.evaluation import run_evaluation
from mpt_fast.training.guards import (
    TrainingError,
    check_finite,
    check_frozen,
    first_non_finite,
    frozen_digests,
    mask_digest,
)
from mpt_fast.training.metrics import MetricsLog
from mpt_fast.training.precision import autocast, computing, resolve_amp
from mpt_fast.training.progress import RunProgress
from mpt_fast.training.recipe import Recipe
from mpt_fast.training.schedule import learning_rate

__all__ = ["Cadence", "Result", "Trainer", "make_optimizer"]


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When to write a checkpoint besides at the end of each epoch: 0 means never.

    steps: every so many steps of an epoch. seconds: when so many have passed since the last; with
    several processes only `steps` counts, because their clocks differ.
    """

    steps: int = 0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.seconds >= 0:
            raise ValueError(
                f"checkpoint steps and seconds must not be negative, got {self.steps} and "
                f"{self.seconds}"
            )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run gives. Accuracies are of the test images, in [0, 1].

    accuracy: after the last epoch. best_accuracy: the highest of any epoch (chosen on those same
    images: quote `accuracy`). history: one row per epoch, see `mpt_fast.training.metrics.FIELDS`.
    seconds: computing time over all sittings.
    """

    accuracy: float
    best_accuracy: float
    history: list[dict[str, Any]]
    model: nn.Module
    recipe: Recipe
    seconds: float
    steps: int
    out_dir: Path


@dataclasses.dataclass
class _Position:
    """Where a run stands: `step` batches of `epoch` are done, with these sums over them."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)  # loss * images, correct, images: this rank


class _Unseen(NamedTuple):
    """A loss that was not looked at yet, with what to explain it by if it is bad."""

    loss: Tensor
    images: Tensor
    step: int


class Trainer:
    """Trains a model by a recipe into a folder.

    Each step: select the masks anew (once, over the whole model), forward, loss, backward, and the
    optimiser's step on what requires grad: scores and affine batch norm (dense: all weights).
    Random numbers of a step (dropout) are seeded from (seed, epoch, step, rank), so that none of
    the run's state is hidden in a generator.

    Processes: gradients are averaged by DistributedDataParallel; batch norm normalises each rank's
    own part of the batch (no SyncBN) and its running statistics are those of rank 0; masks are
    selected by every rank for itself and compared at every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        out_dir: Path,
        *,
        device: torch.device,
        world: World,
        cadence: Cadence,
        quiet: bool = False,
        on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.out_dir = out_dir
        self.device = device
        self.world = world
        self.cadence = cadence
        self.quiet = quiet or not world.first
        self.on_epoch = on_epoch
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device)
        self.model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise TrainingError("the model has nothing to train: no parameter requires a gradient")
        self.trained = trained
        self.optimizer = self._make_optimizer()
        self.frozen = frozen_digests(model)
        self.net: nn.Module = self.model
        if world.size > 1:
            self.net = nn.parallel.DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
            )
        self.loader = self._loader(train=True, layout=layout)
        self.test_loader = self._loader(train=False, layout=layout)
        self.amp = recipe.amp
        self.threads = recipe.threads or torch.get_num_threads()
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.at = _Position()
        self.history: list[dict[str, Any]] = []
        self.log: MetricsLog | None = None
        self._unseen: _Unseen | None = None

    def run(self, resume: bool = False) -> Result:
        """Train to the end, from the last checkpoint if `resume` and there is one.

        Raises TrainingError on a NaN loss, scores that are not finite or an emptied layer, naming
        layer and step; ValueError if the folder's run has another recipe.
        """
        resumed = resume and self._last.is_file()
        if resumed:
            self._restore()
        with computing(self.threads, self.recipe.deterministic, self.device):
            if not resumed:
                self._start()
            total = self.recipe.epochs * len(self.loader)
            done = self.at.epoch * len(self.loader) + self.at.step
            title = f"{self.recipe.model} on {self.dataset.name}"
            with RunProgress(title, total, done, quiet=self.quiet) as progress:
                while self.at.epoch < self.recipe.epochs:
                    self._epoch(progress)
            return self._finish()

    def _loader(self, *, train: bool, layout: torch.memory_format) -> Loader:
        return Loader(
            self.dataset.train if train else self.dataset.test,
            self.recipe.batch_size if train else max(self.recipe.batch_size, self.world.size),
            mean=self.dataset.mean,
            std=self.dataset.std,
            train=train,
            seed=self.recipe.seed,
            augment=self.recipe.augment,
            mixing=self.recipe.mixing(),
            rank=self.world.rank,
            world_size=self.world.size,
            device=self.device,
            memory_format=layout,
        )

    @property
    def _last(self) -> Path:
        return self.out_dir / "last.safetensors"

    def _start(self) -> None:
        self.amp = resolve_amp(self.recipe.amp, self.device)
        self._set_sparsity(0)
        if self.world.first:
            self.log = MetricsLog(self.out_dir)
        self._save()

    def _set_sparsity(self, epoch: int) -> None:
        recipe = self.recipe
        if recipe.progressive_epochs and not recipe.dense:
            set_sparsity(
                self.model, cubic_sparsity(epoch, recipe.progressive_epochs, recipe.sparsity)
            )

    def _epoch(self, progress: RunProgress) -> None:
        at = self.at
        rate = learning_rate(self.recipe, at.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if at.step == 0:
            self._set_sparsity(at.epoch)
        self.net.train()
        sums = torch.tensor(at.sums, dtype=torch.float64, device=self.device)
        first_step, started = at.step, time.monotonic()
        clock = started
        for images, labels in self.loader.epoch(at.epoch, at.step):
            progress.step(self._step(images, labels, sums))
            at.step += 1
            now = time.monotonic()
            if at.step < len(self.loader) and self._checkpoint_due(now - clock):
                at.seconds += now - clock
                clock = now
                self._see_loss()
                at.sums = _triple(sums)
                self._save()
        self._see_loss()
        rate_seen = (at.step - first_step) * self.recipe.batch_size / (time.monotonic() - started)
        self.world.share_statistics(self.model)
        with self._naming_the_step():
            result = run_evaluation(self.model, self.test_loader, self.world)
        at.seconds += time.monotonic() - clock
        loss, correct, count = self.world.gather(sums).sum(0).tolist()
        row = {
            "epoch": at.epoch + 1,
            "step": (at.epoch + 1) * len(self.loader),
            "lr": rate,
            "train_loss": loss / count,
            "train_accuracy": correct / count,
            "test_loss": result.loss,
            "test_accuracy": result.accuracy,
            "sparsity": self._realised_sparsity(),
            "seconds": at.seconds,
            "images_per_second": rate_seen,
        }
        self._end_epoch(row)
        progress.epoch(row, self.recipe.epochs)
        if self.on_epoch is not None and self.world.first:
            self.on_epoch(row)

    def _end_epoch(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.log is not None:
            self.log.write(row)
        at = self.at
        better = row["test_accuracy"] > at.best
        at.best = max(at.best, row["test_accuracy"])
        at.epoch, at.step, at.sums = at.epoch + 1, 0, (0.0, 0.0, 0.0)
        self._save(best=better)

    def _step(self, images: Tensor, labels: Tensor, sums: Tensor) -> float | None:
        """One step. Adds loss * images, correct answers and images to `sums`.

        Returns the loss, or None where looking at it would make the GPU wait.
        """
        recipe, at = self.recipe, self.at
        torch.manual_seed(_step_seed(recipe.seed, at.epoch, at.step, self.world.rank))
        with self._naming_the_step():
            self._select()
            with autocast(self.amp, self.device):
                logits = self.net(images)
            logits, views = logits[: len(labels)], logits
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            if recipe.jsd:
                loss = loss + recipe.jsd * jensen_shannon(views.float().chunk(VIEWS))
        self._see_loss()  # of the step before: by now it is there
        self._unseen = _Unseen(loss.detach(), images, at.step)
        value = self._see_loss() if self.device.type == "cpu" else None
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self._optimize()
        with torch.no_grad():
            sums[0] += loss.detach().double() * len(labels)
            sums[1] += (logits.argmax(1) == labels).sum()
            sums[2] += len(labels)
        return value

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimiser of everything that is trained."""
        return make_optimizer(self.recipe, self.trained)

    def _select(self) -> None:
        """Bring the masks up to date before a step's forward pass."""
        update_masks(self.model)

    def _optimize(self) -> None:
        """What follows the backward pass: clipping and the optimiser's step."""
        if self.recipe.grad_clip > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained, self.recipe.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _realised_sparsity(self) -> float:
        """The fraction pruned now, for the metrics."""
        return realised_sparsity(self.model).total

    def _extra(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able state that a checkpoint holds besides the trainer's own."""
        return {}, {}

    def _restore_extra(self, found: checkpoint.Checkpoint) -> None:
        """Take back what `_extra` gave."""
        if "sparse" in found.state:
            raise TrainingError(
                f"{self._last}: a run of sparse training; resume it with `mpt-fast rigl --resume` "
                "or mpt_fast.sparse.train"
            )

    def _see_loss(self) -> float | None:
        """The newest loss not seen yet; TrainingError naming layer and step if it is not finite."""
        if self._unseen is None:
            return None
        loss, images, step = self._unseen
        self._unseen = None
        value = float(loss)
        if math.isfinite(value):
            return value
        with autocast(self.amp, self.device):
            culprit = first_non_finite(self.model, images)
        raise TrainingError(
            f"{self._where(step)}: the loss is {value}, first seen in {culprit}; "
            "lower lr, add warmup_epochs or set grad_clip"
        )

    def _where(self, step: int) -> str:
        return f"epoch {self.at.epoch + 1}, step {step + 1}"

    @contextlib.contextmanager
    def _naming_the_step(self) -> Iterator[None]:
        """Selection says which layer is empty or not finite; this adds when."""
        try:
            yield
        except ValueError as error:
            remedy = ""
            if isinstance(error, EmptiedLayerError) and not self.recipe.progressive_epochs:
                remedy = ", or let the sparsity rise slowly with progressive_epochs"
            raise TrainingError(f"{self._where(self.at.step)}: {error}{remedy}") from error

    def _checkpoint_due(self, seconds: float) -> bool:
        steps = self.cadence.steps
        if steps and self.at.step % steps == 0:
            return True
        return self.world.size == 1 and 0 < self.cadence.seconds <= seconds

    def _save(self, *, best: bool = False) -> None:
        """Write `last`, and `best` before it if asked. Every rank must come here."""
        with self._naming_the_step():
            update_masks(self.model)  # the stored thresholds must be those of the stored scores
            codes = {name: layer.sign_code() for name, layer in ticket_layers(self.model).items()}
        self._compare_masks(codes)
        check_finite(self.model, self._where(self.at.step))
        at = self.at
        sums = self.world.gather(torch.tensor(at.sums, dtype=torch.float64, device=self.device))
        if self.log is None:
            return
        state = {
            "recipe": self.recipe.to_dict(),
            "input_shape": self.dataset.image_shape,
            "num_classes": self.dataset.num_classes,
            "data": snapshot.fingerprint(self.dataset),
            "sparsity": next((x.sparsity for x in ticket_layers(self.model).values()), 0.0),
            "world_size": self.world.size,
            "amp": self.amp,
            "threads": self.threads,
            "epoch": at.epoch,
            "step": at.step,
            "best": at.best,
            "seconds": at.seconds,
            "sums": sums.tolist(),
            "frozen": self.frozen,
            "scaler": self.scaler.state_dict(),
            "metrics": self.log.offsets,
            "history": self.history,
        }
        model = snapshot.model_tensors(self.model)
        extra_tensors, extra_state = self._extra()
        state |= extra_state
        if best:
            checkpoint.write(self.out_dir / "best.safetensors", model, state)
        tensors = model | snapshot.optimizer_tensors(self.optimizer) | extra_tensors
        checkpoint.write(self._last, tensors, state)

    def _compare_masks(self, codes: Mapping[str, Tensor]) -> None:
        if self.world.size == 1:
            return
        digests = self.world.gather(torch.tensor(mask_digest(codes), device=self.device)).tolist()
        if len(set(digests)) > 1:
            raise TrainingError(
                f"{self._where(self.at.step)}: the processes hold different masks; "
                "run them on equal devices and software"
            )

    def _restore(self) -> None:
        found = checkpoint.read(self._last)
        state = found.state
        snapshot.check_same_run(state, self.recipe, self.dataset, self.world, self.out_dir)
        self.amp = resolve_amp(state["amp"], self.device)
        self.threads = state["threads"]
        snapshot.assume_sparsity(self.model, state["sparsity"])
        snapshot.load_model(self.model, found, self._last)
        check_frozen(self.model, state["frozen"])
        snapshot.restore_optimizer(self.optimizer, found.tensors)
        self._restore_extra(found)
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.at = _Position(
            epoch=state["epoch"],
            step=state["step"],
            best=state["best"],
            seconds=state["seconds"],
            sums=tuple(state["sums"][self.world.rank]),
        )
        if self.world.first:
            self.log = MetricsLog(self.out_dir, state["metrics"])

    def _finish(self) -> Result:
        check_frozen(self.model, self.frozen)
        self.model.eval()
        last = self.history[-1]
        result = Result(
            accuracy=last["test_accuracy"],
            best_accuracy=self.at.best,
            history=self.history,
            model=self.model,
            recipe=self.recipe,
            seconds=self.at.seconds,
            steps=last["step"],
            out_dir=self.out_dir,
        )
        if self.log is not None:
            summary = {
                "accuracy": result.accuracy,
                "best_accuracy": result.best_accuracy,
                "loss": last["test_loss"],
                "sparsity": last["sparsity"],
                "steps": result.steps,
                "seconds": result.seconds,
                "amp": self.amp,
                "threads": self.threads,
                "device": self.device.type,
                "processes": self.world.size,
                "frozen_tensors_unchanged": len(self.frozen),
            }
            text = json.dumps(summary, indent=2) + "\n"
            checkpoint.atomic_write(self.out_dir / "result.json", text.encode())
        return result


def make_optimizer(
    recipe: Recipe, parameters: list[nn.Parameter] | list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The recipe's optimiser of these parameters or parameter groups."""
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            recipe.momentum,
            weight_decay=decay,
            nesterov=recipe.nesterov,
            fused=True,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, weight_decay=decay, fused=True)


def _step_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def _triple(sums: Tensor) -> tuple[float, float, float]:
    loss, correct, count = sums.tolist()
    return loss, correct, count
