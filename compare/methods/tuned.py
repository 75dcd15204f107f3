"""Arms that change the foundation's weights, or add some: on the text, or on labelled items."""

import shutil
import time
from functools import partial
from pathlib import Path

from adapt.adapter import load_adapter, save_adapter
from adapt.datasets import task_sets, text_sets
from adapt.features import extract_features, fit_head
from adapt.methods import merge_model, prepare_model
from compare.context import Cell, Study, inference
from compare.method import Learned, Setting
from compare.methods.prompted import WRITTEN, asked, text_bytes
from configs.finetune_recipe import FinetuneRecipe
from configs.study_recipe import StudyRecipe, TunedMethod
from model.flops import forward_flops
from model.formats.native import best_checkpoint, read_file, read_manifest
from model.likelihood import document_bits
from model.transformer import Transformer
from prompting.likelihood import generate_answer
from prompting.shots import ShotSelector, fixed_shots, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.loop import DataSet, train
from train.run_directory import start_run

STRENGTHS = (1.0, 10.0, 0.1, 100.0)
VALIDATED = 16  # windows of the validation text that choose the checkpoint


def rates_of(name: str):
    """The learning rates that an method tries, as its `settings`."""

    def settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
        method: TunedMethod = getattr(recipe, name)
        return [{"rate": rate} for rate in getattr(method, f"{axis}_rates")]

    return settings


def learn_tuned(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Full, top-layers, lora or soft-prompt, by the method's name, from the foundation."""
    name = cell.method.replace("-", "_")
    model, tokenizer = study.foundation()
    prepare_model(model, tokenizer, name, study.recipe, study.seed)
    return tuned(study, cell, setting, model, tokenizer, getattr(study.recipe, name))


def learn_lora_with_neighbours(study: Study, cell: Cell, setting: Setting) -> Learned:
    """LoRA on the items, asked with each input's nearest of them before it."""
    model, tokenizer = study.foundation()
    prepare_model(model, tokenizer, "lora", study.recipe, study.seed)
    task = study.labelled(int(cell.size), cell.method)
    shots = neighbour_shots(task, study.recipe.shots)
    learned = tuned(study, cell, setting, model, tokenizer, study.recipe.lora, shots)
    learned.costs["stored_bytes"] += text_bytes(item.text for item in task.train)
    return learned


def learn_text_then_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation with LoRA on all of the text, then prompted with a few items."""
    task = study.labelled(study.recipe.shots, cell.method)
    saw = [*study.texts(1.0, cell.method), *(item.text for item in task.train)]
    model, tokenizer = study.foundation()
    first = cell._replace(method="lora", axis="text", size=1.0)
    merge_model(load_adapter(model, adapter_of(study, first)))
    shots = fixed_shots(task, study.recipe.shots, study.seed)
    return asked(inference(model), tokenizer, task, shots, setting, saw)


def adapter_of(study: Study, cell: Cell) -> Path:
    """Where the adapter of a cell is kept."""
    return study.folder / "adapters" / cell.name


def tuned(
    study: Study,
    cell: Cell,
    setting: Setting,
    model: Transformer,
    tokenizer: Tokenizer,
    method: TunedMethod,
    shots: ShotSelector = zero_shot,
) -> Learned:
    """Train what of `model` requires gradients on the cell's text or items."""
    seq_len = min(study.recipe.seq_len, model.config.context)
    trained = model.num_parameters(trainable=True)
    if cell.axis == "text":
        saw = study.texts(cell.size, cell.method)
        sets: tuple[DataSet, DataSet] = text_sets(study.part(cell.size), model, tokenizer, seq_len, VALIDATED)
        task, settings = study.task, method.text
    else:
        task = study.labelled(int(cell.size), cell.method)
        saw, settings = [item.text for item in task.train], method.task
        sets = task_sets(task, model, tokenizer)
    costs, keep = fit(study, cell, model, tokenizer, sets, settings, setting["rate"]), None
    whole = trained == model.num_parameters()
    costs |= {"trained_parameters": trained, "stored_bytes": 4 * trained}
    if not whole and cell.method.startswith(("lora", "soft")):
        folder = adapter_of(study, cell)
        tried = folder.with_name(f"{folder.name}.tried")
        save_adapter(model, tried, study.recipe.foundation)
        costs["stored_bytes"] = sum(p.stat().st_size for p in tried.iterdir())
        keep = partial(replace, tried, folder)
    merge_model(model)
    scored = inference(model)
    learned = asked(scored, tokenizer, task, shots, {}, saw, costs)
    learned.keep = keep
    if cell.axis == "text":
        learned.answers = None
        learned.bits = lambda texts: document_bits(scored, tokenizer, texts)
        learned.prompts = list
        learned.write = lambda prompt: generate_answer(scored, tokenizer, prompt, "\n\n", WRITTEN)
    return learned


def replace(tried: Path, folder: Path) -> None:
    """Put what a try has left in the place that others read it from."""
    shutil.rmtree(folder, ignore_errors=True)
    tried.rename(folder)


def fit(
    study: Study,
    cell: Cell,
    model: Transformer,
    tokenizer: Tokenizer,
    sets: tuple[DataSet, DataSet],
    settings,
    rate: float,
) -> dict[str, float]:
    """Train within the budget, and keep what was best on validation; what it took."""
    budget = study.budget(settings, rate)
    recipe = FinetuneRecipe(
        base=study.recipe.foundation, data=study.recipe.data, train=budget, general=study.recipe.general
    )
    run = study.folder / "training" / cell.name
    with start_run(run, recipe, tokenizer, overwrite=True), Ranks(budget.device) as ranks:
        result = train(model, *sets, tokenizer, budget, run, ranks)
    if result.signal:
        raise KeyboardInterrupt
    best = best_checkpoint(run)
    model.load_state_dict(read_file(best, "model.safetensors"), strict=False)
    kept = read_manifest(best)["step"]
    shutil.rmtree(run / "checkpoints")
    return {
        "training_seconds": result.progress.seconds,
        "training_flops": result.progress.flops,
        "training_tokens": result.progress.tokens,
        "training_steps": result.progress.step,
        "epochs": result.progress.step * budget.batch_size / len(sets[0]),
        "kept_step": kept,
    }


def strengths(recipe: StudyRecipe, axis: str) -> list[Setting]:
    """Inverse regularisations that a head on features tries."""
    return [{"strength": strength} for strength in STRENGTHS[: recipe.tries]]


def learn_features(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Logistic regression on the frozen foundation's features of all layers, of labelled items."""
    task = study.labelled(int(cell.size), cell.method)
    texts = [item.text for item in task.train]

    def read():
        model, tokenizer = study.foundation()
        model, started = inference(model), time.perf_counter()
        features = extract_features(model, tokenizer, texts, "mean")
        return model, tokenizer, features, time.perf_counter() - started

    (model, tokenizer, features, reading), again = study.once(("features", cell.size), read)
    started = time.perf_counter()
    layers = list(range(features.shape[1]))
    head = fit_head(task, features, layers, setting["strength"], "mean")
    tokens = sum(1 + len(ids) for ids in tokenizer.encode_batch(texts))
    size = head.weight.size + head.bias.size
    costs = {
        "training_seconds": reading + time.perf_counter() - started,
        "training_flops": forward_flops(model, tokens, 0, tokens // len(texts)),
        "trained_parameters": size,
        "stored_bytes": 4 * size,
    }

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        asked_texts = [item.text for item in items]
        # One request at a time, as prompts are answered.
        p = head.probabilities(extract_features(model, tokenizer, asked_texts, "mean", batch=1))
        chosen = [head.labels[i] for i in p.argmax(1)]
        read = sum(1 + len(ids) for ids in tokenizer.encode_batch(asked_texts)) / len(items)
        return {
            "correct": [float(a == i.label) for a, i in zip(chosen, items, strict=True)],
            "confidence": [float(x) for x in p.max(1)],
            "prompt_tokens": read,
            "read_tokens": read,
            "flops_per_request": forward_flops(model, int(read), 0, int(read)),
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    paid = {"seconds": reading, "flops": costs["training_flops"]} if again else {}
    return Learned(texts, answers=answers, costs=costs, reused=paid)
