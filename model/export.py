"""Write a model as a Hugging Face folder for `transformers`, or as a GGUF file for llama.cpp.

    python -m model.export RUN|FOUNDATION FOLDER [--license apache-2.0]
    python -m model.export RUN|FOUNDATION FILE.gguf [--type q8_0]

The folder holds the weights, the tokenizer and a model card with training data, training length,
validation scores and limits; the card of a GGUF file is written beside it as FILE.md. Options that no
architecture of transformers has are written as modelling code in the folder; llama.cpp refuses them.
"""

import json
from pathlib import Path
from typing import Any

from cli.atomic import write_atomically
from cli.console import say
from cli.errors import UserError, run_command
from cli.recipes import Parser, read_toml
from model.formats.families import find_family, fold_config, needs_own_code
from model.formats.gguf_writer import TYPES, save_gguf
from model.formats.huggingface import save_huggingface
from model.formats.native import checkpoints, latest_checkpoint, read_file, read_manifest
from model.formats.remote import CODE
from model.load import load_model
from model.transformer import Transformer


def model_card(name: str, model: Transformer, license: str) -> str:
    """The README.md of the model `name`; for a run directory, with its training records."""
    run = Path(name)
    facts = [("Parameters", f"{model.num_parameters():,}"), ("Context", f"{model.config.max_seq_len:,} tokens")]
    trained = "unknown data"
    if (run / "config.toml").exists():
        recipe = read_toml(run / "config.toml")
        if "base" in recipe:
            facts.append(("Base model", recipe["base"]))
            trained = recipe.get("trained_on") or trained
        else:
            trained = f"the corpus `{recipe['data']['corpus']}`"
        facts += _training_facts(run)
    table = "\n".join(f"| {key} | {value} |" for key, value in facts)
    config = fold_config(model.config)
    family = "homegrown" if needs_own_code(config) else find_family(config)
    has_score = any("bits per byte" in key for key, _ in facts)
    score_note = "\nBits per byte were measured on held-out text of the training corpus only.\n"
    metadata = f"license: {license}\n" if license else ""
    return f"""---
{metadata}pipeline_tag: text-generation
tags: [homegrown, {family}]
---

# {run.name}

A decoder-only transformer, trained on {trained}.

| | |
| --- | --- |
{table}

## Limits

The model continues text that resembles its training data. It was not tuned to follow instructions or
for safety, unless the training data did so. It may state falsehoods as facts, and it may repeat
private or offensive passages of its training data.{"" if license else " No licence was given."}
{score_note if has_score else ""}"""


def _training_facts(run: Path) -> list[tuple[str, str]]:
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
        if '"whole_bits_per_byte"' in line:  # of the whole split: preferred to that of a subset
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
    parser.add_argument("target", type=Path, metavar="FOLDER|FILE.gguf", help="a new or empty folder, or a .gguf file")
    parser.add_argument("--license", default="", help="licence of the weights, for the model card")
    parser.add_argument("--type", choices=TYPES, help="of the matrices in a .gguf file; default f16")
    args = parser.parse_args()
    target: Path = args.target
    is_gguf = target.suffix == ".gguf"
    if target.exists() and not is_gguf and not target.is_dir():
        raise UserError(f"{target}: is a file; give a folder, or a name that ends with .gguf")
    card = target.with_suffix(".md")
    for path in (target, card) if is_gguf else ():
        if path.exists() or not path.parent.is_dir():
            raise UserError(f"{path}: {'exists; choose another name' if path.exists() else 'no such folder'}")
    if args.type and not is_gguf:
        raise UserError(f"--type {args.type}: only for .gguf files")
    model, tokenizer = load_model(args.model)
    if is_gguf:
        save_gguf(model, tokenizer, target, args.type or "f16", Path(args.model).name)
        write_atomically(card, model_card(args.model, model, args.license))
        say(f"model written to {target}; run it with llama-cli -m {target}")
        return
    save_huggingface(model, tokenizer, target, model_card(args.model, model, args.license))
    code = ", trust_remote_code=True" if (target / f"{CODE}.py").exists() else ""
    say(f'model written to {target}; load it with AutoModelForCausalLM.from_pretrained("{target}"{code})')


if __name__ == "__main__":
    run_command(main)
