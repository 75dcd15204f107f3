"""What every method of a study is given: the same held-out text and items, budget and seed."""

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.leaks import HeldOut
from configs.schema import TrainConfig
from configs.study_recipe import StudyRecipe
from data.items import Item, Task
from data.prepare import prepare, read_documents, read_shuffled, subsample
from data.tasks import load_task
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.preflight import uses_bfloat16

GENERAL = 32  # documents of general text, of at most so many characters:
GENERAL_CHARS = 1000
LEAST = 16  # labelled items that choose settings and checkpoint, or as many as are learnt from


T = TypeVar("T")


class Cell(NamedTuple):
    """One measurement: an method that learns from `size` of the text or of the task, once per seed."""

    method: str
    axis: str
    """"text" (size: a share of the training documents) or "task" (a number of labelled items)."""
    size: float
    seed: int

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.method}-{self.axis}-{self.size:g}-{self.seed}"

    def as_row(self) -> dict:
        """The keys of a ledger row; the format of the ledger calls the method "arm"."""
        return {"arm": self.method, "axis": self.axis, "size": self.size, "seed": self.seed}


def task_of(recipe: StudyRecipe) -> Task:
    """The task of a study; one without items if it names none and measures text alone."""
    if not recipe.task.name:
        return Task(recipe.task.field, recipe.task.answer, [], [], [], [])
    return load_task(recipe.task, recipe.data)


class Study:
    """Splits, items and budget, as every method sees them.

    Held-out items and documents that also stand in the training split are left out before anything
    is measured; whatever an method learns from, retrieves or shows goes through `allow`, which refuses
    a copy of what is left.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self._made: dict = {}
        self.recipe = load(StudyRecipe, folder / "config.toml")
        self.documents = prepare(self.recipe.data)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        task = task_of(self.recipe)
        texts = [row["text"] for row in read_shuffled(self.documents, "test")]
        texts = texts[: self.recipe.test_documents]
        asked = [item.text for item in (*task.test, *task.validation)]
        every = HeldOut([*texts, *asked])
        self.all_texts = [row["text"] for row in read_documents(self.documents, "train")]
        learnable = [item.text for item in task.train]
        dropped = every.copies([*self.all_texts, *learnable])
        self.left_out = len(dropped)
        gone = {every.texts[number] for number in dropped}
        self.test = [text for text in texts if text not in gone]
        self.task: Task = task._replace(
            test=[item for item in task.test if item.text not in gone],
            validation=[item for item in task.validation if item.text not in gone],
        )
        if not self.test or (task.test and not (self.task.test and self.task.validation)):
            raise UserError("nothing is left to measure on: all that is held out is also trained on")
        self.held_out = HeldOut([text for text in every.texts if text not in gone])
        if dropped:
            say(f"{len(dropped)} held-out texts stand in the training split: left out")

    def once(self, key: tuple, make: Callable[[], T]) -> tuple[T, bool]:
        """What `make` gives, made for the first setting that is tried; whether that was before."""
        known = key in self._made
        if not known:
            self._made[key] = make()
        return self._made[key], known

    def allow(self, place: str, texts: Sequence[str]) -> list[str]:
        """`texts`, which an method is about to see. Raises UserError if one holds what is held out."""
        self.held_out.refuse(place, texts)
        return list(texts)

    def part(self, share: float) -> Path:
        """The prepared folder whose training split is a share of the documents, by this seed."""
        return subsample(self.documents, share, self.seed)

    def texts(self, share: float, place: str) -> list[str]:
        """The training documents of a share, which `place` is about to see."""
        return self.allow(place, [row["text"] for row in read_documents(self.part(share), "train")])

    def labelled(self, count: int, place: str) -> Task:
        """The task with `count` training items, drawn by this seed, which `place` is to see.

        It has as many to validate on (Perez et al. 2021, arXiv:2105.11447: more would be labels
        that the size does not count), 16 at least.
        """
        items: list[Item] = list(self.task.train)
        random.Random(self.seed).shuffle(items)
        self.allow(place, [item.text for item in items[:count]])
        validation = self.task.validation[: max(count, LEAST)]
        return self.task._replace(train=items[:count], validation=validation)

    def budget(self, settings: TrainConfig, rate: float) -> TrainConfig:
        """`settings` with this seed, a rate, and the budget in seconds or in FLOPs."""
        changes: dict = {"seed": self.seed, "learning_rate": rate}
        if self.recipe.budget_flops:
            changes["max_flops"] = self.recipe.budget_flops
        else:
            changes["max_seconds"] = self.recipe.budget_seconds
        return settings.model_copy(update=changes)

    def foundation(self) -> tuple[Transformer, Tokenizer]:
        """The pretrained model in float32, and its tokenizer."""
        model, tokenizer = load_model(self.recipe.foundation)
        return model.to(self.device), tokenizer

    @cached_property
    def general(self) -> list[str]:
        """Held-out documents of general text."""
        data = self.recipe.data.model_copy(update={"corpus": self.recipe.general, "group_field": ""})
        rows = read_shuffled(prepare(data), "test")[:GENERAL]
        return [row["text"][:GENERAL_CHARS] for row in rows]


def inference(model: Transformer) -> Transformer:
    """`model` itself, ready to score: in bfloat16 where that is what pays."""
    model.eval()
    return model.bfloat16() if uses_bfloat16("auto", model, model.device) else model
