"""What stands around a request's text: retrieved passages, or the prompt that a study has kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cli.recipes import load
from configs.prompt_recipe import PromptRecipe
from configs.study_recipe import StudyRecipe
from data.tasks import load_task
from prompting.answers import max_answer_tokens
from prompting.ask import build_prompt
from prompting.evaluate import select_shots
from prompting.shots import fit_prompt
from prompting.store import Store
from tokenizer.bpe import Tokenizer

PASSAGES = 4
SHOWN_ITEMS = 50


class PromptTemplate(NamedTuple):
    """Turns the text of a request into the prompt of a model."""

    build: Callable[[str, int], tuple[str, list[dict[str, Any]]]]
    """(text, most tokens) -> the prompt, and the sources that it quotes. Raises UserError if it does not fit."""
    stop: str
    """Ends the answer, if the request has no stop strings."""


def held_out_items(study: Path) -> list[dict[str, str]]:
    """The first held-out items of a study's task, with their labels; none if it measures text alone."""
    recipe = load(StudyRecipe, study / "config.toml")
    if not recipe.task.name:
        return []
    items = load_task(recipe.task, recipe.data).test[:SHOWN_ITEMS]
    return [{"id": item.id, "text": item.text, "label": item.label} for item in items]


def store_template(folder: Path, tokenizer: Tokenizer) -> PromptTemplate:
    """The question after the passages of a store that fit it best, as prompting.ask writes it."""
    store = Store(folder)

    def build(text: str, most: int) -> tuple[str, list[dict[str, Any]]]:
        prompt, passages = build_prompt(text, store.search(text, PASSAGES), tokenizer, most)
        return prompt, [passage._asdict() for passage in passages]

    return PromptTemplate(build, "\n")


def kept_template(path: Path, tokenizer: Tokenizer) -> PromptTemplate:
    """The input of a task after its instruction and solved examples, from a recipe of prompting.evaluate."""
    recipe = load(PromptRecipe, path)
    task = load_task(recipe.task, recipe.data)
    shots, longest = select_shots(recipe, task), max_answer_tokens(tokenizer, task)

    def build(text: str, most: int) -> tuple[str, list[dict[str, Any]]]:
        prompt, _ = fit_prompt(task, text, shots(text), tokenizer, most - longest)
        return prompt, []

    return PromptTemplate(build, task.stop)
