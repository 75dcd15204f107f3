"""The data and budget that all methods of a study share: splits, leak check, seed and budget."""

import random
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.leaks import HeldOut
from configs.study_recipe import StudyRecipe
from data.items import Item, Task
from data.prepare import prepare
from data.splits import read_documents, read_shuffled, subsample
from data.tasks import load_task
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.preflight import uses_bfloat16

GENERAL_DOCUMENTS = 32
GENERAL_CHARS = 1000  # at most, of each
MIN_VALIDATION = 16  # labelled items for validation, also where fewer are used for training


T = TypeVar("T")


class Cell(NamedTuple):
    """One measurement: a method on an axis, at one size, with one seed."""

    method: str
    axis: str
    """"text" or "task"."""
    size: float
    """On "text" a share of the training documents, on "task" a number of labelled items."""
    seed: int

    @property
    def name(self) -> str:
        """The stem of the cell's file names."""
        return f"{self.method}-{self.axis}-{self.size:g}-{self.seed}"


def load_study_task(recipe: StudyRecipe) -> Task:
    """The task of a study; a task without items if the study measures text only."""
    if not recipe.task.name:
        return Task(recipe.task.field, recipe.task.answer, [], [], [], [])
    return load_task(recipe.task, recipe.data)


class Study:
    """The splits, items and budget of a study for one seed.

    Held-out items and documents that also occur in the training split are removed first. All data
    for training, retrieval or prompts then passes a leak check, which refuses copies
    of the remaining held-out texts. Raises UserError if no held-out data remains.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self._cache: dict = {}
        self.recipe = load(StudyRecipe, folder / "config.toml")
        self.documents = prepare(self.recipe.data)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        task = load_study_task(self.recipe)
        texts = [row["text"] for row in islice(read_shuffled(self.documents, "test"), self.recipe.test_documents)]
        all_held_out = HeldOut([*texts, *(item.text for item in (*task.test, *task.validation))])
        train_texts = (row["text"] for row in read_documents(self.documents, "train"))
        copied = all_held_out.find_copies([*train_texts, *(item.text for item in task.train)])
        self.left_out = len(copied)
        removed = {all_held_out.texts[number] for number in copied}
        self.test = [text for text in texts if text not in removed]
        self.task: Task = task._replace(
            test=[item for item in task.test if item.text not in removed],
            validation=[item for item in task.validation if item.text not in removed],
        )
        if not self.test or (task.test and not (self.task.test and self.task.validation)):
            raise UserError(
                f"{folder}: no held-out data remains, all of it also occurs in the training split; "
                "remove duplicates between the splits"
            )
        self.held_out = HeldOut([text for text in all_held_out.texts if text not in removed])
        if copied:
            say(f"leak check: {len(copied)} held-out texts occur in the training split and are removed")

    def make_once(self, key: tuple, make: Callable[[], T]) -> tuple[T, bool]:
        """The cached result of `make`, shared by all tried settings; and whether it was cached before."""
        was_cached = key in self._cache
        if not was_cached:
            self._cache[key] = make()
        return self._cache[key], was_cached

    def share_folder(self, share: float) -> Path:
        """The prepared folder with a share of the training documents, sampled by this seed."""
        return subsample(self.documents, share, self.seed)

    def training_texts(self, share: float, place: str) -> list[str]:
        """A share of the training documents, after the leak check for `place`."""
        texts = [row["text"] for row in read_documents(self.share_folder(share), "train")]
        self.held_out.refuse_copies(place, texts)
        return texts

    def labelled_task(self, count: int, place: str) -> Task:
        """The task with `count` training items, sampled by this seed, after the leak check for `place`.

        It has as many validation items, at least 16. More would be labels that the size does not
        count (Perez et al. 2021, arXiv:2105.11447).
        """
        items: list[Item] = list(self.task.train)
        random.Random(self.seed).shuffle(items)
        self.held_out.refuse_copies(place, [item.text for item in items[:count]])
        validation = self.task.validation[: max(count, MIN_VALIDATION)]
        return self.task._replace(train=items[:count], validation=validation)

    def load_foundation(self) -> tuple[Transformer, Tokenizer]:
        """The foundation model in float32, and its tokenizer."""
        model, tokenizer = load_model(self.recipe.foundation)
        return model.to(self.device), tokenizer

    @cached_property
    def general_texts(self) -> list[str]:
        """Held-out documents of the general corpus, to measure forgetting."""
        data = self.recipe.data.model_copy(update={"corpus": self.recipe.general, "group_field": ""})
        rows = islice(read_shuffled(prepare(data), "test"), GENERAL_DOCUMENTS)
        return [row["text"][:GENERAL_CHARS] for row in rows]


def prepare_inference(model: Transformer) -> Transformer:
    """`model` itself in evaluation mode, in bfloat16 where that is faster."""
    model.eval()
    return model.bfloat16() if uses_bfloat16("auto", model, model.device) else model
