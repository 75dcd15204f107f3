"""Continue a text with a trained run or a foundation model.

    python -m model.sample RUN|FOUNDATION --prompt "Once" [--num-samples 4 --temperature 0.8 …]

A single sample is streamed; several are generated as one batch and printed one after another.
`--json` prints one object per sample: {"prompt", "text", "tokens", "stopped"}.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cli.atomic import to_json
from cli.console import show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from configs.schema import ModelConfig
from model.cache import KVCache
from model.generate import generate
from model.inference import PRECISIONS, load_for_generation
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


class Stream:
    """Incremental decoding of one sample, ended by a stop string or a special token."""

    def __init__(self, tokenizer: Tokenizer, stop: list[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.special = set(tokenizer.special_ids)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = ""
        self._shown = 0

    def push(self, token: int) -> None:
        """Append a token, unless the sample has stopped."""
        if self.stopped:
            return
        if token in self.special:
            self.stopped = "end of document"
            return
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)
        for stop in self.stop:
            if stop in self.text:
                self.text = self.text[: self.text.index(stop)]
                self.stopped = f"stop string {stop!r}"

    def new_text(self) -> str:
        """Text added since the last call, without an incomplete character or a possible stop string."""
        end = len(self.text)
        if not self.stopped:
            end = len(self.text.rstrip("\ufffd"))
            for stop in self.stop:
                for size in range(len(stop) - 1, 0, -1):
                    if self.text[:end].endswith(stop[:size]):
                        end -= size
                        break
        shown, self._shown = self.text[self._shown : end], max(self._shown, end)
        return shown


def encode_prompt(config: ModelConfig, tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """Ids of a prompt: a text is encoded after the document separator; ids are returned unchanged.

    Raises UserError if they leave no room in the context for one more token.
    """
    if isinstance(prompt, str):
        prompt = [tokenizer.separator_id, *tokenizer.encode(prompt)]
    ids = list(prompt)
    if len(ids) >= config.context:
        raise UserError(
            f"the prompt has {len(ids)} tokens with the separator; the model's context is "
            f"{config.context} and needs room for one more; shorten the prompt"
        )
    return ids


def sample(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    stop: list[str] | None = None,
    seed: int = 0,
    prefix: KVCache | None = None,
    **options: Any,
) -> Iterator[list[Stream]]:
    """Yield the list of samples after each decode step until all have stopped.

    The prompt is encoded as in `encode_prompt`; `prefix` is a prefix cache of its first ids;
    `options` are those of `generate` and the fields of `model.sampling.Sampling`. Raises UserError
    if the prompt does not fit the context.
    """
    ids = encode_prompt(model.config, tokenizer, prompt)
    cached = 0 if prefix is None else prefix.length - model.config.soft_tokens
    streams = [Stream(tokenizer, stop or []) for _ in range(num_samples)]
    steps = generate(
        model,
        torch.tensor([ids[cached:]]),
        prefix=prefix,
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        seed=seed,
        **options,
    )
    for drawn in steps:
        for stream, token in zip(streams, drawn.tolist(), strict=True):
            stream.push(token)
        yield streams
        if all(stream.stopped for stream in streams):
            return
    for stream in streams:
        stream.stopped = stream.stopped or "length"
    yield streams


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    convert.__name__ = kind.__name__
    return convert


def main() -> None:
    """Entry point of `python -m model.sample`."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("model", metavar="RUN|FOUNDATION", help="a run directory, smollm2-135m or a .gguf file")
    add("--prompt", default="", help="text to continue; empty starts a new document")
    add("--max-new-tokens", type=_number(int, 1), default=200)
    add("--num-samples", type=_number(int, 1), default=1)
    add("--temperature", type=_number(float, 0), default=0.8, help="0 is greedy decoding")
    add("--top-k", type=_number(int, 0), default=0, help="keep the k likeliest tokens; 0 keeps all")
    add("--top-p", type=_number(float, 0, 1), default=1.0, help="keep the likeliest tokens with this probability mass")
    add("--min-p", type=_number(float, 0, 1), default=0.0, help="least fraction of the highest probability")
    add("--seed", type=_number(int, 0), default=0)
    add("--stop", action="append", default=[], metavar="TEXT", help="stop string; may be repeated")
    add("--adapter", type=Path, metavar="FOLDER", help="a LoRA adapter of this model, which stays unmerged")
    add("--json", action="store_true", help="one JSON object per sample")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the weights; auto: bfloat16 on a GPU, else as stored",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true", help="on a CPU: compile decode, once per model, for half a minute")
    args = parser.parse_args()
    if "" in args.stop:
        raise UserError("--stop: an empty stop string would end every sample at once")
    folders = {"own": args.adapter} if args.adapter else {}
    model, tokenizer, adapters = load_for_generation(
        args.model, args.precision, args.device, args.num_samples, args.compile, folders
    )

    is_streamed = args.num_samples == 1 and not args.json
    if is_streamed:
        show(args.prompt, end="")
    used_here = ("model", "json", "precision", "device", "compile", "adapter")
    settings = {name: value for name, value in vars(args).items() if name not in used_here}
    for streams in sample(model, tokenizer, adapters=adapters, adapter="".join(folders), **settings):
        if is_streamed:
            show(streams[0].new_text(), end="")
    if is_streamed:
        show()
        return
    for number, stream in enumerate(streams):
        if args.json:
            row = {"prompt": args.prompt, "text": stream.text, "tokens": len(stream.ids)}
            print(to_json(row | {"stopped": stream.stopped}))
        else:
            show(f"{'' if number == 0 else chr(10)}--- {number + 1} ---\n{args.prompt + stream.text}")


if __name__ == "__main__":
    run_command(main)
