"""A linear probe: logistic regression on frozen features; the model runs once per text.

Each layer's hidden states are pooled over the tokens of a text. The classifier uses the layer that
is best on the validation split, the last layer, or all layers concatenated.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from cli.atomic import to_json, write_atomically
from cli.console import say, track
from cli.errors import UserError
from configs.finetune_recipe import FeaturesConfig, FinetuneRecipe
from data.items import Task
from data.tasks import load_task
from model.batches import batch_by_length
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.preflight import uses_bfloat16
from train.run_directory import start_run

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse L2 regularisation, chosen on validation
BATCH = 8


class Classifier(NamedTuple):
    """Logistic regression on the standardised features of some layers."""

    labels: list[str]
    pooling: str
    layers: list[int]
    """Layer indices; 0 is the embedding."""
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray  # (labels, features)
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> list[str]:
        """The likeliest label of each row of (N, layers, C) features."""
        return [self.labels[i] for i in self.probabilities(features).argmax(1)]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, layers, C) features -> (N, labels) probabilities."""
        x = (_flat(features, self.layers) - self.mean) / self.scale
        return softmax(x @ self.weight.T + self.bias)

    def save(self, folder: Path) -> None:
        """Write classifier.safetensors and classifier.json."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "scale", "weight", "bias")}
        save_file(arrays, folder / "classifier.safetensors")
        about = {"labels": self.labels, "pooling": self.pooling, "layers": self.layers}
        write_atomically(folder / "classifier.json", to_json(about) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Read the files of `save`. Raises UserError if there are none."""
        path = folder / "classifier.json"
        if not path.exists():
            raise UserError(f"{folder}: no classifier; train one with method = features")
        about = json.loads(path.read_text())
        arrays = load_file(folder / "classifier.safetensors")
        return cls(
            about["labels"],
            about["pooling"],
            about["layers"],
            *(arrays[name] for name in ("mean", "scale", "weight", "bias")),
        )


@torch.no_grad()
def extract_features(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], pooling: str, batch: int = BATCH
) -> np.ndarray:
    """Pooled features of each text after the embedding and every block, (N, layers + 1, C) float32.

    `batch` texts run at a time. Raises UserError if a text does not fit the context.
    """
    encoded = [[tokenizer.separator_id, *ids] for ids in tokenizer.encode_batch(texts)]
    longest = max(map(len, encoded))
    if longest > model.config.context:
        raise UserError(f"a text of {longest} tokens is above the context; lower task.max_chars")
    features = np.zeros((len(texts), len(model.layers) + 1, model.config.dim), np.float32)
    for rows, inputs in track(batch_by_length(encoded, batch), "extracting features", -(-len(texts) // batch)):
        lengths = torch.tensor([len(encoded[i]) for i in rows], device=model.device)
        features[rows] = pooled_features(model, inputs.to(model.device), lengths, pooling)
    return features


@torch.no_grad()
def pooled_features(model: Transformer, inputs: torch.Tensor, lengths: torch.Tensor, pooling: str) -> np.ndarray:
    """The pooled features of a padded batch, (B, layers + 1, C) float32; its rows have `lengths` tokens.

    A row starts with the separator, whose features the mean leaves out.
    """
    states: list[torch.Tensor] = []
    hooks = [model.layers[0].register_forward_pre_hook(lambda _, x: states.append(x[0]))]
    hooks += [layer.register_forward_hook(lambda _, __, x: states.append(x)) for layer in model.layers]
    try:
        model.features(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    x = torch.stack(states, 1)[:, :, model.config.soft_tokens :].float()  # (B, layers + 1, T, C)
    positions = torch.arange(x.shape[2], device=x.device)
    if pooling == "last":
        pooled = positions == lengths[:, None] - 1
    else:
        pooled = (positions < lengths[:, None]) & (positions > 0)
    weights = pooled / pooled.sum(1, keepdim=True).clamp(min=1)  # (B, T)
    found: np.ndarray = torch.einsum("bltc,bt->blc", x, weights.to(x.dtype)).cpu().numpy()
    return found


def fit_classifier(
    task: Task, train: np.ndarray, validation: np.ndarray, config: FeaturesConfig
) -> tuple[Classifier, float]:
    """Fit on the (N, layers, C) features of the task's items; returns also the validation accuracy.

    The layer and the regularisation strength are chosen on the validation split. Raises UserError
    if all training items have the same label.
    """
    if len(labels := {item.label for item in task.train}) < 2:
        raise UserError(f"all {len(task.train)} training items are labelled {labels}; add items of another label")
    every = list(range(train.shape[1]))
    choices = {"last": [every[-1:]], "all": [every], "best": [[layer] for layer in every]}[config.layers]
    best: tuple[float, Classifier] | None = None
    for layers in track(choices, "fitting heads", len(choices)):
        for strength in STRENGTHS:
            head = fit_head(task, train, layers, strength, config.pooling)
            pairs = zip(head.predict(validation), task.validation, strict=True)
            score = float(np.mean([label == item.label for label, item in pairs]))
            if best is None or score > best[0]:
                best = score, head
    assert best is not None
    return best[1], best[0]


def train_classifier(
    recipe: FinetuneRecipe, run: Path, model: Transformer, tokenizer: Tokenizer, overwrite: bool
) -> None:
    """Fit a classifier on frozen features and save it in `run`; UserError for a task without labels."""
    assert recipe.task is not None  # checked by the schema
    task = load_task(recipe.task, recipe.data)
    if not task.labels:
        raise UserError(f"task {recipe.task.name}: has open answers; method = features needs a task with labels")
    if uses_bfloat16("auto", model, model.device):
        model.bfloat16()
    pooling = recipe.features.pooling
    train_features, validation_features = (
        extract_features(model, tokenizer, [item.text for item in items], pooling)
        for items in (task.train, task.validation)
    )
    head, score = fit_classifier(task, train_features, validation_features, recipe.features)
    with start_run(run, recipe, tokenizer, overwrite=overwrite):
        head.save(run)
    layers = f"layer {head.layers[0]}" if len(head.layers) == 1 else f"{len(head.layers)} layers"
    majority, count = Counter(item.label for item in task.validation).most_common(1)[0]
    summary = {
        "trained_parameters": head.weight.size + head.bias.size,
        "frozen_parameters": model.num_parameters(),
        "training_items": len(task.train),
        "validation_accuracy": score,
        "validation_majority": count / len(task.validation),
    }
    write_atomically(run / "summary.json", to_json(summary, 2) + "\n")
    say(
        f"{summary['trained_parameters']:,} parameters trained, {model.num_parameters():,} frozen; "
        f'majority class "{majority}": {summary["validation_majority"]:.3f} validation accuracy'
    )
    say(
        f"done: {layers}, {score:.3f} validation accuracy on {len(task.validation)} items (layer and "
        f"regularisation are chosen on them); classifier saved in {run}"
    )
    say(f"test accuracy: python -m adapt.classify {run}; add texts to label them")


def fit_head(task: Task, train: np.ndarray, layers: list[int], strength: float, pooling: str) -> Classifier:
    """Logistic regression on some layers of (N, layers, C) features of the training items.

    `strength` is the inverse L2 regularisation. If all items have the same label, the classifier
    always predicts it. Raises UserError without scikit-learn.
    """
    x = _flat(train, layers)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    # Scaled by the number of features: a strength means the same for one layer and for all.
    labels = [item.label for item in task.train]
    labels, weight, bias = fit_linear((x - mean) / scale, labels, strength / x.shape[1], max_iter=300)
    arrays = (array.astype(np.float32) for array in (mean, scale, weight, bias))
    return Classifier(labels, pooling, layers, *arrays)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, labels) logits -> probabilities."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def fit_linear(
    x: Any, labels: Sequence[str], strength: float, max_iter: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Logistic regression: the different labels, (labels, features) weights and (labels,) biases.

    `x` is (N, features), dense or sparse. If all labels are equal, that one is always predicted. Raises UserError
    without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("a classifier needs: pip install -e '.[compare]'") from None
    if len(set(labels)) == 1:  # scikit-learn refuses that
        return [labels[0]], np.zeros((1, x.shape[1])), np.zeros(1)
    head = LogisticRegression(C=strength, max_iter=max_iter)
    head.fit(x, labels)
    weight, bias = head.coef_, head.intercept_
    if len(head.classes_) == 2:  # scikit-learn stores one row, the log-odds of the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return list(map(str, head.classes_)), weight, bias


def _flat(features: np.ndarray, layers: list[int]) -> np.ndarray:
    return features[:, layers].reshape(len(features), -1)
