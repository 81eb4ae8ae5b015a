"""Training: recordings of a population in, a finished run out."""

from models.training.config import TrainConfig, TrainingError
from models.training.recipe import RECIPES, Recipe
from models.training.run import Run, RunError, load_run
from models.training.train import train

__all__ = ["RECIPES", "Recipe", "Run", "RunError", "TrainConfig", "TrainingError", "load_run", "train"]
