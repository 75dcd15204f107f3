"""Arms that change the foundation's weights, or add some: on the text, or on labelled items."""

import shutil
import time
from functools import partial
from pathlib import Path

from adapt.adapter import load_adapter, save_adapter
from adapt.features import extract, fit_head
from adapt.finetune import merge, task_sets, text_sets
from adapt.full import tune_all
from adapt.lora import add_lora
from adapt.soft_prompt import add_soft_prompt
from adapt.top_layers import tune_top_layers
from compare.arm import Learned, Setting
from compare.arms.prompted import WRITTEN, asked, text_bytes
from compare.study import Cell, Study, inference
from configs.schema import FinetuneRecipe
from configs.study import StudyRecipe, TunedArm
from model.formats.native import best_checkpoint, read_file, read_manifest
from model.score import document_bits
from model.transformer import Transformer
from prompting.score import write_answer
from prompting.shots import Choose, fixed_shots, neighbour_shots, no_shots
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.pretrain import DataSet, train
from train.run import start_run

STRENGTHS = (1.0, 10.0, 0.1, 100.0)
VALIDATED = 16  # windows of the validation text that choose the checkpoint


def rates_of(name: str):
    """The learning rates that an arm tries, as its `settings`."""

    def settings(recipe: StudyRecipe, axis: str) -> list[Setting]:
        arm: TunedArm = getattr(recipe, name)
        return [{"rate": rate} for rate in getattr(arm, f"{axis}_rates")]

    return settings


def learn_tuned(study: Study, cell: Cell, setting: Setting) -> Learned:
    """Full, top-layers, lora or soft-prompt, by the arm's name, from the foundation."""
    name = cell.arm.replace("-", "_")
    model, tokenizer = study.foundation()
    prepared(study, model, tokenizer, name)
    return tuned(study, cell, setting, model, tokenizer, getattr(study.recipe, name))


def learn_lora_with_neighbours(study: Study, cell: Cell, setting: Setting) -> Learned:
    """LoRA on the items, asked with each input's nearest of them before it."""
    model, tokenizer = study.foundation()
    prepared(study, model, tokenizer, "lora")
    task = study.labelled(int(cell.size), cell.arm)
    shots = neighbour_shots(task, study.recipe.shots)
    learned = tuned(study, cell, setting, model, tokenizer, study.recipe.lora, shots)
    learned.costs["stored_bytes"] += text_bytes(item.text for item in task.train)
    return learned


def learn_text_then_shots(study: Study, cell: Cell, setting: Setting) -> Learned:
    """The foundation with LoRA on all of the text, then prompted with a few items."""
    task = study.labelled(study.recipe.shots, cell.arm)
    saw = [*study.texts(1.0, cell.arm), *(item.text for item in task.train)]
    model, tokenizer = study.foundation()
    first = cell._replace(arm="lora", axis="text", size=1.0)
    merge(load_adapter(model, adapter_of(study, first)))
    shots = fixed_shots(task, study.recipe.shots, study.seed)
    return asked(inference(model), tokenizer, task, shots, setting, saw)


def adapter_of(study: Study, cell: Cell) -> Path:
    """Where the adapter of a cell is kept."""
    return study.folder / "adapters" / cell.name


def prepared(study: Study, model: Transformer, tokenizer: Tokenizer, name: str) -> Transformer:
    """Choose what of the foundation is trained."""
    if name == "full":
        return tune_all(model)
    if name == "top_layers":
        return tune_top_layers(model, study.recipe.top)
    if name == "soft_prompt":
        return add_soft_prompt(model, tokenizer, study.recipe.vectors, study.seed)
    return add_lora(model, study.recipe.adapter, study.seed)


def tuned(
    study: Study,
    cell: Cell,
    setting: Setting,
    model: Transformer,
    tokenizer: Tokenizer,
    arm: TunedArm,
    shots: Choose = no_shots,
) -> Learned:
    """Train what of `model` requires gradients on the cell's text or items."""
    seq_len = min(study.recipe.seq_len, model.config.context)
    trained = model.num_parameters(trainable=True)
    if cell.axis == "text":
        saw = study.texts(cell.size, cell.arm)
        sets: tuple[DataSet, DataSet] = text_sets(study.part(cell.size), model, tokenizer, seq_len, VALIDATED)
        task, settings = study.task, arm.text
    else:
        task = study.labelled(int(cell.size), cell.arm)
        saw, settings = [item.text for item in task.train], arm.task
        sets = task_sets(task, model, tokenizer)
    costs, keep = fit(study, cell, model, tokenizer, sets, settings, setting["rate"]), None
    whole = trained == model.num_parameters()
    costs |= {"trained_parameters": trained, "stored_bytes": 4 * trained}
    if not whole and cell.arm.startswith(("lora", "soft")):
        folder = adapter_of(study, cell)
        tried = folder.with_name(f"{folder.name}.tried")
        save_adapter(model, tried, study.recipe.foundation)
        costs["stored_bytes"] = sum(p.stat().st_size for p in tried.iterdir())
        keep = partial(replace, tried, folder)
    merge(model)
    scored = inference(model)
    learned = asked(scored, tokenizer, task, shots, {}, saw, costs)
    learned.keep = keep
    if cell.axis == "text":
        learned.answers = None
        learned.bits = lambda texts: document_bits(scored, tokenizer, texts)
        learned.prompts = list
        learned.write = lambda prompt: write_answer(scored, tokenizer, prompt, "\n\n", WRITTEN)
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
    task = study.labelled(int(cell.size), cell.arm)
    texts = [item.text for item in task.train]

    def read():
        model, tokenizer = study.foundation()
        model, started = inference(model), time.perf_counter()
        features = extract(model, tokenizer, texts, "mean")
        return model, tokenizer, features, time.perf_counter() - started

    (model, tokenizer, features, reading), again = study.once(("features", cell.size), read)
    started = time.perf_counter()
    layers = list(range(features.shape[1]))
    head = fit_head(task, features, layers, setting["strength"], "mean")
    tokens = sum(1 + len(ids) for ids in tokenizer.encode_batch(texts))
    size = head.weight.size + head.bias.size
    costs = {
        "training_seconds": reading + time.perf_counter() - started,
        "training_flops": model.forward_flops(tokens, 0, tokens // len(texts)),
        "trained_parameters": size,
        "stored_bytes": 4 * size,
    }

    def answers(split: str) -> dict:
        items, started = getattr(task, split), time.perf_counter()
        asked_texts = [item.text for item in items]
        # One request at a time, as prompts are answered.
        p = head.probabilities(extract(model, tokenizer, asked_texts, "mean", batch=1))
        chosen = [head.labels[i] for i in p.argmax(1)]
        read = sum(1 + len(ids) for ids in tokenizer.encode_batch(asked_texts)) / len(items)
        return {
            "correct": [float(a == i.label) for a, i in zip(chosen, items, strict=True)],
            "confidence": [float(x) for x in p.max(1)],
            "prompt_tokens": read,
            "read_tokens": read,
            "flops_per_request": model.forward_flops(int(read), 0, int(read)),
            "seconds_per_request": (time.perf_counter() - started) / len(items),
        }

    paid = {"seconds": reading, "flops": costs["training_flops"]} if again else {}
    return Learned(texts, answers=answers, costs=costs, reused=paid)
