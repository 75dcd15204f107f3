"""The data that all methods of a study share: splits, leak check, foundation models, calibration."""

import copy
import random
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from cli.atomic import read_json
from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.leaks import HeldOut
from compare.memory import PeakMemory
from configs.study_recipe import StudyRecipe
from data.items import Item, Task
from data.prepare import prepare
from data.splits import read_documents, read_shuffled, subsample
from data.tasks import load_task
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.preflight import uses_bfloat16

GENERAL_DOCUMENTS = 16
GENERAL_CHARS = 1000  # at most, of each
VALIDATION_BYTES = 8192  # of text, that choose settings
CHECKPOINT_BYTES = 2048  # of these, that choose the checkpoint, thirteen times in every training
MIN_VALIDATION, MAX_VALIDATION = 16, 64  # labelled items that choose settings, for any number of training items
CHECKPOINT_ITEMS = 24  # of these, that choose the checkpoint
SEARCH_SEED = 1_000_000  # of the cells that choose settings; no score on the test split uses it

MIN_TEXT = 4  # bytes: a rest of a text that is not worth scoring

T = TypeVar("T")


class Cell(NamedTuple):
    """One measurement: a method on an axis, at one size, with one seed, budget and foundation."""

    method: str
    axis: str
    """"text" or "task"."""
    size: float
    """On "text" a share of the training documents, on "task" a number of labelled items."""
    seed: int
    """SEARCH_SEED: the cell tries settings, and its row has no scores."""
    factor: float = 1.0
    """The budget, as a multiple of `budget_seconds`."""
    foundation: str = ""
    """The foundation model; empty: the study's only one, or none is used."""

    @property
    def name(self) -> str:
        """The stem of the cell's file names."""
        seed = "search" if self.seed == SEARCH_SEED else str(self.seed)
        parts = [f"{self.method}-{self.axis}-{self.size:g}-{seed}"]
        parts += [f"x{self.factor:g}"] if self.factor != 1 else []
        parts += ["".join(c if c.isalnum() else "_" for c in self.foundation)] if self.foundation else []
        return "-".join(parts)

    @property
    def is_search(self) -> bool:
        """Whether the cell chooses a setting."""
        return self.seed == SEARCH_SEED

    @property
    def search(self) -> "Cell":
        """The cell that chooses this one's setting."""
        return self._replace(seed=SEARCH_SEED)


def load_study_task(recipe: StudyRecipe) -> Task:
    """The task of a study; a task without items if the study measures text only."""
    if not recipe.task.name:
        return Task(recipe.task.field, recipe.task.answer, [], [], [], [])
    return load_task(recipe.task, recipe.data)


class Study:
    """The splits and items of a study, the same for all cells; loaded once per process.

    Held-out items and documents that also occur in the training split are removed first. All data
    for training, retrieval or prompts then passes a leak check, which refuses copies of the
    remaining held-out texts. Raises UserError if no held-out data remains.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.memory = PeakMemory(self.device)
        self.recipe = load(StudyRecipe, folder / "config.toml")
        self.documents = prepare(self.recipe.data)
        self._foundation: tuple[str, Transformer, Tokenizer] | None = None
        self._cache: dict = {}
        self.untuned_general_bits: dict[str, float] = {}  # by foundation
        task = load_study_task(self.recipe)
        rows = list(islice(read_shuffled(self.documents, "test"), self.recipe.test_documents))
        texts = [row["text"] for row in rows]
        all_held_out = HeldOut([*texts, *(item.text for item in (*task.test, *task.validation))])
        train_texts = (row["text"] for row in read_documents(self.documents, "train"))
        copied = all_held_out.find_copies([*train_texts, *(item.text for item in task.train)])
        self.left_out = len(copied)
        removed = {all_held_out.texts[number] for number in copied}
        self.test = [row["text"] for row in rows if row["text"] not in removed]
        self.test_groups = [row["group"] for row in rows if row["text"] not in removed]
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
        """The cached result of `make`, shared by the tried settings of a cell; and whether it was cached before."""
        was_cached = key in self._cache
        if not was_cached:
            self._cache[key] = make()
        return self._cache[key], was_cached

    def start_cell(self, cell: Cell) -> None:
        """Forget what only the cell before this one used; what is held from now on does not count as this one's."""
        if self._foundation and self._foundation[0] != self.foundation_name(cell):
            self._foundation = None
        self._cache.clear()
        self.memory.start()

    def share_folder(self, cell: Cell) -> Path:
        """The prepared folder with the cell's share of the training documents, sampled by its seed."""
        return subsample(self.documents, cell.size, cell.seed)

    def training_texts(self, cell: Cell, share: float | None = None) -> list[str]:
        """The cell's share of the training documents, or another, after the leak check."""
        folder = self.share_folder(cell if share is None else cell._replace(size=share))
        texts = [row["text"] for row in read_documents(folder, "train")]
        self.held_out.refuse_copies(cell.method, texts)
        return texts

    def validation_texts(self, size: int) -> list[str]:
        """The first `size` bytes of the shuffled validation split, the same for all methods; the last text is cut."""
        texts: list[str] = []
        for row in read_shuffled(self.documents, "validation"):
            texts.append(row["text"].encode()[:size].decode(errors="ignore"))
            size -= len(texts[-1].encode())
            if size < MIN_TEXT:
                break
        return texts

    def labelled_task(self, cell: Cell, count: int) -> Task:
        """The task with `count` training items, sampled by the cell's seed, after the leak check.

        It has as many validation items, at least 16 and at most 64. More would be labels that the
        size does not count (Perez et al. 2021, arXiv:2105.11447).
        """
        items: list[Item] = list(self.task.train)
        random.Random(cell.seed).shuffle(items)
        self.held_out.refuse_copies(cell.method, [item.text for item in items[:count]])
        validation = self.task.validation[: min(max(count, MIN_VALIDATION), MAX_VALIDATION)]
        return self.task._replace(train=items[:count], validation=validation)

    def foundation_name(self, cell: Cell) -> str:
        """The foundation model that the cell uses, if it uses any."""
        return cell.foundation or self.recipe.foundations[0]

    def load_foundation(self, cell: Cell) -> tuple[Transformer, Tokenizer]:
        """A copy of the foundation model in float32, and its tokenizer; the file is read once per process."""
        name = self.foundation_name(cell)
        if self._foundation is None or self._foundation[0] != name:
            self._foundation = name, *load_model(name)
        _, model, tokenizer = self._foundation
        return copy.deepcopy(model).to(self.device), tokenizer

    @cached_property
    def general_texts(self) -> list[str]:
        """Held-out documents of the general corpus, to measure forgetting; empty if the study names none."""
        if not self.recipe.general:
            return []
        data = self.recipe.data.model_copy(update={"corpus": self.recipe.general, "group_field": ""})
        rows = islice(read_shuffled(prepare(data), "test"), GENERAL_DOCUMENTS)
        return [row["text"][:GENERAL_CHARS] for row in rows]

    @cached_property
    def calibration(self) -> dict:
        """What compare.calibrate has measured. Raises UserError if it is missing."""
        found = read_json(self.folder / "calibration.json")
        if not isinstance(found, dict):
            raise UserError(f"{self.folder}/calibration.json is missing or damaged; run the study with --resume")
        return found


def prepare_inference(model: Transformer) -> Transformer:
    """`model` itself in evaluation mode, in bfloat16 where that is faster."""
    model.eval()
    return model.bfloat16() if uses_bfloat16("auto", model, model.device) else model


def text_bytes(texts: Sequence[str]) -> float:
    """Size of the texts in UTF-8, in bytes."""
    return float(sum(len(text.encode()) for text in texts))
