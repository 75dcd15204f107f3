"""Methods that tune the foundation model, its adapters or a head, on the text or on labelled items."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from adapt.adapter import load_adapter, save_adapter
from adapt.datasets import task_sets, text_sets
from adapt.features import extract_features, fit_head
from adapt.methods import merge_model, prepare_model
from compare.context import Cell, Study, prepare_inference
from compare.method import Learned, Setting
from compare.methods.prompted import MAX_NEW_TOKENS, prompted_method, text_bytes
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import TrainConfig
from configs.study_recipe import StudyRecipe, TunedMethod
from model.flops import forward_flops
from model.formats.native import best_checkpoint, read_file, read_manifest
from model.likelihood import document_bits
from model.transformer import Transformer
from prompting.likelihood import generate_answer
from prompting.shots import ShotSelector, fixed_shots, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.forward import DataSet
from train.loop import Trainer
from train.run_directory import start_run

STRENGTHS = (1.0, 10.0, 0.1, 100.0)
VALIDATION_WINDOWS = 16  # of validation text, to choose the checkpoint


def learning_rates_of(name: str) -> Callable[[StudyRecipe, str], list[Setting]]:
    """The `settings` of a method: the learning rates to try, from the recipe's table `name`."""

    def settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
        config: TunedMethod = getattr(recipe, name)
        return [{"rate": rate} for rate in getattr(config, f"{axis}_rates")]

    return settings


def learn_tuned(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Full, top-layers, lora or soft-prompt tuning of the foundation model, by the method's name."""
    name = cell.method.replace("-", "_")
    model, tokenizer = study.load_foundation()
    prepare_model(model, tokenizer, name, study.recipe, study.seed)
    return tune(study, cell, setting, model, tokenizer, getattr(study.recipe, name))


def learn_lora_with_neighbours(study: Study, cell: Cell, setting: Setting) -> Learned:
    """LoRA on the labelled items, then the items nearest to each input as shots."""
    model, tokenizer = study.load_foundation()
    prepare_model(model, tokenizer, "lora", study.recipe, study.seed)
    task = study.labelled_task(int(cell.size), cell.method)
    shots = neighbour_shots(task, study.recipe.shots)
    learned = tune(study, cell, setting, model, tokenizer, study.recipe.lora, shots)
    learned.costs["stored_bytes"] += text_bytes(item.text for item in task.train)
    return learned


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


def tune(
    study: Study,
    cell: Cell,
    setting: Setting,
    model: Transformer,
    tokenizer: Tokenizer,
    config: TunedMethod,
    shots: ShotSelector = zero_shot,
) -> Learned:
    """Train the parameters of `model` that require gradients on the cell's text or labelled items."""
    seq_len = min(study.recipe.seq_len, model.config.context)
    trained = model.num_parameters(trainable=True)
    if cell.axis == "text":
        seen_texts = study.training_texts(cell.size, cell.method)
        sets: tuple[DataSet, DataSet] = text_sets(
            study.share_folder(cell.size), model, tokenizer, seq_len, VALIDATION_WINDOWS
        )
        task, settings = study.task, config.text
    else:
        task = study.labelled_task(int(cell.size), cell.method)
        seen_texts, settings = [item.text for item in task.train], config.task
        sets = task_sets(task, model, tokenizer)
    costs, save = train_within_budget(study, cell, model, tokenizer, sets, settings, setting["rate"]), None
    is_full = trained == model.num_parameters()
    costs |= {"trained_parameters": trained, "stored_bytes": 4 * trained}
    if not is_full and cell.method.startswith(("lora", "soft")):
        folder = adapter_folder(study, cell)
        tried = folder.with_name(f"{folder.name}.tried")
        save_adapter(model, tried, study.recipe.foundation)
        costs["stored_bytes"] = sum(p.stat().st_size for p in tried.iterdir())
        save = partial(move_into_place, tried, folder)
    merge_model(model)
    scored = prepare_inference(model)
    learned = prompted_method(scored, tokenizer, task, shots, {}, seen_texts, costs)
    learned.save = save
    if cell.axis == "text":
        learned.answers = None
        learned.bits = lambda texts: document_bits(scored, tokenizer, texts)
        learned.prompts = list
        learned.write = lambda prompt: generate_answer(scored, tokenizer, prompt, "\n\n", MAX_NEW_TOKENS)
    return learned


def move_into_place(tried: Path, folder: Path) -> None:
    """Replace `folder` by the folder of the better try."""
    shutil.rmtree(folder, ignore_errors=True)
    tried.rename(folder)


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
    budget = study.with_budget(settings, rate)
    recipe = FinetuneRecipe(
        base=study.recipe.foundation, data=study.recipe.data, train=budget, general=study.recipe.general
    )
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


def regularisation_settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """The inverse regularisation strengths to try for the head."""
    return [{"strength": strength} for strength in STRENGTHS[: recipe.tries]]


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
        chosen = [head.labels[i] for i in p.argmax(1)]
        mean_tokens = sum(1 + len(ids) for ids in tokenizer.encode_batch(inputs)) / len(items)
        return {
            "correct": [float(a == i.label) for a, i in zip(chosen, items, strict=True)],
            "confidence": [float(x) for x in p.max(1)],
            "prompt_tokens": mean_tokens,
            "read_tokens": mean_tokens,
            "flops_per_request": forward_flops(model, int(mean_tokens), 0, int(mean_tokens)),
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    reused = {"seconds": seconds, "flops": costs["training_flops"]} if was_cached else {}
    return Learned(texts, answers=answers, costs=costs, reused_costs=reused)
