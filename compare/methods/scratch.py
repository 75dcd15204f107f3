"""Methods that train from scratch: an own tokenizer, and an own model from random weights."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adapt.datasets import text_sets
from adapt.merge import save_merged
from cli.errors import UserError
from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting
from compare.methods.prompted import MAX_NEW_TOKENS
from compare.methods.tuned import VALIDATION_WINDOWS, move_into_place, train_within_budget, tune
from configs.schema import TokenizerConfig
from model.build import build_model
from model.likelihood import document_bits
from model.load import load_model
from model.transformer import Transformer
from prompting.likelihood import generate_answer
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

MIN_VOCAB_SIZE = 257  # all bytes and the separator


def learn_scratch(study: Study, cell: Cell, setting: Setting) -> Learned:
    """An own tokenizer and model, trained on a share of the text."""
    seen_texts = study.training_texts(cell.size, cell.method)
    model, tokenizer, seconds = build_fresh_model(study, seen_texts)
    config = study.recipe.scratch
    seq_len = config.model.max_seq_len
    sets = text_sets(study.share_folder(cell.size), model, tokenizer, seq_len, VALIDATION_WINDOWS)
    costs = train_within_budget(study, cell, model, tokenizer, sets, config.text, setting["rate"])
    costs["training_seconds"] += seconds
    costs |= {
        "trained_parameters": model.num_parameters(),
        "vocab_size": tokenizer.vocab_size,
        "stored_bytes": 4 * model.num_parameters(),
    }
    save = None
    if cell.size == 1.0:
        tried = model_folder(study).with_name(f"{model_folder(study).name}.tried")
        save_merged(tried, model, tokenizer, "random weights")
        save = partial(move_into_place, tried, model_folder(study))
    scored = prepare_inference(model)

    def bits(texts: Sequence[str]) -> list[float]:
        return document_bits(scored, tokenizer, texts)

    return Learned(
        seen_texts,
        bits=bits,
        general_bits=bits,
        costs=costs,
        prompts=list,
        save=save,
        write=lambda prompt: generate_answer(scored, tokenizer, prompt, "\n\n", MAX_NEW_TOKENS),
    )


def learn_scratch_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The model that `scratch` trained on all of the text, fine-tuned on labelled items."""
    seen_texts = study.training_texts(1.0, cell.method)
    model, tokenizer = load_model(model_folder(study))
    learned = tune(study, cell, setting, model.to(study.device).train(), tokenizer, study.recipe.scratch)
    learned.seen_texts = [*seen_texts, *learned.seen_texts]
    return learned


def learn_random_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The same model from random weights, trained on labelled items only.

    Its tokenizer is trained on the text, since a few items are not enough for one.
    """
    seen_texts = study.training_texts(1.0, cell.method)
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


def model_folder(study: Study) -> Path:
    """The folder of the saved model that was trained on all of the text with this seed."""
    return study.folder / "models" / f"scratch-{study.seed}"


def build_fresh_model(study: Study, texts: list[str]) -> tuple[Transformer, Tokenizer, float]:
    """A model with random weights, a tokenizer trained on `texts`, and the seconds of that training."""
    config, started = study.recipe.scratch, time.perf_counter()
    tokenizer = train_largest_tokenizer(texts, config.tokenizer)  # never cached: it is timed
    seconds = time.perf_counter() - started
    model = build_model(config.model, tokenizer.vocab_size).init_weights(study.seed)
    return model.to(study.device), tokenizer, seconds
