"""Methods that tune the foundation model, its adapters or a head, on the text or on labelled items."""

import shutil
import time
from pathlib import Path

import numpy as np

from adapt.adapter import load_adapter, save_adapter
from adapt.datasets import task_sets, text_sets
from adapt.features import extract_features, fit_head
from adapt.merge import save_merged
from adapt.methods import merge_model, prepare_model
from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting, score_labels
from compare.methods.prompted import prompted_method, text_bytes, text_method
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import TrainConfig
from configs.study_recipe import TunedMethod
from model.flops import forward_flops
from model.formats.native import best_checkpoint, read_file, read_manifest
from model.transformer import Transformer
from prompting.shots import ShotSelector, fixed_shots, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.forward import DataSet
from train.loop import Trainer
from train.run_directory import start_run

STRENGTHS: tuple[Setting, ...] = tuple({"strength": strength} for strength in (1.0, 10.0, 0.1, 100.0))
VALIDATION_WINDOWS = 16  # of validation text, to choose the checkpoint


def learn_tuned(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Full, top-layers, lora or soft-prompt tuning of the foundation model, by the method's name.

    lora-neighbours is LoRA on the labelled items, then the items nearest to each input as shots.
    """
    name = "lora" if cell.method == "lora-neighbours" else cell.method.replace("-", "_")
    model, tokenizer = study.load_foundation()
    prepare_model(model, tokenizer, name, study.recipe, study.seed)
    return tune(study, cell, setting, model, tokenizer, getattr(study.recipe, name))


def learn_text_then_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """LoRA on all of the text, then a few labelled items as shots."""
    task = study.labelled_task(study.recipe.shots, cell.method)
    seen_texts = [*study.training_texts(1.0, cell.method), *(item.text for item in task.train)]
    model, tokenizer = study.load_foundation()
    base = cell._replace(method="lora", axis="text", size=1.0)
    merge_model(load_adapter(model, adapter_folder(study, base)))
    shots = fixed_shots(task, study.recipe.shots, study.seed)
    return prompted_method(prepare_inference(model), tokenizer, task, shots, setting, seen_texts)


def adapter_folder(study: Study, cell: Cell) -> Path:
    """The folder of a cell's saved adapter."""
    return study.folder / "adapters" / cell.name


def model_folder(study: Study) -> Path:
    """The folder of the model that `scratch` trained on all of the text with this seed."""
    return study.folder / "models" / f"scratch-{study.seed}"


def tune(
    study: Study, cell: Cell, setting: Setting, model: Transformer, tokenizer: Tokenizer, config: TunedMethod
) -> Learned:
    """Train the parameters of `model` that require gradients on the cell's text or labelled items."""
    trained = model.num_parameters(trainable=True)
    task, settings = study.task, config.text if cell.axis == "text" else config.task
    if cell.axis == "text":
        seen_texts, seq_len = study.training_texts(cell.size, cell.method), model.config.context
        if cell.method != "scratch":
            seq_len = min(study.recipe.seq_len, seq_len)
        sets: tuple[DataSet, DataSet] = text_sets(
            study.share_folder(cell.size), model, tokenizer, seq_len, VALIDATION_WINDOWS
        )
    else:
        task = study.labelled_task(int(cell.size), cell.method)
        seen_texts = [item.text for item in task.train]
        sets = task_sets(task, model, tokenizer)
    costs = train_within_budget(study, cell, model, tokenizer, sets, settings, setting["rate"])
    costs |= {"trained_parameters": trained, "stored_bytes": 4 * trained}
    tried = None
    if cell.method.startswith(("lora", "soft")):
        tried = adapter_folder(study, cell).with_name(f"{cell.name}.tried")
        save_adapter(model, tried, study.recipe.foundation)
        costs["stored_bytes"] = sum(p.stat().st_size for p in tried.iterdir())
    elif cell.method == "scratch" and cell.size == 1.0:
        tried = model_folder(study).with_name(f"{model_folder(study).name}.tried")
        save_merged(tried, model, tokenizer, "random weights")
    merge_model(model)
    model = prepare_inference(model)
    if cell.axis == "text":
        learned = text_method(model, tokenizer, seen_texts, costs)
    else:
        shots: ShotSelector = zero_shot
        if cell.method == "lora-neighbours":
            shots = neighbour_shots(task, study.recipe.shots)
            costs["stored_bytes"] += text_bytes(seen_texts)
        learned = prompted_method(model, tokenizer, task, shots, {}, seen_texts, costs)
    learned.tried = tried
    return learned


def train_within_budget(
    study: Study,
    cell: Cell,
    model: Transformer,
    tokenizer: Tokenizer,
    sets: tuple[DataSet, DataSet],
    settings: TrainConfig,
    rate: float,
) -> dict[str, float]:
    """Train within the budget and load the best checkpoint by validation; returns the costs."""
    shared = study.recipe
    limit = {"max_flops": shared.budget_flops} if shared.budget_flops else {"max_seconds": shared.budget_seconds}
    budget = settings.model_copy(update={"seed": study.seed, "learning_rate": rate, **limit})
    recipe = FinetuneRecipe(base=shared.foundation, data=shared.data, train=budget, general=shared.general)
    run = study.folder / "training" / cell.name
    with start_run(run, recipe, tokenizer, overwrite=True), Ranks(budget.device) as ranks:
        result = Trainer(model, *sets, tokenizer, budget, run, ranks).train()
    if result.signal:
        raise KeyboardInterrupt
    best = best_checkpoint(run)
    model.load_state_dict(read_file(best, "model.safetensors"), strict=False)
    kept_step = read_manifest(best)["step"]
    shutil.rmtree(run / "checkpoints")
    return {
        "training_seconds": result.progress.seconds,
        "training_flops": result.progress.flops,
        "training_tokens": result.progress.tokens,
        "training_steps": result.progress.step,
        "epochs": result.progress.step * budget.batch_size / len(sets[0]),
        "kept_step": kept_step,
    }


def learn_features(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on features from all layers of the frozen foundation model."""
    task = study.labelled_task(int(cell.size), cell.method)
    texts = [item.text for item in task.train]

    def extract() -> tuple[Transformer, Tokenizer, np.ndarray, float]:
        model, tokenizer = study.load_foundation()
        model, started = prepare_inference(model), time.perf_counter()
        features = extract_features(model, tokenizer, texts, "mean")
        return model, tokenizer, features, time.perf_counter() - started

    (model, tokenizer, features, seconds), was_cached = study.make_once(("features", cell.size), extract)
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

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        inputs = [item.text for item in items]
        # One request at a time, as for prompts.
        p = head.probabilities(extract_features(model, tokenizer, inputs, "mean", batch=1))
        mean_tokens = sum(1 + len(ids) for ids in tokenizer.encode_batch(inputs)) / len(items)
        return score_labels(items, [head.labels[i] for i in p.argmax(1)], p.max(1)) | {
            "prompt_tokens": mean_tokens,
            "read_tokens": mean_tokens,
            "flops_per_request": forward_flops(model, int(mean_tokens), 0, int(mean_tokens)),
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    reused = {"seconds": seconds, "flops": costs["training_flops"]} if was_cached else {}
    return Learned(texts, answers=answers, costs=costs, reused_costs=reused)
