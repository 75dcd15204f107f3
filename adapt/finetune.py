"""Fine-tune a pretrained model on domain text, on a labelled task, or on your own examples.

    python -m adapt.finetune RECIPE [--run-dir DIR] [--resume | --overwrite] [--method full …]

The method selects the trained weights: full, top_layers, lora, soft_prompt, or features (a classifier on
frozen features); see adapt/methods.py. The first four use the loop of pretraining. At the end the
run directory also holds

    adapter/       for lora and soft_prompt: only the trained weights, in peft's format
    merged/        a run directory with the best model by validation loss, for model.sample
    summary.json   loss, sample and forgetting before and after; memory, tokens, FLOPs
"""

from pathlib import Path

from adapt.adapter import save_adapter
from adapt.datasets import example_sets, task_sets, text_sets
from adapt.features import train_classifier
from adapt.merge import save_merged
from adapt.methods import METHODS, prepare_model
from adapt.probe import Probe
from cli.atomic import to_json, write_atomically
from cli.console import say, show
from cli.errors import UserError, run_command
from cli.recipes import parse
from configs.finetune_recipe import FinetuneRecipe
from data.examples import read_examples
from data.prepare import prepare
from data.tasks import load_task
from model.formats.native import best_checkpoint, read_file, read_manifest, weights_file
from model.load import load_model
from model.sample import encode_prompt
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.forward import DataSet
from train.loop import RunResult, Trainer
from train.plot import plot_run
from train.run_directory import (
    handle_interrupt,
    report_result,
    resolve_recipe,
    run_directory_arguments,
    should_resume,
    start_run,
)


def main() -> int:
    """Entry point of `python -m adapt.finetune`."""
    recipe, own = parse(FinetuneRecipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        resume = bool(ranks.sum(ranks.is_main and should_resume(run, own.resume))[0])
        with ranks.main_process_first():
            recipe = resolve_recipe(recipe, run, ranks, resume, own.overwrite)
            model, tokenizer = load_model(recipe.base)
            if recipe.method == "features":  # runs on the main rank only
                if ranks.is_main:
                    train_classifier(recipe, run, model, tokenizer, own.overwrite)
                return 0
            prepare_model(model, tokenizer, recipe.method, recipe, recipe.train.seed)
            sets, prompt = load_data(recipe, model, tokenizer)
            probe = Probe(recipe, ranks, sets[1], prompt)
            if ranks.is_main:
                lock = start_run(run, recipe, tokenizer, resume=resume, overwrite=own.overwrite)
                with handle_interrupt():
                    before = probe.measure(model.to(ranks.device), tokenizer)
                    say(
                        f"before: validation loss {before['loss']:.4f}; general text "
                        f"({recipe.general}) {before['general_bits_per_byte']:.4f} bits per byte"
                    )
        with handle_interrupt():
            trainer = Trainer(
                model, *sets, tokenizer, recipe.train, run, ranks, resume=resume, profile=own.profile, keep_best=True
            )
            result = trainer.train()
            if ranks.is_main:
                plot_run(run)
            if ranks.is_main and not result.signal:
                save_results(run, result, probe, before)
            if ranks.is_main:
                lock.close()
            return report_result(result, run)


def load_data(
    recipe: FinetuneRecipe, model: Transformer, tokenizer: Tokenizer
) -> tuple[tuple[DataSet, DataSet], list[int]]:
    """Training and validation data, and prompt ids for the sample before and after."""
    pack = recipe.seq_len if recipe.pack else 0
    if recipe.task is not None:
        task = load_task(recipe.task, recipe.data)
        sets = task_sets(task, model, tokenizer, pack)
        first = task.opening + task.prompt(task.validation[0].text)
        return sets, encode_prompt(model.config, tokenizer, first)
    if recipe.examples:
        rows = read_examples(Path(recipe.examples), recipe.data, tokenizer)
        shown = rows[1][0]
        return example_sets(*rows, model, tokenizer, pack), shown.ids[: shown.scored.index(True)]
    prompt = encode_prompt(model.config, tokenizer, recipe.sample.prompt)
    return text_sets(prepare(recipe.data), model, tokenizer, recipe.seq_len), prompt


def save_results(run: Path, result: RunResult, probe: Probe, before: dict) -> None:
    """Write adapter/, merged/ and summary.json of the best checkpoint, on a freshly loaded base."""
    recipe, checkpoint = probe.recipe, best_checkpoint(run)
    model, tokenizer = load_model(recipe.base)
    prepare_model(model, tokenizer, recipe.method, recipe, recipe.train.seed)
    model.load_state_dict(read_file(checkpoint, weights_file(checkpoint)), strict=False)
    after = probe.measure(model.to(probe.ranks.device), tokenizer)
    model = model.cpu()
    trained = model.num_parameters(trainable=True)
    frozen = model.num_parameters() - trained
    if METHODS[recipe.method].has_adapter:
        try:
            save_adapter(model, run / "adapter", recipe.base)
        except UserError as error:
            say(f"WARNING: no adapter/ was written: {error}")
    step, score = int(checkpoint.name), read_manifest(checkpoint)["bits_per_byte"]
    save_merged(run / "merged", model, tokenizer, recipe.base, describe_data(recipe), step, score)
    shown = tokenizer.decode(probe.prompt)
    summary = {
        "trained_parameters": trained,
        "frozen_parameters": frozen,
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
    general = before["general_bits_per_byte"], after["general_bits_per_byte"]
    say(
        f"best step {step}: validation loss {before['loss']:.4f} -> {after['loss']:.4f}; general text "
        f"({recipe.general}) {general[0]:.4f} -> {general[1]:.4f} bits per byte ({general[1] - general[0]:+.4f})"
    )
    for when, measured in (("before", before), ("after", after)):
        show(f"--- {when} ---\n{shown}{measured['sample']}")
    say(f"sample from it: python -m model.sample {run / 'merged'}")


def describe_data(recipe: FinetuneRecipe) -> str:
    """The training data in words, for the model card."""
    if recipe.examples:
        return f"the examples of `{Path(recipe.examples).name}`"
    corpus = f"the corpus `{recipe.data.corpus}`"
    if recipe.task is None:
        return corpus
    name = recipe.task.name
    if name.endswith(".jsonl"):
        return f"the task of `{Path(name).name}`"
    return f"the task `{name}` of {corpus}"


if __name__ == "__main__":
    run_command(main)
