"""The definition of a method, and its result after training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from compare.context import Cell, Study
from configs.study_recipe import StudyRecipe
from data.items import Item

Setting = dict[str, Any]
"""Hyperparameters of one try."""


@dataclass
class Learned:
    """A method after training: how to score it, and its costs."""

    seen_texts: Sequence[str]
    """All texts for training, retrieval or prompts, for the overlap with the held-out texts."""
    answers: Callable[[str], dict] | None = None
    """For the name of a split: "correct" per item and the other keys of `prompting.answers.answer_task`."""
    bits: Callable[[Sequence[str]], list[float]] | None = None
    """Bits of each text."""
    general_bits: Callable[[Sequence[str]], list[float]] | None = None
    """Bits of each general text, to measure forgetting."""
    write: Callable[[str], str] | None = None
    """The continuation of a text, or the answer to an input."""
    costs: dict[str, float] = field(default_factory=dict)
    """training_seconds, training_flops, trained_parameters, stored_bytes, training_tokens."""
    reused_costs: dict[str, float] = field(default_factory=dict)
    """The part of the costs, as "seconds" and "flops", that an earlier try of this cell has counted."""
    tried: Path | None = None
    """FOLDER.tried with the model of this try, for methods that start from it; the best one becomes FOLDER."""


class Method(NamedTuple):
    """One approach to a domain model."""

    learn: Callable[[Study, Cell, Setting], Learned]
    sizes: dict[str, str]
    """The kind of size for "text" and "task", if it is measured there: "share" or "labels" (those of
    the study), "shots" (items in a prompt), "one" (one item), or "none"."""
    data: str
    """The data that it uses, in words, for the report."""
    choices: dict[str, tuple[Setting, ...]] | None = None
    """The settings to choose from on an axis; otherwise the learning rates of `recipe_table`, if it has one."""
    recipe_table: str = ""
    """The table of the recipe with its settings, or with those of its base method."""
    base_method: str = ""
    """The method whose model (all of the text, same seed) it starts from."""
    is_seeded: bool = True
    """Whether its result depends on the seed; otherwise it is measured with one seed."""

    def settings(self, recipe: StudyRecipe, axis: str) -> list[Setting]:
        """The settings to try on an axis: as many as every other method, or one without hyperparameters."""
        if self.choices:
            return list(self.choices.get(axis, ({},))[: recipe.tries])
        if self.recipe_table:
            return [{"rate": rate} for rate in getattr(getattr(recipe, self.recipe_table), f"{axis}_rates")]
        return [{}]

    def sizes_on(self, axis: str, recipe: StudyRecipe) -> list[float]:
        """The sizes at which the method is measured on an axis; empty if it is not measured there."""
        known = {
            "share": sorted(recipe.shares),
            "labels": sorted(map(float, recipe.labels)),
            "shots": [float(recipe.shots)],
            "one": [1.0],
            "none": [0.0],
        }
        return known[self.sizes[axis]] if axis in self.sizes else []


def score_labels(items: Sequence[Item], chosen: Iterable[str], confidence: Iterable[float]) -> dict:
    """The keys "correct" and "confidence" of `Learned.answers`, for the label chosen for each item."""
    correct = [float(label == item.label) for label, item in zip(chosen, items, strict=True)]
    return {"correct": correct, "confidence": [float(x) for x in confidence]}
