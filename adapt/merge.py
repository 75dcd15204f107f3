"""Merge a saved adapter into its base model, as a run directory for model.sample.

    python -m adapt.merge BASE ADAPTER RUN [--overwrite]

BASE is the model that the adapter was trained on, as in `base` of a recipe; ADAPTER is a folder
written by adapt.finetune or `peft`.
"""

from pathlib import Path

from adapt.adapter import load_adapter
from adapt.methods import merge_model
from cli.console import say
from cli.errors import run_command
from cli.recipes import Parser
from configs.finetune_recipe import MergedModel
from configs.schema import Section
from model.formats.native import write_checkpoint
from model.load import load_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.run_directory import check_run, start_run


def save_merged(
    run: Path,
    model: Transformer,
    tokenizer: Tokenizer,
    base: str,
    trained_on: str = "",
    step: int = 0,
    score: float | None = None,
) -> None:
    """Merge adapters into `model` and write it as a run directory; replaces an existing one."""
    merge_model(model)
    recipe = MergedModel(base=base, trained_on=trained_on, model=model.config)
    with start_run(run, recipe, tokenizer, overwrite=True):
        weights = {name: p.detach() for name, p in model.named_parameters()}
        info = {"tokenizer": tokenizer.hash, "bits_per_byte": score}
        write_checkpoint(run, step, {"model.safetensors": weights}, info)


def main() -> None:
    """Entry point of `python -m adapt.merge`."""
    parser = Parser(__doc__)
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run")
    args = parser.parse_args()
    check_run(args.run, Section(), False, args.overwrite)
    model, tokenizer = load_model(args.base)
    load_adapter(model, args.adapter)
    save_merged(args.run, model, tokenizer, args.base)
    say(f"sample from it: python -m model.sample {args.run}")


if __name__ == "__main__":
    run_command(main)
