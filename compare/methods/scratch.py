"""Methods that train from scratch: an own tokenizer, and an own model from random weights."""

import random
import time

from adapt.merge import save_merged
from cli.errors import UserError
from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting, models_folder
from compare.methods.prompted import LanguageModel
from compare.methods.train import text_training, train_on_items, train_within_budget
from configs.schema import TokenizerConfig
from model.build import build_model
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

MIN_VOCAB_SIZE = 257  # all bytes and the separator


def learn_scratch(study: Study, cell: Cell, setting: Setting) -> Learned:
    """An own tokenizer and model, trained on a share of the text."""
    seen_texts = study.training_texts(cell)
    model, tokenizer, seconds = build_fresh_model(study, cell, seen_texts)
    sets = text_training(study, cell, model, tokenizer, model.config.context)
    costs = train_within_budget(study, cell, model, tokenizer, sets, setting["rate"])
    costs["training_seconds"] += seconds
    costs |= {"vocab_size": tokenizer.vocab_size, "stored_bytes": 4 * model.num_parameters()}

    def save() -> None:
        save_merged(models_folder(study, cell), model, tokenizer, "random weights")

    return Learned(LanguageModel(prepare_inference(model), tokenizer), seen_texts, costs, save=save)


def learn_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Labelled items, after all of the text (scratch-supervised) or from random weights (random-supervised).

    The second has a tokenizer trained on the text too, since a few items are not enough for one.
    """
    seen_texts = study.training_texts(cell, 1.0)
    if cell.method == "scratch-supervised":
        model, tokenizer = load_model(models_folder(study, cell._replace(method="scratch", axis="text", size=1.0)))
        model, seconds = model.to(study.device).train(), 0.0
    else:
        model, tokenizer, seconds = build_fresh_model(study, cell, seen_texts)
    learned = train_on_items(study, cell, setting, model, tokenizer)
    learned.costs["training_seconds"] += seconds
    learned.seen_texts = [*seen_texts, *learned.seen_texts]
    return learned


def train_largest_tokenizer(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    """A tokenizer trained on a sample of the texts; halves the vocabulary until the sample supports it.

    The sample has at most `config.sample_megabytes`. Raises UserError if it supports no tokenizer of at
    least 257 tokens.
    """
    left = config.sample_megabytes * 1_000_000
    if sum(map(len, texts)) > left:
        texts = [text for text in random.Random(0).sample(texts, len(texts)) if (left := left - len(text)) > 0]
    try:
        return train_tokenizer(texts, config.model_copy(update={"strict": True}))
    except UserError:
        smaller = max(MIN_VOCAB_SIZE, config.vocab_size // 2)
        if smaller == config.vocab_size:
            raise
        return train_largest_tokenizer(texts, config.model_copy(update={"vocab_size": smaller}))


def build_fresh_model(study: Study, cell: Cell, texts: list[str]) -> tuple[Transformer, Tokenizer, float]:
    """A model with random weights, a tokenizer trained on `texts`, and the seconds of that training."""
    config = study.recipe.scratch

    def train() -> tuple[Tokenizer, float]:
        started = time.perf_counter()
        tokenizer = train_largest_tokenizer(texts, config.tokenizer)  # not from the cache on disk: it is timed
        return tokenizer, time.perf_counter() - started

    (tokenizer, seconds), _ = study.make_once(("tokenizer", cell.size), train)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(cell.seed)
    return model.to(study.device), tokenizer, seconds
