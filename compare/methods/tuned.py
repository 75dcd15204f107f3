"""Methods that tune the foundation model, its adapters or a head, on the text or on labelled items."""

import shutil
import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from adapt.adapter import load_adapter, save_adapter
from adapt.features import Classifier, extract_features, fit_head
from adapt.methods import METHODS, merge_model, prepare_model
from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting, is_base, models_folder, replace_folder, score_labels
from compare.methods.prompted import FoundationText, PromptedFoundation
from compare.methods.train import recipe_table, text_training, train_on_items, train_within_budget
from data.items import Item
from model.flops import forward_flops
from model.transformer import Transformer
from prompting.shots import fixed_shots
from tokenizer.bpe import Tokenizer

STRENGTHS: tuple[Setting, ...] = tuple({"strength": strength} for strength in (1.0, 10.0, 0.1, 100.0))


def learn_tuned(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Full, top-layers, lora or soft-prompt tuning of the foundation model, by the method's name.

    lora-neighbours is LoRA on the labelled items, then the items nearest to each input as shots.
    """
    table = recipe_table(cell.method)
    model, tokenizer = study.load_foundation(cell)
    prepare_model(model, tokenizer, table, study.recipe, cell.seed)
    if cell.axis == "task":
        return train_on_items(study, cell, setting, model, tokenizer)
    seen_texts = study.training_texts(cell)  # the leak check comes first
    seq_len = min(study.recipe.seq_len, model.config.context)
    sets = text_training(study, cell, model, tokenizer, seq_len)
    costs = train_within_budget(study, cell, model, tokenizer, sets, setting["rate"])
    costs["stored_bytes"] = 4 * costs["trained_parameters"]
    save = None
    if METHODS[table].has_adapter:
        adapter = study.folder / "training" / cell.name / "adapter"
        save_adapter(model, adapter, study.foundation_name(cell))  # now: a merged model has no adapter left
        costs["stored_bytes"] = sum(p.stat().st_size for p in adapter.iterdir())
        if is_base(cell):
            save = partial(replace_folder, adapter, models_folder(study, cell))
        else:
            shutil.rmtree(adapter)
    merge_model(model)
    text = FoundationText(prepare_inference(model), tokenizer)
    return Learned(text, seen_texts, costs, save=save)


def learn_text_then_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """LoRA on all of the text, then a few labelled items as shots."""
    task = study.labelled_task(cell, study.recipe.shots)
    seen_texts = [*study.training_texts(cell, 1.0), *(item.text for item in task.train)]
    model, tokenizer = study.load_foundation(cell)
    base = cell._replace(method="lora", axis="text", size=1.0)
    merge_model(load_adapter(model, models_folder(study, base)))
    shots = fixed_shots(task, study.recipe.shots, cell.seed)
    return Learned(PromptedFoundation(prepare_inference(model), tokenizer, task, shots, setting), seen_texts)


class FeatureClassifier:
    """A linear head on features of the frozen foundation model."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, head: Classifier):
        self.model, self.tokenizer, self.head = model, tokenizer, head

    def answers(self, items: Sequence[Item]) -> dict:
        """See `TaskModel`; one request at a time, as for prompts."""
        started, inputs = time.perf_counter(), [item.text for item in items]
        p = self.head.probabilities(extract_features(self.model, self.tokenizer, inputs, "mean", batch=1))
        seconds = (time.perf_counter() - started) / len(items)
        tokens = sum(1 + len(ids) for ids in self.tokenizer.encode_batch(inputs)) / len(items)
        return score_labels(items, [self.head.labels[i] for i in p.argmax(1)], p.max(1)) | {
            "prompt_tokens": tokens,
            "read_tokens": tokens,
            "flops_per_request": forward_flops(self.model, int(tokens), 0, int(tokens)),
            "seconds_per_request": seconds,
        }


def learn_features(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on features from all layers of the frozen foundation model."""
    task = study.labelled_task(cell, int(cell.size))
    texts = [item.text for item in task.train]

    def extract() -> tuple[Transformer, Tokenizer, np.ndarray, float]:
        model, tokenizer = study.load_foundation(cell)
        model, started = prepare_inference(model), time.perf_counter()
        features = extract_features(model, tokenizer, texts, "mean")
        return model, tokenizer, features, time.perf_counter() - started

    (model, tokenizer, features, seconds), was_cached = study.make_once(("features",), extract)
    started = time.perf_counter()
    layers = list(range(features.shape[1]))
    head = fit_head(task, features, layers, setting["strength"], "mean")
    tokens = sum(1 + len(ids) for ids in tokenizer.encode_batch(texts))
    size = head.weight.size + head.bias.size
    costs = {
        "training_seconds": seconds + time.perf_counter() - started,
        "training_flops": forward_flops(model, tokens, 0, tokens // len(texts)),
        "trained_parameters": size,
        "stored_bytes": 4 * size,
    }
    reused = {"seconds": seconds, "flops": costs["training_flops"]} if was_cached else {}
    return Learned(FeatureClassifier(model, tokenizer, head), texts, costs, reused)
