"""The arms of a study. One process runs one arm, so that its peak memory is its own:

    python -m compare.arms STUDY-DIR ARM SEED RESULT

reads STUDY-DIR/config.toml and writes what it measured to the file RESULT; `compare.run` calls it.
"""

import copy
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adapt.finetune import task_sets, text_sets
from adapt.lora import add_lora, merge_lora
from compare.floors import FLOORS, compressor_bits, majority, tfidf_logistic, xz, zstd
from compare.score import document_bits
from configs.cli import UserError, load, run_command
from configs.schema import FinetuneRecipe, Recipe, TrainConfig
from configs.study import StudyRecipe
from data.prepare import documents, prepare, shuffled
from data.tasks import Task, load_task
from model.load import load_model
from model.transformer import Transformer
from prompting.answers import task_answers
from prompting.shots import fixed_shots, neighbour_shots, no_shots
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer
from train.distributed import Ranks
from train.foresight import uses_bfloat16
from train.metrics import peak_memory
from train.pretrain import DataSet, train
from train.run import RunResult, start_run


class Study:
    """What every arm is given: the same splits, items, budget and seed."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.recipe = load(StudyRecipe, folder / "config.toml")
        self.documents = prepare(self.recipe.data)
        self.task: Task = load_task(self.recipe.task, self.recipe.data)
        held_out = shuffled(self.documents, "test")[: self.recipe.test_documents]
        self.test = [row["text"] for row in held_out]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train_texts(self) -> list[str]:
        """The training documents."""
        return [row["text"] for row in documents(self.documents, "train")]

    def settings(self, text: TrainConfig, task: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
        """Both with this seed and their shares of the budget in seconds."""
        seconds, share = self.recipe.budget_seconds, self.recipe.task_share
        return (
            text.model_copy(update={"seed": self.seed, "max_seconds": seconds * (1 - share)}),
            task.model_copy(update={"seed": self.seed, "max_seconds": seconds * share}),
        )

    def foundation(self) -> tuple[Transformer, Tokenizer]:
        """The pretrained model, ready to be prompted."""
        model, tokenizer = load_model(self.recipe.foundation)
        return _inference(model.to(self.device)), tokenizer


def compressors(study: Study) -> dict:
    """Xz and zstd, given the training text: the better one counts."""
    train_texts = study.train_texts()
    bits = {tool.__name__: compressor_bits(tool, train_texts, study.test) for tool in (xz, zstd)}
    size = sum(len(text.encode()) for text in study.test)
    return {"compressors": {name: value / size for name, value in bits.items()}}


def majority_class(study: Study) -> dict:
    """Always the commonest label."""
    return majority(study.task)


def tfidf(study: Study) -> dict:
    """Character n-grams and logistic regression."""
    return tfidf_logistic(study.task)


def scratch(study: Study) -> dict:
    """Own tokenizer and model: pretrained on the text, then tuned on the task's items."""
    data, arm = study.recipe.data, study.recipe.scratch
    started = time.perf_counter()
    tokenizer = train_tokenizer(study.train_texts(), arm.tokenizer)  # never cached: it is timed
    tokenizer_seconds = time.perf_counter() - started
    model = Transformer(arm.model, tokenizer.vocab_size).init_weights(study.seed)
    text, task = (
        Recipe(data=data, tokenizer=arm.tokenizer, model=arm.model, train=settings)
        for settings in study.settings(arm.text, arm.task)
    )
    result = tune(study, "scratch", model, tokenizer, arm.model.max_seq_len, text, task)
    return result | {"training_seconds": result["training_seconds"] + tokenizer_seconds}


def lora(study: Study) -> dict:
    """The foundation with LoRA: tuned on the text, then further on the task's items."""
    arm = study.recipe.lora
    model, tokenizer = load_model(study.recipe.foundation)
    add_lora(model, arm.lora, study.seed)
    text_settings, task_settings = study.settings(arm.text, arm.task)
    text = FinetuneRecipe(
        base=study.recipe.foundation,
        data=study.recipe.data,
        seq_len=arm.seq_len,
        lora=arm.lora,
        train=text_settings,
    )
    task = text.model_copy(update={"task": study.recipe.task, "train": task_settings})
    return tune(study, "lora", model, tokenizer, arm.seq_len, text, task)


def tune(
    study: Study,
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    seq_len: int,
    text: Recipe | FinetuneRecipe,
    task: Recipe | FinetuneRecipe,
) -> dict:
    """Train on text, score the documents; train on the task, score the items."""
    sets = text_sets(study.documents, model, tokenizer, seq_len)
    trained = model.num_parameters(trainable=True)
    first = _train(study, f"{name}-text", model, tokenizer, sets, text)
    bits = document_bits(_inference(model), tokenizer, study.test)
    items = task_sets(study.task, model, tokenizer)
    second = _train(study, f"{name}-task", model, tokenizer, items, task)
    answers = task_answers(_inference(model), tokenizer, study.task, no_shots)
    return {
        "document_bits": bits,
        **answers,
        "trained_parameters": trained,
        "training_seconds": first.progress.seconds + second.progress.seconds,
        "training_flops": first.progress.flops + second.progress.flops,
        "training_tokens": first.progress.tokens,
        "training_items": second.progress.step * task.train.batch_size,
    }


def zero_shot(study: Study) -> dict:
    """The foundation as it is."""
    model, tokenizer = study.foundation()
    bits = document_bits(model, tokenizer, study.test)
    return {"document_bits": bits, **task_answers(model, tokenizer, study.task, no_shots)}


def few_shot(study: Study) -> dict:
    """The same few labelled items before every question; as many documents before a text."""
    model, tokenizer = study.foundation()
    count, texts = study.recipe.shots, study.train_texts()
    prefix = random.Random(study.seed).sample(texts, min(count, len(texts)))
    bits = document_bits(model, tokenizer, study.test, prefix)
    shots = fixed_shots(study.task, count, study.seed)
    return {"document_bits": bits, **task_answers(model, tokenizer, study.task, shots)}


def retrieved_shots(study: Study) -> dict:
    """The input's nearest labelled items before every question.

    No bits per byte: neighbours of a text could be found only by looking at the text itself.
    """
    model, tokenizer = study.foundation()
    shots = neighbour_shots(study.task, study.recipe.shots)
    return task_answers(model, tokenizer, study.task, shots)


ARMS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "compressors": compressors,
    "majority-class": majority_class,
    "tfidf-logistic": tfidf,
    "zero-shot": zero_shot,
    "few-shot": few_shot,
    "retrieved-shots": retrieved_shots,
    "scratch": scratch,
    "lora": lora,
}
TRAINED = ("scratch", "lora")
SEEDED = (*TRAINED, "few-shot")  # the seed draws the shots


def _inference(model: Transformer) -> Transformer:
    # A copy to score with: adapters merged, and in bfloat16 where that is what pays.
    model = merge_lora(copy.deepcopy(model)).eval()
    return model.bfloat16() if uses_bfloat16("auto", model, model.device) else model


def _train(
    study: Study,
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    sets: tuple[DataSet, DataSet],
    recipe: Recipe | FinetuneRecipe,
) -> RunResult:
    run = study.folder / f"{name}-{study.seed}"
    # An arm that was cut off starts again.
    with (
        start_run(run, recipe, tokenizer, overwrite=True),
        Ranks(recipe.train.device) as ranks,
    ):
        result = train(model, *sets, tokenizer, recipe.train, run, ranks)
    if result.signal:
        raise KeyboardInterrupt
    return result


def main() -> None:
    """Entry point of `python -m compare.arms`."""
    if len(sys.argv) != 5 or sys.argv[2] not in ARMS or not sys.argv[3].isdigit():
        raise UserError(f"usage: python -m compare.arms STUDY-DIR {{{','.join(ARMS)}}} SEED RESULT")
    folder, arm, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    study = Study(folder, seed)
    torch.manual_seed(seed)
    started = time.perf_counter()
    result = ARMS[arm](study)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result |= {
        "document_bytes": [len(text.encode()) for text in study.test],
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "load_average": os.getloadavg()[0],
        "peak_bytes": peak_memory(study.device if arm not in FLOORS else torch.device("cpu")),
    }
    Path(sys.argv[4]).write_text(json.dumps(result))


if __name__ == "__main__":
    run_command(main)
