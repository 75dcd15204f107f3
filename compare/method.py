"""What an method is, and what it has become once it has learnt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compare.context import Cell, Study
from configs.study_recipe import StudyRecipe

Setting = dict[str, Any]


@dataclass
class Learned:
    """How an method answers after it has learnt, and what that took."""

    saw: Sequence[str]
    """All texts that it learnt from, retrieves or shows, for the overlap with what is held out."""
    answers: Callable[[str], dict] | None = None
    """Of a split's items: "correct", and what else `prompting.answers.answer_task` tells."""
    bits: Callable[[Sequence[str]], list[float]] | None = None
    """Bits of each text."""
    general: Callable[[Sequence[str]], list[float]] | None = None
    """Bits of each text of another kind."""
    write: Callable[[str], str] | None = None
    """What follows a prompt."""
    prompts: Callable[[Sequence[str]], list[str]] | None = None
    """What is put to the model for each input text."""
    costs: dict[str, float] = field(default_factory=dict)
    """training_seconds, training_flops, trained_parameters, stored_bytes, training_tokens."""
    reused: dict[str, float] = field(default_factory=dict)
    """What of the costs, as seconds and flops, an earlier try of the same cell has paid."""
    keep: Callable[[], object] | None = None
    """Makes it what others go on from: called if no earlier try was better."""


class Method(NamedTuple):
    """A way to a domain model."""

    learn: Callable[[Study, Cell, Setting], Learned]
    settings: Callable[[StudyRecipe, str], list[Setting]]
    """What it may try on an axis: as many as every other method, or one if there is nothing to set."""
    sizes: dict[str, str]
    """For "text" and "task", if it is measured there: what its size is, "share" or "labels" (those
    of the study), "shots" (as many as a prompt shows), "one" (of them), or "none"."""
    sees: str
    """What it may see, in words, for the report."""
    reads: tuple[str, ...] = ()
    """The tables of the recipe that set it, what it needs included."""
    needs: str = ""
    """The method whose model, of the whole text and the same seed, it goes on from."""
    looks_up: bool = False
    """Whether it reads the training text at every request."""
    seeded: bool = True
    """Whether anything is drawn: else one seed says it all."""


def sizes_of(method: Method, axis: str, recipe: StudyRecipe) -> list[float]:
    """The sizes at which an method is measured on an axis; none if it is not."""
    known = {
        "share": sorted(recipe.shares),
        "labels": sorted(map(float, recipe.labels)),
        "shots": [float(recipe.shots)],
        "one": [1.0],
        "none": [0.0],
    }
    return known[method.sizes[axis]] if axis in method.sizes else []


def nothing(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Of an method that has nothing to set."""
    return [{}]
