"""What each of two processes does for test_processes.py: a script, started by torchrun.

Argument: the folder that gets the runs and, from each rank, `rank<r>.json` and
`rank<r>-<run>.safetensors` with every score, weight, sign code and running statistic it holds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mpt_fast.selection import ticket_layers
from mpt_fast.training import Recipe, Result, Trainer, TrainingError, train
from mpt_fast.training.distributed import World, processes

TINY = {
    "model": "conv2",
    "width": 0.125,
    "data": "digits",
    "epochs": 2,
    "batch_size": 256,
    "augment": "crop",
    "amp": "none",
    "threads": 1,
}
BINARY = {"activation": "binary", "bn": "affine", "optimizer": "adam", "lr": 0.02}


class StopHereError(Exception):
    """Ends a run where a test wants it to end."""


def keep(result: Result, path: Path) -> None:
    state = {name: value.contiguous() for name, value in result.model.state_dict().items()}
    layers = ticket_layers(result.model)
    codes = {f"{name}.code": layer.sign_code().contiguous() for name, layer in layers.items()}
    save_file(state | codes, path)


def before_step(number: int, action: Any) -> Any:
    """Do `action(trainer)` before step `number` (from 0) of the second epoch; undo by calling."""
    take_step = Trainer._step

    def step(self: Trainer, *args: Any) -> float | None:
        if (self.at.epoch, self.at.step) == (1, number):
            action(self)
        return take_step(self, *args)

    Trainer._step = step  # type: ignore[method-assign, assignment]  # put back by the caller
    return take_step


def interrupted(recipe: Recipe, folder: Path) -> Result:
    """A run stopped in its second epoch after a checkpoint within it, and resumed."""

    def stop(trainer: Trainer) -> None:
        raise StopHereError

    take_step = before_step(3, stop)
    try:
        train(recipe, folder, device="cpu", checkpoint_steps=2)
    except StopHereError:
        pass
    finally:
        Trainer._step = take_step  # type: ignore[method-assign]  # as it was
    return train(recipe, folder, True, device="cpu", checkpoint_steps=2)


def diverged(recipe: Recipe, folder: Path, world: World) -> str:
    """The error of a run in which one rank's scores were changed."""

    def change(trainer: Trainer) -> None:
        if world.rank == 1:
            with torch.no_grad():
                trainer.model.get_parameter("convs.0.scores").neg_().mul_(0.5)

    take_step = before_step(1, change)
    try:
        train(recipe, folder, device="cpu")
    except TrainingError as error:
        return str(error)
    finally:
        Trainer._step = take_step  # type: ignore[method-assign]  # as it was
    return "no error"


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    with processes("cpu") as world:
        float_run = train(Recipe.from_dict(TINY), out / "float", device="cpu")
        keep(float_run, out / f"rank{world.rank}-float.safetensors")
        binary = Recipe.from_dict(TINY | BINARY)
        keep(
            train(binary, out / "binary", device="cpu"),
            out / f"rank{world.rank}-binary.safetensors",
        )
        resumed = interrupted(binary, out / "resumed")
        keep(resumed, out / f"rank{world.rank}-resumed.safetensors")
        facts = {
            "world": [world.rank, world.size],
            "history": float_run.history,
            "resumed": [row["train_loss"] for row in resumed.history],
            "diverged": diverged(Recipe.from_dict(TINY), out / "diverged", world),
        }
        (out / f"rank{world.rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
