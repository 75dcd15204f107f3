"""Write a model as a Hugging Face folder that `transformers` loads.

    python -m model.export RUN|FOUNDATION FOLDER [--license apache-2.0]

The folder holds the weights, the tokenizer and a model card: what it was trained on and for how
long, how well it does, and what it is not fit for.
"""

import json
from pathlib import Path
from typing import Any

from cli.console import say
from cli.errors import UserError, run_command
from cli.recipes import Parser, read_toml
from model.formats.huggingface import family, save_huggingface
from model.formats.native import checkpoints, latest_checkpoint, read_file, read_manifest
from model.load import load_model
from model.transformer import Transformer


def model_card(name: str, model: Transformer, license: str) -> str:
    """A README.md for the model named `name`: a run's own records if it is one."""
    run = Path(name)
    facts = [("Parameters", f"{model.num_parameters():,}"), ("Context", f"{model.config.max_seq_len:,} tokens")]
    trained = "data that this card does not know"
    if (run / "config.toml").exists():
        recipe = read_toml(run / "config.toml")
        if "base" in recipe:
            facts.append(("Base model", recipe["base"]))
            trained = recipe.get("trained_on") or trained
        else:
            trained = f"the corpus `{recipe['data']['corpus']}`"
        facts += _training(run)
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts)
    measured = any("bits per byte" in key for key, _ in facts)
    told = "\nBits per byte were measured on held-out text of the same data, not on any other.\n"
    metadata = f"license: {license}\n" if license else ""
    return f"""---
{metadata}pipeline_tag: text-generation
tags: [homegrown, {family(model.config)}]
---

# {run.name}

A decoder-only transformer, trained on {trained}.

| | |
| --- | --- |
{rows}

## Limits

It continues text like what it was trained on. It was not tuned to follow instructions or to be safe
unless its data did that, it states falsehoods as readily as facts, and it repeats what its data
holds, private or offensive passages included.{"" if license else " No licence was given."}
{told if measured else ""}"""


def _training(run: Path) -> list[tuple[str, str]]:
    if not checkpoints(run):
        return []
    checkpoint = latest_checkpoint(run)
    facts: list[tuple[str, str]] = []
    if "state.json" in read_manifest(checkpoint)["files"]:
        progress: dict[str, Any] = read_file(checkpoint, "state.json")["progress"]
        facts = [
            ("Steps", f"{progress['step']:,}"),
            ("Training tokens", f"{progress['tokens']:,}"),
            ("Training FLOPs", f"{progress['flops']:.3g}"),
        ]
    score = read_manifest(checkpoint)["bits_per_byte"]
    metrics = run / "metrics.jsonl"
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        if '"whole_bits_per_byte"' in line:  # of all of the split: better than that of a subset
            score = json.loads(line)["whole_bits_per_byte"]
    if score is not None:
        facts.append(("Validation bits per byte", f"{score:.4f}"))
    summary = run / "summary.json"
    if summary.exists():
        for key, value in json.loads(summary.read_text()).items():
            if isinstance(value, int | float):
                facts.append((key.replace("_", " ").capitalize(), f"{value:.4g}"))
    return facts


def main() -> None:
    """Entry point of `python -m model.export`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="RUN|FOUNDATION")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new, or empty")
    parser.add_argument("--license", default="", help="of the weights, for the card")
    args = parser.parse_args()
    if args.folder.exists() and not args.folder.is_dir():
        raise UserError(f"{args.folder}: is a file; name a folder")
    model, tokenizer = load_model(args.model)
    save_huggingface(model, tokenizer, args.folder, model_card(args.model, model, args.license))
    say(f"written to {args.folder}; AutoModelForCausalLM.from_pretrained loads it")


if __name__ == "__main__":
    run_command(main)
