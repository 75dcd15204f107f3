"""Merge a saved adapter into its base model: a run directory that model.sample takes.

    python -m adapt.merge BASE ADAPTER RUN [--overwrite]

BASE is what the adapter was trained upon, as `base` in a recipe; ADAPTER is a folder that
adapt.finetune or `peft` has written.
"""

from pathlib import Path

from adapt.adapter import load_adapter
from adapt.finetune import save_merged
from configs.cli import Parser, run_command
from configs.console import say
from configs.schema import Section
from model.load import load_model
from train.run import check_run


def main() -> None:
    """Entry point of `python -m adapt.merge`."""
    parser = Parser(__doc__)
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    args = parser.parse_args()
    check_run(args.run, Section(), False, args.overwrite)
    model, tokenizer = load_model(args.base)
    load_adapter(model, args.adapter)
    save_merged(args.run, model, tokenizer, args.base)
    say(f"sample from it: python -m model.sample {args.run}")


if __name__ == "__main__":
    run_command(main)
