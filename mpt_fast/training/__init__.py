"""Training: recipes, one trainer for tickets and dense twins, runs that survive being killed.

`train(recipe, folder)` trains; `load_run(folder)` gives the network back; `Recipe` says how, in
YAML or Python. Works alone or under torchrun, on a CPU or a GPU.
"""

from mpt_fast.training.checkpoint import CheckpointError
from mpt_fast.training.evaluation import Evaluation, evaluate
from mpt_fast.training.finetune import finetune_run
from mpt_fast.training.guards import TrainingError
from mpt_fast.training.recipe import Recipe, RecipeError, recipe_for
from mpt_fast.training.run import evaluate_run, load_run, train
from mpt_fast.training.seed_ticket import load_seed_ticket, save_seed_ticket
from mpt_fast.training.trainer import Cadence, Result, Trainer

__all__ = [
    "Cadence",
    "CheckpointError",
    "Evaluation",
    "Recipe",
    "RecipeError",
    "Result",
    "Trainer",
    "TrainingError",
    "evaluate",
    "evaluate_run",
    "finetune_run",
    "load_run",
    "load_seed_ticket",
    "recipe_for",
    "save_seed_ticket",
    "train",
]
