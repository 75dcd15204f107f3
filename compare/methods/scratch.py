"""Arms that start from random weights: own tokenizer, own model."""

import time
from functools import partial
from pathlib import Path

from adapt.datasets import text_sets
from adapt.merge import save_merged
from cli.errors import UserError
from compare.context import Cell, Study, inference
from compare.method import Learned, Setting
from compare.methods.prompted import WRITTEN
from compare.methods.tuned import VALIDATED, fit, replace, tuned
from configs.schema import TokenizerConfig
from model.build import build_model
from model.likelihood import document_bits
from model.load import load_model
from model.transformer import Transformer
from prompting.likelihood import generate_answer
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

LEAST = 257  # tokens: all bytes and the separator


def learn_scratch(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Own tokenizer and model, trained on a share of the text."""
    saw = study.texts(cell.size, cell.method)
    model, tokenizer, seconds = fresh(study, saw)
    method = study.recipe.scratch
    length = method.model.max_seq_len
    sets = text_sets(study.part(cell.size), model, tokenizer, length, VALIDATED)
    costs = fit(study, cell, model, tokenizer, sets, method.text, setting["rate"])
    costs["training_seconds"] += seconds
    costs |= {
        "trained_parameters": model.num_parameters(),
        "vocab_size": tokenizer.vocab_size,
        "stored_bytes": 4 * model.num_parameters(),
    }
    keep = None
    if cell.size == 1.0:
        tried = kept(study).with_name(f"{kept(study).name}.tried")
        save_merged(tried, model, tokenizer, "random weights")
        keep = partial(replace, tried, kept(study))
    scored = inference(model)

    def bits(texts):
        return document_bits(scored, tokenizer, texts)

    return Learned(
        saw,
        bits=bits,
        general=bits,
        costs=costs,
        prompts=list,
        keep=keep,
        write=lambda prompt: generate_answer(scored, tokenizer, prompt, "\n\n", WRITTEN),
    )


def learn_scratch_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The model that was trained on all of the text, tuned on labelled items."""
    saw = study.texts(1.0, cell.method)
    model, tokenizer = load_model(kept(study))
    learned = tuned(study, cell, setting, model.to(study.device).train(), tokenizer, study.recipe.scratch)
    learned.saw = [*saw, *learned.saw]
    return learned


def learn_random_supervised(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The same model from random weights, trained on labelled items alone.

    Its tokenizer is that of the text: a handful of items do not make one.
    """
    saw = study.texts(1.0, cell.method)
    model, tokenizer, seconds = fresh(study, saw)
    learned = tuned(study, cell, setting, model, tokenizer, study.recipe.scratch)
    learned.costs["training_seconds"] += seconds
    learned.saw = [*saw, *learned.saw]
    return learned


def as_large_as_fits(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    """A tokenizer of the texts; where they do not support its vocabulary, of half of it, and so on.

    Raises UserError if they support none.
    """
    try:
        return train_tokenizer(texts, config.model_copy(update={"strict": True}))
    except UserError:
        smaller = config.vocab_size // 2
        if smaller < LEAST:
            raise
        return as_large_as_fits(texts, config.model_copy(update={"vocab_size": smaller}))


def kept(study: Study) -> Path:
    """Where the model of the whole text with this seed is kept."""
    return study.folder / "models" / f"scratch-{study.seed}"


def fresh(study: Study, texts: list[str]) -> tuple[Transformer, Tokenizer, float]:
    """A model of random weights, a tokenizer learnt from `texts`, and the seconds that took."""
    method, started = study.recipe.scratch, time.perf_counter()
    tokenizer = as_large_as_fits(texts, method.tokenizer)  # never cached: it is timed
    seconds = time.perf_counter() - started
    model = build_model(method.model, tokenizer.vocab_size).init_weights(study.seed)
    return model.to(study.device), tokenizer, seconds
