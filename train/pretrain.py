"""Pretrain a transformer from random weights, on one core or under torchrun on many GPUs.

    python -m train.pretrain RECIPE [--run-dir DIR] [--resume | --overwrite] [--train.steps 200 …]
    torchrun --standalone --nproc-per-node 2 -m train.pretrain RECIPE …

Prepares documents, tokenizer and token shards unless they are cached, and writes a run directory:
config.toml, tokenizer.json, metrics.jsonl, checkpoints/, plots/loss.png, sample.txt. Ctrl-C and
SIGTERM save a checkpoint and print the command to resume.
"""

from pathlib import Path

from cli.console import show
from cli.errors import run_command
from cli.recipes import parse
from configs.schema import Recipe
from data.prepare import prepare
from data.shards import Windows, cached_tokenizer, write_shards
from model.build import build_model
from model.formats.families import check_portable
from model.formats.native import load_run
from model.sample import encode_prompt, sample
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.loop import Trainer
from train.plot import plot_run
from train.run_directory import (
    handle_interrupt,
    report_result,
    resolve_recipe,
    run_directory_arguments,
    should_resume,
    start_run,
)


def load_data(recipe: Recipe) -> tuple[Tokenizer, Windows, Windows]:
    """Tokenizer, training windows and validation windows of a recipe, prepared unless cached."""
    folder = prepare(recipe.data)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, recipe.tokenizer))
    shards = write_shards(folder, tokenizer)
    length = recipe.model.max_seq_len
    train_set, validation_set = (Windows(shards, split, length, tokenizer) for split in ("train", "validation"))
    train_set.mix([corpus.weight for corpus in recipe.data.corpora])
    return tokenizer, train_set, validation_set


def main() -> int:
    """Entry point of `python -m train.pretrain`."""
    recipe, own = parse(Recipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        resume = bool(ranks.sum(ranks.is_main and should_resume(run, own.resume))[0])
        with ranks.main_process_first():
            recipe = resolve_recipe(recipe, run, ranks, resume, own.overwrite)
            if recipe.portable:
                check_portable(recipe.model, recipe.tokenizer)
            tokenizer, train_set, validation_set = load_data(recipe)
            encode_prompt(recipe.model, tokenizer, recipe.sample.prompt)  # rejects a bad prompt before training
            if ranks.is_main:
                lock = start_run(run, recipe, tokenizer, resume=resume, overwrite=own.overwrite)
        with handle_interrupt():
            model = build_model(recipe.model, tokenizer.vocab_size).init_weights(recipe.train.seed)
            sets = train_set, validation_set
            trainer = Trainer(model, *sets, tokenizer, recipe.train, run, ranks, resume=resume, profile=own.profile)
            result = trainer.train()
            if ranks.is_main:
                plot_run(run)
            if ranks.is_main and not result.signal:
                write_samples(run, recipe)
            if ranks.is_main:
                lock.close()
            return report_result(result, run)


def write_samples(run: Path, recipe: Recipe) -> None:
    """Generate samples from the saved model as [sample] asks; print them and write sample.txt."""
    model, tokenizer = load_run(run)
    settings = recipe.sample.model_dump()
    *_, streams = sample(model, tokenizer, seed=recipe.train.seed, **settings)
    texts = [recipe.sample.prompt + stream.text for stream in streams]
    (run / "sample.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for number, text in enumerate(texts):
        show(f"--- sample {number + 1} ---\n{text}")


if __name__ == "__main__":
    run_command(main)
