"""Adapt a pretrained model: to domain text, to a labelled task, or to examples of your own.

    python -m adapt.finetune RECIPE [--run-dir DIR] [--resume | --overwrite] [--way full …]

`way` says what is trained: full, top_layers, lora, soft_prompt, or features (a classifier on a
frozen model). The same loop as pretraining trains the first four. When done, the run directory also
holds

    adapter/       lora and soft_prompt: what was trained alone, in peft's format
    merged/        a run directory of the whole model, the best by validation: model.sample takes it
    summary.json   loss before and after, a sample before and after, forgetting, memory
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from adapt.adapter import save_adapter
from adapt.features import extract, fit
from adapt.full import tune_all
from adapt.lora import add_lora, merge_lora
from adapt.soft_prompt import add_soft_prompt, settle
from adapt.top_layers import tune_top_layers
from configs.atomic import to_json, write_atomically
from configs.cli import UserError, parse, run_command
from configs.console import say, show
from configs.schema import FinetuneRecipe, MergedModel
from data.examples import Examples, Row, completions, read_examples
from data.prepare import prepare, shuffled
from data.shards import Windows, write_shards
from data.tasks import Item, Task, load_task
from model.formats.native import best_checkpoint, read_file, read_manifest, write_checkpoint
from model.load import load_model
from model.sample import prompt_ids, sample
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.evaluate import evaluate
from train.foresight import uses_bfloat16
from train.pretrain import DataSet, train
from train.run import (
    RunResult,
    check_run,
    finish,
    goes_on,
    pinned_recipe,
    resumable,
    run_directory_arguments,
    saved_config,
    start_run,
)

GENERAL = 32  # documents that forgetting is measured on, of at most so many tokens:
GENERAL_TOKENS = 256


def text_sets(
    folder: Path, model: Transformer, tokenizer: Tokenizer, seq_len: int, most: int = 0
) -> tuple[Windows, Windows]:
    """Train and validation windows of domain text, tokenised for this model.

    `most` windows to validate on, if it is not 0.

    Raises UserError if a window is longer than the model's context or the train split.
    """
    _check_length(model, seq_len)
    shards = write_shards(folder, tokenizer)
    train_set = Windows(shards, "train", seq_len, tokenizer)
    return train_set, Windows(shards, "validation", seq_len, tokenizer, most)


def task_sets(task: Task, model: Transformer, tokenizer: Tokenizer, pack: int = 0) -> tuple[Examples, Examples]:
    """Train and validation examples of a task: prompt and label, scored on the label only.

    `pack` tokens of them in a row, or one in each.
    """

    def rows(items: list[Item]) -> list[Row]:
        pairs = [(task.opening + task.prompt(i.text), task.completion(i.label)) for i in items]
        return completions(pairs, tokenizer)

    return example_sets(rows(task.train), rows(task.validation), model, tokenizer, pack)


def example_sets(
    train_rows: Sequence[Row], validation_rows: Sequence[Row], model: Transformer, tokenizer: Tokenizer, pack: int = 0
) -> tuple[Examples, Examples]:
    """As `task_sets`, of texts. Raises UserError for one that does not fit the context."""
    length = pack or model.config.context
    _check_length(model, length)
    train_set, validation_set = (Examples(rows, length, tokenizer, pack > 0) for rows in (train_rows, validation_rows))
    return train_set, validation_set


def adapt(model: Transformer, tokenizer: Tokenizer, recipe: FinetuneRecipe) -> Transformer:
    """Choose what of `model` is trained, and add what is missing; returns it."""
    if recipe.way == "full":
        return tune_all(model)
    if recipe.way == "top_layers":
        return tune_top_layers(model, recipe.top_layers)
    if recipe.way == "soft_prompt":
        return add_soft_prompt(model, tokenizer, recipe.soft_prompt, recipe.train.seed)
    return add_lora(model, recipe.lora, recipe.train.seed)


def merge(model: Transformer) -> Transformer:
    """The whole model in plain layers, as a run directory holds it; returns it."""
    merge_lora(model)
    return settle(model) if model.config.soft_tokens else model


def save_merged(
    run: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    base: str,
    trained_on: str = "",
    step: int = 0,
    score: float | None = None,
) -> None:
    """Write the whole model as a run directory of its own, in place of any that is there."""
    merge(model)
    recipe = MergedModel(base=base, trained_on=trained_on, model=model.config)
    with start_run(run, recipe, tokenizer, overwrite=True):
        weights = {name: p.detach() for name, p in model.named_parameters()}
        info = {"tokenizer": tokenizer.hash, "bits_per_byte": score}
        write_checkpoint(run, step, {"model.safetensors": weights}, info)


def main() -> int:
    """Entry point of `python -m adapt.finetune`."""
    recipe, own = parse(FinetuneRecipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        resume = bool(ranks.sum(ranks.first and goes_on(run, own.resume))[0])
        with ranks.first_goes_first():
            if not ranks.first:  # what the first one has found on the hub and written down
                recipe = saved_config(run, FinetuneRecipe, True) or recipe
            if ranks.first:
                recipe = pinned_recipe(recipe, saved_config(run, FinetuneRecipe, resume))
                check_run(run, recipe, resume, own.overwrite)
            model, tokenizer = load_model(recipe.base)
            if recipe.way == "features":  # which no one helps with
                first = ranks.first
                return classify(recipe, run, model, tokenizer, own.overwrite) if first else 0
            adapt(model, tokenizer, recipe)
            train_set, validation_set, prompt = _sets(recipe, model, tokenizer)
            if ranks.first:
                lock = start_run(run, recipe, tokenizer, resume=resume, overwrite=own.overwrite)
                with resumable():
                    before = _measure(model.to(ranks.device), tokenizer, recipe, ranks, validation_set, prompt)
                    say(
                        f"before: validation loss {before['loss']:.4f}; general text "
                        f"({recipe.general}) {before['general_bits_per_byte']:.4f} bits per byte"
                    )
        with resumable():
            result = train(
                model,
                train_set,
                validation_set,
                tokenizer,
                recipe.train,
                run,
                ranks,
                resume=resume,
                profile=own.profile,
                keep_best=True,
            )
            if not ranks.first:
                return 128 * bool(result.signal) + result.signal
            if not result.signal:
                _conclude(recipe, run, result, ranks, before, validation_set, prompt)
            lock.close()
            return finish(result, run)


def classify(recipe: FinetuneRecipe, run: Path, model: Transformer, tokenizer: Tokenizer, overwrite: bool) -> int:
    """Fit a classifier on frozen features, and keep it. Raises UserError for an open task."""
    assert recipe.task is not None  # the schema sees to it
    task = load_task(recipe.task, recipe.data)
    if not task.labels:
        raise UserError(f"task {recipe.task.name}: its answers are open; features choose a label")
    if uses_bfloat16("auto", model, model.device):
        model.bfloat16()
    pooling = recipe.features.pooling
    train_features, validation_features = (
        extract(model, tokenizer, [item.text for item in items], pooling) for items in (task.train, task.validation)
    )
    head, score = fit(task, train_features, validation_features, recipe.features)
    with start_run(run, recipe, tokenizer, overwrite=overwrite):
        head.save(run)
    layers = f"layer {head.layers[0]}" if len(head.layers) == 1 else f"{len(head.layers)} layers"
    common, count = Counter(item.label for item in task.validation).most_common(1)[0]
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
        f'"{common}" alone would be {summary["validation_majority"]:.3f} of the validation items'
    )
    say(
        f"done: {layers}, {score:.3f} of {len(task.validation)} validation items right (layer and "
        f"regularisation are chosen on them); the classifier is in {run}"
    )
    say(f"test items: python -m adapt.classify {run}; or give it texts")
    return 0


def _sets(recipe: FinetuneRecipe, model: Transformer, tokenizer: Tokenizer) -> tuple[DataSet, DataSet, list[int]]:
    # What is trained and validated on, and the ids of a prompt to show what changes.
    pack = recipe.seq_len if recipe.pack else 0
    if recipe.task is not None:
        task = load_task(recipe.task, recipe.data)
        sets = task_sets(task, model, tokenizer, pack)
        asked = task.opening + task.prompt(task.validation[0].text)
        return *sets, prompt_ids(model.config, tokenizer, asked)
    if recipe.examples:
        rows = read_examples(Path(recipe.examples), recipe.data, tokenizer)
        shown = rows[1][0]
        sets = example_sets(*rows, model, tokenizer, pack)
        return *sets, shown.ids[: shown.scored.index(True)]
    prompt = prompt_ids(model.config, tokenizer, recipe.sample.prompt)
    return *text_sets(prepare(recipe.data), model, tokenizer, recipe.seq_len), prompt


def _measure(
    model: Transformer,
    tokenizer: Tokenizer,
    recipe: FinetuneRecipe,
    ranks: Ranks,
    validation_set: DataSet,
    prompt: list[int],
) -> dict:
    # Loss on the validation split, bits per byte of general text, and what is written.
    data = recipe.data.model_copy(update={"corpus": recipe.general, "group_field": ""})
    texts = [row["text"] for row in shuffled(prepare(data), "test")[:GENERAL]]
    rows = [
        Row(ids, [True] * len(ids))
        for ids in ([tokenizer.separator_id, *ids][:GENERAL_TOKENS] for ids in tokenizer.encode_batch(texts))
    ]
    length = min(GENERAL_TOKENS, model.config.context)
    general = Examples([Row(r.ids[:length], r.scored[:length]) for r in rows], length, tokenizer)
    bfloat16 = uses_bfloat16(recipe.train.precision, model, model.device)
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16)
    settings = recipe.train.model_copy(update={"parallel": "ddp", "micro_batch_size": 4})
    alone = ranks.alone(model.device)
    scores = {}
    for name, data_set in (("validation", validation_set), ("general", general)):
        model.separator = data_set.separator
        scores[name] = evaluate(model, model, data_set, settings, alone, autocast)
    model.separator = -1
    model.eval()
    how = recipe.sample.model_dump(exclude={"prompt", "num_samples"})
    *_, (stream,) = sample(model, tokenizer, prompt, seed=recipe.train.seed, **how)
    model.train()
    return {
        "loss": scores["validation"]["validation_loss"],
        "general_bits_per_byte": scores["general"]["bits_per_byte"],
        "sample": stream.text,
    }


def _conclude(
    recipe: FinetuneRecipe,
    run: Path,
    result: RunResult,
    ranks: Ranks,
    before: dict,
    validation_set: DataSet,
    prompt: list[int],
) -> None:
    # The best checkpoint on a fresh base: this process may hold a later one, or only a share.
    checkpoint = best_checkpoint(run)
    model, tokenizer = load_model(recipe.base)
    adapt(model, tokenizer, recipe)
    kept = "average" if recipe.train.average else "model"
    model.load_state_dict(read_file(checkpoint, f"{kept}.safetensors"), strict=False)
    after = _measure(model.to(ranks.device), tokenizer, recipe, ranks, validation_set, prompt)
    model = model.cpu()
    counts = {
        "trained_parameters": model.num_parameters(True),
        "frozen_parameters": model.num_parameters() - model.num_parameters(True),
    }
    if recipe.way in ("lora", "soft_prompt"):
        try:
            save_adapter(model, run / "adapter", recipe.base)
        except UserError as error:
            say(f"WARNING: no adapter/ was written: {error}")
    step, score = int(checkpoint.name), read_manifest(checkpoint)["bits_per_byte"]
    save_merged(run / "merged", model, tokenizer, recipe.base, _told(recipe), step, score)
    shown = tokenizer.decode(prompt)
    summary = {
        **counts,
        "best_step": step,
        **{f"{key}_before": value for key, value in before.items()},
        **{f"{key}_after": value for key, value in after.items()},
        "prompt": shown,
        "peak_bytes": result.peak_bytes,
        "training_tokens": result.progress.tokens,
        "training_seconds": result.progress.seconds,
        "training_flops": result.progress.flops,
    }
    for folder in (run, run / "merged"):
        write_atomically(folder / "summary.json", to_json(summary, 2) + "\n")
    forgotten = after["general_bits_per_byte"] - before["general_bits_per_byte"]
    say(
        f"best step {step}: validation loss {before['loss']:.4f} -> {after['loss']:.4f}; general "
        f"text ({recipe.general}) {before['general_bits_per_byte']:.4f} -> "
        f"{after['general_bits_per_byte']:.4f} bits per byte ({forgotten:+.4f})"
    )
    for when, measured in (("before", before), ("after", after)):
        show(f"--- {when} ---\n{shown}{measured['sample']}")
    say(f"sample from it: python -m model.sample {run / 'merged'}")


def _told(recipe: FinetuneRecipe) -> str:
    # What was trained on, for those who find the weights.
    if recipe.examples:
        return f"the examples of `{Path(recipe.examples).name}`"
    corpus = f"the corpus `{recipe.data.corpus}`"
    if recipe.task is None:
        return corpus
    name = recipe.task.name
    if name.endswith(".jsonl"):
        return f"the task of `{Path(name).name}`"
    return f"the task `{name}` of {corpus}"


def _check_length(model: Transformer, length: int) -> None:
    if length > model.config.context:
        raise UserError(f"seq_len = {length} is above the model's context of {model.config.context}")


if __name__ == "__main__":
    run_command(main)
