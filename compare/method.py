"""The definition of a method, and its result after training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compare.context import Cell, Study
from configs.study_recipe import StudyRecipe

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
    """The continuation of a prompt."""
    prompts: Callable[[Sequence[str]], list[str]] | None = None
    """The prompt for each input text."""
    costs: dict[str, float] = field(default_factory=dict)
    """training_seconds, training_flops, trained_parameters, stored_bytes, training_tokens."""
    reused_costs: dict[str, float] = field(default_factory=dict)
    """The part of the costs, as "seconds" and "flops", that an earlier try of this cell has counted."""
    save: Callable[[], object] | None = None
    """Saves the model for the methods that start from it; called if no earlier try was better."""


class Method(NamedTuple):
    """One approach to a domain model."""

    learn: Callable[[Study, Cell, Setting], Learned]
    settings: Callable[[StudyRecipe, str], list[Setting]]
    """The settings to try on an axis: as many as every other method, or one without hyperparameters."""
    sizes: dict[str, str]
    """The kind of size for "text" and "task", if it is measured there: "share" or "labels" (those of
    the study), "shots" (items in a prompt), "one" (one item), or "none"."""
    data: str
    """The data that it uses, in words, for the report."""
    recipe_tables: tuple[str, ...] = ()
    """The tables of the recipe with its settings and those of its base method."""
    base_method: str = ""
    """The method whose model (all of the text, same seed) it starts from."""
    retrieves: bool = False
    """Whether it searches the training text at every request."""
    is_seeded: bool = True
    """Whether its result depends on the seed; otherwise it is measured with one seed."""


def sizes_of(method: Method, axis: str, recipe: StudyRecipe) -> list[float]:
    """The sizes at which a method is measured on an axis; empty if it is not measured there."""
    known = {
        "share": sorted(recipe.shares),
        "labels": sorted(map(float, recipe.labels)),
        "shots": [float(recipe.shots)],
        "one": [1.0],
        "none": [0.0],
    }
    return known[method.sizes[axis]] if axis in method.sizes else []


def no_settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """The settings of a method without hyperparameters: one, empty."""
    return [{}]
