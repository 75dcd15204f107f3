"""Load a model to generate with: its precision, its device, compiled blocks."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from cli.errors import UserError
from model.adapters import Adapters
from model.compiled import CompiledBlocks
from model.formats.gguf import read_gguf
from model.formats.peft import read_updates
from model.load import FOUNDATIONS, foundation_file, load_model, read_model_file
from model.packed import fuse, pack
from model.quantized import QuantizedLinear, block_rows, quantise_model
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

PRECISIONS = ("auto", "float32", "bfloat16", "int8", "int4")
_KEPT = {"auto": ("Q4_0", "Q4_1", "Q8_0"), "int8": ("Q4_0", "Q4_1", "Q8_0"), "int4": ("Q4_0", "Q4_1")}


class Loaded(NamedTuple):
    """What generation needs."""

    model: Transformer
    tokenizer: Tokenizer
    adapters: Adapters | None


def load_for_generation(
    name: str,
    precision: str = "auto",
    device: str = "auto",
    rows: int = 1,
    compile: bool = False,
    adapters: Mapping[str, Path] | None = None,
) -> Loaded:
    """A model for `model.engine`, its tokenizer and its adapters.

    Args:
        name: as in `load_model`.
        precision: of the weights. "int8" and "int4" quantise on load, what a .gguf file holds in as few
            bits is kept. "auto" is bfloat16 on a GPU; on a CPU the quantised weights of a .gguf file as
            they are, and float32 otherwise.
        device: "auto", "cpu" or "cuda".
        rows: number of texts that are generated at a time.
        compile: on a CPU, compile the blocks for decode, once per model. Without it quantised
            weights use what was compiled before.
        adapters: folders of LoRA adapters of this model by name, which stay unmerged.

    Raises UserError as `load_model` does, for "cuda" without a GPU, and for int8 or int4 on one.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: no GPU is visible to torch")
    on_gpu = cuda and device != "cpu"
    if on_gpu and precision in ("int8", "int4"):
        raise UserError(f"--precision {precision} is for CPUs; on a GPU use bfloat16, or add --device cpu")
    path = foundation_file(name) if name in FOUNDATIONS else Path(name)
    if not on_gpu and precision in _KEPT and block_rows() and path.suffix == ".gguf":
        model, tokenizer, kept = read_model_file(partial(read_gguf, keep=_KEPT[precision]), path)
        if kept:
            quantise_model(model, 4 if precision == "int4" else 8, kept)
    else:
        model, tokenizer, kept = *load_model(name), {}
    if on_gpu:
        model = model.to("cuda", torch.float32 if precision == "float32" else torch.bfloat16)
        return Loaded(model, tokenizer, _attach(model, adapters))
    if precision in ("int8", "int4") and not kept:
        quantise_model(model, 4 if precision == "int4" else 8)
    model = model.to(torch.bfloat16) if precision == "bfloat16" else model
    is_quantised = isinstance(model.output, QuantizedLinear)
    if not is_quantised:
        model = fuse(model) if compile else pack(model, rows)
    attached = _attach(model, adapters)
    if is_quantised or compile:
        CompiledBlocks(model, compile, attached)
    return Loaded(model, tokenizer, attached)


def _attach(model: Transformer, folders: Mapping[str, Path] | None) -> Adapters | None:
    return Adapters(model, {name: read_updates(folder) for name, folder in folders.items()}) if folders else None
