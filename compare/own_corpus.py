"""A study of the user's own corpus that fits a number of minutes, without a recipe.

Looks at the corpus and the labels, and picks methods, sizes, seeds and the budget. The richest of a
few designs that is estimated to end in time is taken.
"""

import statistics
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cli.console import say
from cli.errors import UserError
from cli.recipes import load
from compare.context import load_study_task
from compare.domains import FEATURE_TOKENS
from compare.domains import SHORT as SHORT_RUNS
from compare.methods import METHODS
from compare.plan import estimate_seconds, plan
from configs.schema import DataConfig, TaskConfig, TokenizerConfig
from configs.study_recipe import ScratchMethod, StudyRecipe
from data.prepare import prepare
from data.splits import load_manifest, read_shuffled
from data.tasks import read_json_rows
from model.formats.gguf import gguf_tokenizer
from model.load import foundation_file

MIN_BYTES = 20_000  # of training text
MIN_DOCUMENTS, MOST_DOCUMENTS = 5, 400  # held out
MOST_SCORED_TOKENS, SCORED_TOKENS_PER_MINUTE = 32_000, 3_200  # of held-out text, by the foundation's tokenizer
SAMPLED_CHARS = 200_000  # of held-out text, whose tokens are counted
MIN_SHARE_BYTES = 4_000  # of the smallest size
MIN_TRAIN_ITEMS, MIN_TEST_ITEMS = 16, 8
FEW_ITEMS = 500  # below, more of the corpus and of the items is held out
SHORT = 5.0  # minutes, below which only distance and baselines are measured
MINUTES = (20, 30, 45, 60, 90, 120)  # of a study that is advised after a prediction
SAFE_LORA_RATE = 3e-3  # docs/log.md, 2026-11-28
SPARE = 0.85  # share of the time that is planned
CALIBRATION_SECONDS = 15.0  # of one kind of training
BUDGETS = (240.0, 120.0, 60.0, 40.0, 20.0)
TEXT = ["xz", "ngram", "zero-shot", "few-shot", "scratch", "lora"]
TASK = ["majority", "tfidf", "zero-shot", "few-shot", "features", "lora", "scratch-supervised"]


class Design(NamedTuple):
    """How much of everything a study measures."""

    seeds: int
    tries: int
    sizes: int
    """Of text and of labels: the largest, and the largest divided by 8, 64 and so on."""


DESIGNS = (Design(3, 3, 4), Design(3, 2, 3), Design(3, 1, 2), Design(1, 1, 2), Design(1, 1, 1))


def recipe_for(corpus: str, labels: str, minutes: float) -> StudyRecipe:
    """The recipe of a study of `corpus`, and of the items of the file `labels` unless it is "".

    Raises UserError, saying what is missing, if the corpus or the labels are too few.
    """
    few = bool(labels) and sum(1 for _ in read_json_rows(Path(labels), "--labels")) < FEW_ITEMS
    data = data_of(corpus, validation_fraction=0.15, test_fraction=0.25) if few else data_of(corpus)
    size, documents = check_size(data, minutes)
    task = TaskConfig(name=labels, train_items=3000, test_items=150)
    base = StudyRecipe(
        data=data,
        task=task,
        general=general_for(corpus),
        test_documents=documents,
        text_methods=TEXT,
        task_methods=TASK,
        scratch=ScratchMethod(tokenizer=TokenizerConfig(vocab_size=vocabulary_for(size), sample_megabytes=20)),
    )
    most_labels = count_labels(base) if labels else 0
    if minutes < SHORT:
        first = {"text_methods": ["xz", "ngram", "zero-shot"], "task_methods": ["majority", "tfidf"], "tries": 1}
        return base.model_copy(update=first | {"labels": [most_labels or 1]})
    for design in DESIGNS:
        for budget in BUDGETS:
            recipe = with_design(base, design, budget, most_labels, size)
            if estimate_minutes(recipe) <= SPARE * minutes:
                return recipe
    say(f"WARNING: the smallest study of {corpus} takes about {estimate_minutes(recipe):.0f} minutes, not {minutes:g}")
    return recipe


def data_of(corpus: str, validation_fraction: float = 0.05, test_fraction: float = 0.1) -> DataConfig:
    """The split of an own corpus: more is held out than by default, as it may be small."""
    return DataConfig(corpus=corpus, validation_fraction=validation_fraction, test_fraction=test_fraction)


def general_for(corpus: str) -> str:
    """The corpus that measures forgetting: the default, unless it is the user's own."""
    default = StudyRecipe.model_fields["general"].default
    return "folk-tunes" if corpus == default else default


def check_size(data: DataConfig, minutes: float) -> tuple[int, int]:
    """The bytes of training text, and the held-out documents to score. Raises UserError if they are too few.

    Of long documents, or in little time, fewer are scored; also of text with many tokens per byte.
    """
    folder = prepare(data)
    splits = load_manifest(folder)["splits"]
    size, documents = splits["train"]["bytes"], splits["test"]["documents"]
    if size < MIN_BYTES or documents < MIN_DOCUMENTS:
        raise UserError(
            f"{data.corpus}: {size:,} bytes of training text and {documents} held-out documents are too few to compare "
            f"methods: it takes {MIN_BYTES:,} and {MIN_DOCUMENTS}; add text"
        )
    return size, count_scored(folder, min(MOST_SCORED_TOKENS, SCORED_TOKENS_PER_MINUTE * minutes))


def count_scored(folder: Path, tokens: float, least: int = MIN_DOCUMENTS) -> int:
    """Number of held-out documents of a prepared corpus with about so many tokens, at least `least`.

    The tokens are those of the default foundation, counted in a sample.
    """
    held_out = load_manifest(folder)["splits"]["test"]["documents"]
    tokenizer = gguf_tokenizer(foundation_file(StudyRecipe.model_fields["foundations"].default[0]))
    chars, counts = 0, []
    for row in read_shuffled(folder, "test"):
        counts.append(len(tokenizer.encode(row["text"])))
        chars += len(row["text"])
        if chars > SAMPLED_CHARS:
            break
    return min(held_out, MOST_DOCUMENTS, max(least, int(tokens / statistics.mean(counts))))


def short_recipe(corpus: str) -> StudyRecipe:
    """What the atlas's predictor needs to know of a corpus: short runs on all of the text, as in the atlas.

    Raises UserError as `recipe_for`.
    """
    data = data_of(corpus)  # that of a full study without labels
    _, documents = check_size(data, FEATURE_TOKENS / SCORED_TOKENS_PER_MINUTE)
    atlas = load(StudyRecipe, Path(str(files("configs"))) / "study" / "atlas.toml")
    changes = {
        "data": data,
        "text_methods": ["xz", "zero-shot", "scratch", "lora"],
        "shares": [1.0],
        "largest_seeds": [],
        "budget_seconds": SHORT_RUNS * atlas.budget_seconds,
        "budget_factors": [],
        "test_documents": documents,
    }
    return atlas.model_copy(update=changes)


def minutes_for(corpus: str, seconds: float) -> int:
    """Minutes of a study of a corpus, without labels, whose trainings take at least so many seconds of one core."""
    threads = torch.get_num_threads()
    enough = (m for m in MINUTES if threads * recipe_for(corpus, "", m).budget_seconds >= seconds)
    return next(enough, MINUTES[-1])


def vocabulary_for(size: int) -> int:
    """A vocabulary for so many bytes of training text: about one token per 500 bytes, between 512 and 8,192."""
    vocabulary = 512
    while vocabulary < 8192 and 2 * vocabulary * 500 <= size:
        vocabulary *= 2
    return vocabulary


def count_labels(recipe: StudyRecipe) -> int:
    """The number of labelled items to train on. Raises UserError if there are too few of them."""
    task = load_study_task(recipe)
    if len(task.train) < MIN_TRAIN_ITEMS or len(task.test) < MIN_TEST_ITEMS:
        raise UserError(
            f"{recipe.task.name}: {len(task.train)} items to train on and {len(task.test)} to test are too few: it "
            f"takes {MIN_TRAIN_ITEMS} and {MIN_TEST_ITEMS}; label more, about 100 in all"
        )
    return min(512, len(task.train))


def with_design(base: StudyRecipe, design: Design, budget: float, most_labels: int, size: int) -> StudyRecipe:
    """`base` with the sizes, seeds, tries and budget of a design, for `size` bytes of training text."""
    shares = [share for i in range(design.sizes) if (share := 8.0**-i) * size >= MIN_SHARE_BYTES]
    labels = sorted({max(MIN_TEST_ITEMS, most_labels // 8**i) for i in range(design.sizes)})
    changes: dict[str, Any] = {"seeds": list(range(design.seeds)), "tries": design.tries, "budget_seconds": budget}
    if design.tries == 1:  # the middle of a search is too high for some corpora
        changes["lora"] = base.lora.model_copy(update={"text_rate": SAFE_LORA_RATE})
    return base.model_copy(update=changes | {"shares": shares[::-1], "labels": labels})


def estimate_minutes(recipe: StudyRecipe) -> float:
    """Minutes that the study takes, with its calibration."""
    cells = plan(recipe)
    kinds = 2 + 2 * bool(recipe.task.name)
    return (sum(estimate_seconds(recipe, cell) for cell in cells) + kinds * CALIBRATION_SECONDS) / 60


def describe(recipe: StudyRecipe, minutes: float) -> str:
    """What was chosen, in a sentence."""
    manifest = load_manifest(prepare(recipe.data))["splits"]
    name = Path(recipe.data.corpus).name or recipe.data.corpus
    labels = f", {max(recipe.labels)} labelled items" if recipe.task.name else ""
    of_what = f"{name}: {manifest['train']['bytes']:,} bytes to learn from{labels}"
    if not any(METHODS[cell.method].is_trained for cell in plan(recipe)):
        few = f"{minutes:g} minutes are too few to train"
        return f"{of_what}; only the distance to the foundation and the baselines are measured: {few}"
    end = max(minutes, estimate_minutes(recipe))
    return (
        f"{of_what}; seeds: {len(recipe.seeds)}, settings tried: {recipe.tries}, training: {recipe.budget_seconds:g} s "
        f"each, to end in about {end:.0f} minutes"
    )
