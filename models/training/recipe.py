"""Recipes for recordings: how the learned branch comes about. Names that `TrainConfig.recipe` may hold."""

from dataclasses import dataclass

from models.training.config import TrainingError

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`learned`: whether a network is trained; `description`: one sentence for the user."""

    name: str
    learned: bool
    description: str


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(
            "episodic", True, "a small network trained on episodes of few windows a person, beside hand-made features"
        ),
        Recipe("handmade", False, "hand-made features alone: seconds, and the same personal heads"),
    )
}


def recipe(name: str) -> Recipe:
    """Return a recipe by name; raises `TrainingError` listing the known ones."""
    if name not in RECIPES:
        raise TrainingError(f"There is no recipe '{name}'; there are: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]
