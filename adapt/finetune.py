"""Fine-tune a pretrained model with LoRA, on domain text or on a labelled task.

    python -m adapt.finetune RECIPE [--run-dir DIR] [--resume | --overwrite] [--lora.rank 4 …]

The same loop as pretraining trains the adapter. The run directory holds the adapter's checkpoints
and, when done, `merged/`: a run directory of the whole model that `model.sample` takes.
"""

from pathlib import Path

from adapt.lora import add_lora, merge_lora
from configs.cli import UserError, parse, run_command
from configs.console import say
from configs.schema import DataConfig, FinetuneRecipe, MergedModel
from data.prepare import prepare
from data.shards import Examples, Windows, write_shards
from data.tasks import Item, Task, load_task
from model.formats.native import latest_checkpoint, read_file, write_checkpoint
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.pretrain import train
from train.run import check_run, finish, goes_on, run_directory_arguments, start_run


def text_sets(
    folder: Path, model: Transformer, tokenizer: Tokenizer, seq_len: int
) -> tuple[Windows, Windows]:
    """Train and validation windows of domain text, tokenised for this model.

    Raises UserError if a window is longer than the model's context or the train split.
    """
    if seq_len > model.config.max_seq_len:
        raise UserError(
            f"seq_len = {seq_len} is above the model's context of {model.config.max_seq_len}"
        )
    shards = write_shards(folder, tokenizer)
    train_set, validation_set = (
        Windows(shards, split, seq_len, tokenizer) for split in ("train", "validation")
    )
    return train_set, validation_set


def task_sets(task: Task, model: Transformer, tokenizer: Tokenizer) -> tuple[Examples, Examples]:
    """Train and validation examples of a task: prompt and label, scored on the label only."""

    def examples(items: list[Item]) -> Examples:
        pairs = [(task.opening + task.prompt(i.text), task.completion(i.label)) for i in items]
        return Examples(pairs, model.config.max_seq_len, tokenizer)

    return examples(task.train), examples(task.validation)


def save_merged(
    run: Path, model: Transformer, tokenizer: Tokenizer, data: DataConfig, step: int
) -> None:
    """Write the whole merged model as a run directory of its own."""
    merge_lora(model)
    recipe = MergedModel(data=data, model=model.config)
    with start_run(run, recipe, tokenizer, overwrite=True):
        weights = {name: p.detach() for name, p in model.named_parameters()}
        info = {"tokenizer": tokenizer.hash, "bits_per_byte": None}
        write_checkpoint(run, step, {"model.safetensors": weights}, info)


def main() -> int:
    """Entry point of `python -m adapt.finetune`."""
    recipe, own = parse(FinetuneRecipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        resume = bool(ranks.sum(ranks.first and goes_on(run, own.resume))[0])
        with ranks.first_goes_first():
            if ranks.first:
                check_run(run, recipe, resume, own.overwrite)
            model, tokenizer = load_model(recipe.base)
            add_lora(model, recipe.lora, recipe.train.seed)
            train_set: Windows | Examples
            validation_set: Windows | Examples
            if recipe.task is None:
                folder = prepare(recipe.data)
                train_set, validation_set = text_sets(folder, model, tokenizer, recipe.seq_len)
            else:
                task = load_task(recipe.task, recipe.data)
                train_set, validation_set = task_sets(task, model, tokenizer)
            if ranks.first:
                lock = start_run(run, recipe, tokenizer, resume=resume, overwrite=own.overwrite)
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
        )
        if not ranks.first:
            return 128 * bool(result.signal) + result.signal
        if not result.signal:
            if recipe.train.parallel == "fsdp" and ranks.world_size > 1:
                # This process holds only some rows of the adapter; the checkpoint has them all.
                model, _ = load_model(recipe.base)
                add_lora(model, recipe.lora, recipe.train.seed)
                adapter = read_file(latest_checkpoint(run), "model.safetensors")
                model.load_state_dict(adapter, strict=False)
            save_merged(run / "merged", model, tokenizer, recipe.data, result.progress.step)
            say(f"sample from it: python -m model.sample {run / 'merged'}")
        lock.close()
        return finish(result, run)


if __name__ == "__main__":
    run_command(main)
