"""What a method is: how it is trained, what it can do then, and what it costs."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from compare.context import Cell, Study
from configs.study_recipe import StudyRecipe
from data.items import Item

Setting = dict[str, Any]
"""Hyperparameters of one try."""


@runtime_checkable
class TextModel(Protocol):
    """A method that predicts text."""

    def bits(self, texts: Sequence[str]) -> list[float]:
        """Bits of each text."""


@runtime_checkable
class TaskModel(Protocol):
    """A method that answers items."""

    def answers(self, items: Sequence[Item]) -> dict:
        """The keys of `prompting.answers.answer_task`: "correct" per item, and others."""


@runtime_checkable
class Writer(Protocol):
    """A method that writes text."""

    def write(self, text: str) -> str:
        """The continuation of a text, or the answer to an input."""


@runtime_checkable
class Forgets(Protocol):
    """A method that started from a foundation model, which knew general text."""

    def general_bits(self, texts: Sequence[str]) -> list[float]:
        """Bits of each general text."""


@dataclass
class Learned:
    """A method after training."""

    model: TextModel | TaskModel
    seen_texts: Sequence[str]
    """All texts for training, retrieval or prompts, for the overlap with the held-out texts."""
    costs: dict[str, float] = field(default_factory=dict)
    """training_seconds, training_flops, trained_parameters, stored_bytes, training_tokens."""
    reused_costs: dict[str, float] = field(default_factory=dict)
    """The part of the costs, as "seconds" and "flops", that an earlier try of this cell has counted."""
    save: Callable[[], None] | None = None
    """Writes the model that other methods start from."""


class Method(NamedTuple):
    """One approach to a domain model."""

    learn: Callable[[Study, Cell, Setting], Learned]
    sizes: dict[str, str]
    """The kind of size for "text" and "task", if it is measured there: "share" or "labels" (those of
    the study), "shots" (items in a prompt), "one" (one item), or "none"."""
    data: str
    """The data that it uses, in words, for the report."""
    family: str
    """"scratch", "tuned", "prompted" or "baseline"."""
    choices: dict[str, tuple[Setting, ...]] | None = None
    """The settings to choose from on an axis; otherwise the learning rates of `recipe_table`, if it has one."""
    recipe_table: str = ""
    """The table of the recipe with its settings, or with those of its base method."""
    base_method: str = ""
    """The method whose model (all of the text, same seed) it starts from."""
    is_seeded: bool = True
    """Whether its result depends on the seed; otherwise it is measured with one seed."""
    is_trained: bool = False
    """Whether it spends the budget on steps."""

    def settings(self, recipe: StudyRecipe, axis: str, factor: float = 1.0) -> list[Setting]:
        """The settings to try on an axis: as many as every other method, or one without hyperparameters.

        From scratch, `factor` times the budget takes a lower learning rate: divided by the square root of the
        factor. The best rate falls with the length of pretraining (Bjorck et al. 2024, arXiv:2409.19913).
        """
        if self.choices:
            return list(self.choices.get(axis, ({},))[: recipe.tries])
        if self.recipe_table:
            middle = getattr(getattr(recipe, self.recipe_table), f"{axis}_rate")
            longer = max(1.0, factor) if self.family == "scratch" else 1.0
            return [{"rate": rate} for rate in recipe.rates(middle / longer**0.5)]
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

    @property
    def uses_foundation(self) -> bool:
        """Whether it starts from a foundation model."""
        return self.family in ("tuned", "prompted")


def score_labels(items: Sequence[Item], chosen: Iterable[str], confidence: Iterable[float]) -> dict:
    """The keys "correct" and "confidence" of `TaskModel.answers`, for the label chosen for each item."""
    correct = [float(label == item.label) for label, item in zip(chosen, items, strict=True)]
    return {"correct": correct, "confidence": [float(x) for x in confidence]}


def is_base(cell: Cell) -> bool:
    """Whether other methods may start from the cell's model."""
    return cell.axis == "text" and cell.size == cell.factor == 1.0


def models_folder(study: Study, cell: Cell) -> Path:
    """Where the model of a cell lies, for the methods that start from it."""
    return study.folder / "models" / cell.name


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`, in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    source.rename(target)
