"""Training in a study: a budget of seconds, spent as steps, with twelve evaluations."""

import shutil
from typing import NamedTuple

from adapt.datasets import task_sets, text_sets
from adapt.methods import merge_model
from compare.context import CHECKPOINT_BYTES, CHECKPOINT_ITEMS, Cell, Study, prepare_inference, text_bytes
from compare.method import Learned, Setting
from compare.methods.prompted import PromptedFoundation, PromptedModel
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import TrainConfig
from configs.study_recipe import StudyRecipe
from data.items import Task
from data.shards import Windows
from model.transformer import Transformer
from prompting.shots import ShotSelector, neighbour_shots, zero_shot
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.forward import DataSet
from train.loop import RunResult, Trainer
from train.memory import BestWeights
from train.run_directory import start_run

EVALUATIONS = 12  # of every training, evenly spaced; the best weights by validation are kept
MIN_STEPS = 24


class Speed(NamedTuple):
    """What a calibration measures of one kind of training, and how it ran."""

    step_seconds: float
    micro_batch_size: int
    precision: str


def recipe_table(method: str) -> str:
    """The table of a study's recipe with the settings of a trained method."""
    if method in ("scratch", "scratch-supervised", "random-supervised"):
        return "scratch"
    return "lora" if method == "lora-neighbours" else method.replace("-", "_")


def speed_key(recipe: StudyRecipe, cell: Cell) -> str:
    """The key in the calibration of a cell's training: methods with one table and axis train alike."""
    table = recipe_table(cell.method)
    model = "" if table == "scratch" else f"-{cell.foundation or recipe.foundations[0]}"
    return f"{table}-{cell.axis}{model}"


def steps_in(seconds: float, step_seconds: float) -> int:
    """The steps of a budget, at least MIN_STEPS."""
    return max(MIN_STEPS, round(seconds / step_seconds))


def text_training(
    study: Study, cell: Cell, model: Transformer, tokenizer: Tokenizer, seq_len: int, checked: int = CHECKPOINT_BYTES
) -> tuple[DataSet, DataSet]:
    """Training windows of the cell's text; all methods are validated on the same `checked` bytes."""
    train_set, _ = text_sets(study.share_folder(cell), model, tokenizer, seq_len)
    return train_set, Windows.of_texts(study.validation_texts(checked), seq_len, tokenizer)


def item_training(
    task: Task, model: Transformer, tokenizer: Tokenizer, checked: int = CHECKPOINT_ITEMS
) -> tuple[DataSet, DataSet]:
    """Training examples of labelled items; all methods are validated on the same `checked` ones."""
    return task_sets(task._replace(validation=task.validation[:checked]), model, tokenizer)


def train_on_items(study: Study, cell: Cell, setting: Setting, model: Transformer, tokenizer: Tokenizer) -> Learned:
    """Train on the cell's labelled items. lora-neighbours has the nearest ones in each prompt afterwards."""
    task = study.labelled_task(cell, int(cell.size))
    trained = model.num_parameters(trainable=True)
    sets = item_training(task, model, tokenizer)
    costs = train_within_budget(study, cell, model, tokenizer, sets, setting["rate"])
    seen_texts = [item.text for item in task.train]
    shots: ShotSelector = zero_shot
    costs |= {"trained_parameters": trained, "stored_bytes": 4 * trained}
    if cell.method == "lora-neighbours":
        shots = neighbour_shots(task, study.recipe.shots)
        costs["stored_bytes"] += text_bytes(seen_texts)
    merge_model(model)
    kind = PromptedModel if recipe_table(cell.method) == "scratch" else PromptedFoundation
    return Learned(kind(prepare_inference(model), tokenizer, task, shots, {}), seen_texts, costs)


def train_within_budget(
    study: Study, cell: Cell, model: Transformer, tokenizer: Tokenizer, sets: tuple[DataSet, DataSet], rate: float
) -> dict[str, float]:
    """Train for the steps of the cell's budget and load the best weights by validation; returns the costs.

    The seconds are those of the calibration: they do not depend on what else the machine does.
    """
    speed = Speed(**study.calibration["speeds"][speed_key(study.recipe, cell)])
    steps = steps_in(study.recipe.budget_seconds * cell.factor, speed.step_seconds)
    changes = {
        "steps": steps,
        "eval_every": steps // EVALUATIONS,  # for the estimate of the run's time
        "learning_rate": rate,
        "micro_batch_size": speed.micro_batch_size,
        "precision": speed.precision,
    }
    best = BestWeights()
    trainer, result = run_training(study, cell, model, tokenizer, sets, changes, best, EVALUATIONS)
    best.restore(trainer.state)
    for parameter in model.parameters():
        parameter.grad = None
    progress = result.progress
    return {
        "training_seconds": steps * speed.step_seconds,
        "training_flops": progress.flops,
        "training_tokens": progress.tokens,
        "training_steps": steps,
        "epochs": steps * trainer.config.batch_size / len(sets[0]),
        "kept_step": best.step,
        "validation_bits": best.score,
        "evaluations": EVALUATIONS + 1,
        "trained_parameters": model.num_parameters(trainable=True),
    }


def run_training(
    study: Study,
    cell: Cell,
    model: Transformer,
    tokenizer: Tokenizer,
    sets: tuple[DataSet, DataSet],
    changes: dict,
    best: BestWeights,
    evaluations: int = 0,
) -> tuple[Trainer, RunResult]:
    """Train with the settings of the cell's method and axis, and `changes`."""
    table = getattr(study.recipe, recipe_table(cell.method))
    settings: TrainConfig = table.text if cell.axis == "text" else table.task
    always = {"seed": cell.seed, "compile": "never", "patience": 0, "save_every": 10**9, "max_seconds": 0.0}
    config = settings.model_copy(update=always | changes)
    recipe = FinetuneRecipe(base=study.foundation_name(cell), data=study.recipe.data, train=config)
    run = study.folder / "training" / cell.name
    with start_run(run, recipe, tokenizer, overwrite=True), Ranks(config.device) as ranks:
        trainer = Trainer(
            model, *sets, tokenizer, config, run, ranks, keep_best=True, in_memory=best, evaluations=evaluations
        )
        result = trainer.train()
    if result.signal:
        raise KeyboardInterrupt
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return trainer, result
