"""Methods that train from scratch: an own tokenizer, and an own model from random weights."""

import time

from cli.errors import UserError
from compare.context import Cell, Study
from compare.method import Learned, Setting
from compare.methods.tuned import model_folder, tune
from configs.schema import TokenizerConfig
from model.build import build_model
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

MIN_VOCAB_SIZE = 257  # all bytes and the separator


def learn_scratch(study: Study, cell: Cell, setting: Setting) -> Learned:
    """An own tokenizer and model, trained on a share of the text."""
    seen_texts = study.training_texts(cell.size, cell.method)
    model, tokenizer, seconds = build_fresh_model(study, seen_texts)
    learned = tune(study, cell, setting, model, tokenizer, study.recipe.scratch)
    learned.costs["training_seconds"] += seconds
    learned.costs["vocab_size"] = tokenizer.vocab_size
    return learned


def learn_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Labelled items, after all of the text (scratch-supervised) or from random weights (random-supervised).

    The second has a tokenizer trained on the text too, since a few items are not enough for one.
    """
    seen_texts = study.training_texts(1.0, cell.method)
    if cell.method == "scratch-supervised":
        model, tokenizer = load_model(model_folder(study))
        model, seconds = model.to(study.device).train(), 0.0
    else:
        model, tokenizer, seconds = build_fresh_model(study, seen_texts)
    learned = tune(study, cell, setting, model, tokenizer, study.recipe.scratch)
    learned.costs["training_seconds"] += seconds
    learned.seen_texts = [*seen_texts, *learned.seen_texts]
    return learned


def train_largest_tokenizer(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    """A tokenizer trained on the texts; halves the vocabulary until the texts support it.

    Raises UserError if they support none of at least 257 tokens.
    """
    try:
        return train_tokenizer(texts, config.model_copy(update={"strict": True}))
    except UserError:
        smaller = config.vocab_size // 2
        if smaller < MIN_VOCAB_SIZE:
            raise
        return train_largest_tokenizer(texts, config.model_copy(update={"vocab_size": smaller}))


def build_fresh_model(study: Study, texts: list[str]) -> tuple[Transformer, Tokenizer, float]:
    """A model with random weights, a tokenizer trained on `texts`, and the seconds of that training."""
    config, started = study.recipe.scratch, time.perf_counter()
    tokenizer = train_largest_tokenizer(texts, config.tokenizer)  # never cached: it is timed
    seconds = time.perf_counter() - started
    model = build_model(config.model, tokenizer.vocab_size).init_weights(study.seed)
    return model.to(study.device), tokenizer, seconds
