"""Blocks compiled ahead of time for decode on a CPU: one program that all layers share, kept on disk.

A step of a small model is a thousand small operators, whose calls take longer than their work. Here
they become one call per block (torch.export and AOTInductor). The first start takes 20 to 30 seconds
for a block; later ones load the file. There is a program for one token at a time and one for more.
Seen with torch 2.13.0 only: `loader.run` of a loaded package is not documented.
"""

import hashlib
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cli.atomic import to_json
from cli.console import say
from model.adapters import UPDATES, Adapters
from model.cache import RowCache
from model.quantized import GROUP, QuantizedLinear, block_rows, cache_dtype, widen
from model.transformer import Block, Transformer

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "homegrown" / "compiled"
_SOURCES = ("model/*.py", "kernels/*/*.py")  # a change in these compiles again


class _DecodeBlock(nn.Module):
    """A block as a function of tensors: weights, activations, cache."""

    def __init__(self, block: nn.Module, layer: int, names: Sequence[str], cache: RowCache, adapters: Adapters | None):
        super().__init__()
        self.adapters = adapters
        self.layer, self.names = layer, list(names)
        self.has_raw_keys, self.is_one_row = bool(cache.raw_keys), cache.starts is None
        self.block = [block]  # in a list: not a submodule, its weights are arguments

    def forward(self, *tensors: Tensor) -> Tensor:
        weights = dict(zip(self.names, tensors, strict=False))
        x, angles, keys, values, at, slots, *rest = tensors[len(self.names) :]
        cache: Any = RowCache.__new__(RowCache)
        cache.layers, cache.at, cache.slots = {self.layer: (keys, values)}, at, slots
        cache.own = slice(None)
        cache.starts = None if self.is_one_row else rest.pop(0)
        if self.has_raw_keys:
            cache.raw_keys = {self.layer: rest.pop(0)}
        if self.adapters is None:
            return functional_call(self.block[0], weights, (x, angles, cache, None, *rest))
        with self.adapters.numbered(rest.pop()):
            return functional_call(self.block[0], weights, (x, angles, cache, None, *rest))


def _weights(block: nn.Module, is_adapted: bool) -> dict[str, Tensor]:
    weights = dict(block.named_parameters()) | dict(block.named_buffers())
    return {name: each for name, each in weights.items() if is_adapted or not name.endswith(UPDATES)}


def _inputs(cache: RowCache, layer: int, x: Tensor, angles: Tensor, extra: Sequence[Tensor]) -> list[Tensor]:
    starts = [] if cache.starts is None else [cache.starts]
    raw = [cache.raw_keys[layer][cache.own]] if cache.raw_keys else []
    return [x, angles, *cache.keys_values(layer), cache.at, cache.slots, *starts, *raw, *extra]


def _dynamic_dims(cache: RowCache, count: int, is_adapted: bool) -> list[dict[int, Any]]:
    # Of the inputs of `_inputs`: tokens N, positions of all rows, length of the longest row.
    several = len(cache.at) > 1
    tokens = {1: torch.export.Dim("tokens", min=2, max=4096)} if several else {}
    first = {0: tokens[1]} if several else {}
    length = torch.export.Dim("length", min=2)
    places = length if cache.starts is None else torch.export.Dim("places", min=2)
    dims = [tokens, tokens, {0: places}, {0: places}, first, {0: length}]
    dims += [] if cache.starts is None else [first]
    dims += [{0: places}] if cache.raw_keys else []
    dims += [tokens] * (count - len(dims))
    return [*dims[:-1], first] if is_adapted else dims


def load_program(
    key: object, name: str, module: Callable[[], nn.Module], inputs: Sequence[Tensor], dims: list, may_compile: bool
) -> Callable | None:
    """The compiled `module`, as a function of a list of tensors that returns one; None if there is none.

    `key` is what the code depends on besides the sources of this package, torch, the processor and
    the inputs' types. `dims` are the dynamic dimensions of each input. `may_compile`: False uses only what is on disk.
    """
    root = Path(__file__).parent.parent
    code = b"".join(file.read_bytes() for pattern in _SOURCES for file in sorted(root.glob(pattern)))
    place = torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    types = [
        [str(each.dtype), *(0 if i in dim else n for i, n in enumerate(each.shape))]
        for each, dim in zip(inputs, dims, strict=True)
    ]
    parts = to_json([key, types, place, hashlib.sha256(code).hexdigest()])
    path = FOLDER / f"{hashlib.sha256(parts.encode()).hexdigest()[:16]}.pt2"
    try:
        if not path.exists() and may_compile:
            say(f"compiling {name}, once: {path}")
            _compile(module(), list(inputs), dims, path)
        return torch._inductor.aoti_load_package(str(path)).loader.run if path.exists() else None
    except Exception as error:  # the compiler's own errors have many types
        say(f"WARNING: {name} is not compiled and slower: {' '.join(str(error).split())[:300]}")
        return None


def _compile(module: nn.Module, inputs: list[Tensor], dims: list, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, tuple(inputs), dynamic_shapes={"tensors": tuple(dims)}, strict=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}.{path.name}")
        options = {"size_asserts": False}
        torch._inductor.aoti_compile_and_package(program, package_path=str(aside), inductor_configs=options)
        aside.replace(path)


class _Widen(nn.Module):
    def __init__(self, halves: int):
        super().__init__()
        self.halves = halves

    def forward(self, *tensors: Tensor) -> Tensor:
        blocks, scale, zero = tensors
        return widen(blocks, scale, zero, self.halves).to(torch.bfloat16)


def _compile_widening(model: Transformer, may_compile: bool) -> None:
    blocks, groups = torch.export.Dim("blocks", min=2), torch.export.Dim("groups", min=2)
    for halves in {module.halves for module in model.modules() if isinstance(module, QuantizedLinear)}:
        half = block_rows() // 2
        inputs = torch.zeros(3, 12, GROUP, half, dtype=torch.uint8), *torch.zeros(2, 12, 3, 2, half)
        dims = [{0: blocks, 1: groups}, {0: groups, 1: blocks}, {0: groups, 1: blocks}]
        make = partial(_Widen, halves)
        program = load_program(["widen", halves], "the widening of weights", make, inputs, dims, may_compile)
        for module in model.modules():
            if program is not None and isinstance(module, QuantizedLinear) and module.halves == halves:
                module.widen = lambda *tensors, program=program: program(list(tensors[:3]))[0]


class CompiledBlocks:
    """The blocks of a model for decode with a `RowCache`; other calls run as before."""

    @torch.no_grad()
    def __init__(self, model: Transformer, may_compile: bool, adapters: Adapters | None = None):
        """Replaces `forward` of every block.

        `may_compile`: False uses only what is on disk. `adapters`: those attached to the model.
        """
        self.model, self.may_compile, self.adapters = model, may_compile, adapters
        self.weights = {
            (layer, is_adapted): _weights(block, is_adapted)
            for layer, block in enumerate(model.layers)
            for is_adapted in (False, True)
        }
        self.programs: dict[tuple[int, bool, bool, bool], Callable | None] = {}
        self.loaded: dict[str, Callable | None] = {}
        _compile_widening(model, may_compile)
        for layer, block in enumerate(model.layers):
            block.forward = self._forward_of(layer, type(block).forward.__get__(block))  # type: ignore[method-assign]
        if may_compile:  # now, and not after the first token
            self._run_all()

    def _run_all(self) -> None:
        cache = RowCache(self.model.config, 2, 8, self.model.device, cache_dtype(self.model))
        for rows in ([0], [0, 0], [0, 1, 1]):  # a row's token, its draft, several rows
            count, places = len(rows), torch.tensor(rows)
            cache.place(places, torch.tensor([4, 5, 6])[-count:], places, 7)
            tokens = torch.zeros(1, count, dtype=torch.int64)
            self.model.features(tokens, cache)
            if self.adapters:
                with self.adapters.numbered(torch.ones_like(places)):
                    self.model.features(tokens, cache)

    def _forward_of(self, layer: int, plain: Callable) -> Callable:
        def forward(x: Tensor, angles: Tensor, cache: Any = None, document_starts: Any = None, *extra: Any) -> Tensor:
            if not isinstance(cache, RowCache) or torch.compiler.is_compiling():
                return plain(x, angles, cache, document_starts, *extra)
            numbers = None if self.adapters is None else self.adapters.numbers
            is_adapted = numbers is not None
            inputs = _inputs(cache, layer, x, angles, [each for each in (*extra, numbers) if each is not None])
            key = layer, x.shape[1] > 1, cache.starts is None, is_adapted
            if key not in self.programs:
                self.programs[key] = self._program(layer, inputs, cache, is_adapted)
            program = self.programs[key]
            if program is None:
                return plain(x, angles, cache, document_starts, *extra)
            return program([*self.weights[layer, is_adapted].values(), *inputs])[0]

        return forward

    def _program(self, layer: int, inputs: list[Tensor], cache: RowCache, is_adapted: bool) -> Callable | None:
        block, weights = self.model.layers[layer], self.weights[layer, is_adapted]
        assert isinstance(block, Block)
        several, is_one_row = len(cache.at) > 1, cache.starts is None
        config = self.model.config.model_dump(exclude={"n_layers", "max_seq_len"})
        names = [name.replace(".linear.", ".") for name in weights]  # with adapters attached, the same program
        kind = [config, block.attention.is_nope, block.attention.window, names, several, is_one_row, is_adapted]
        if str(kind) not in self.loaded:
            adapters = torch.export.Dim("adapters", min=2)
            dims: list[dict] = [{0: adapters} if name.endswith(UPDATES) else {} for name in weights]
            dims += _dynamic_dims(cache, len(inputs), is_adapted)
            what = "one token" if not several else "drafts" if is_one_row else "several rows"
            name = f"a block for {what}{', with adapters' if is_adapted else ''}"
            make = partial(_DecodeBlock, block, layer, list(weights), cache, self.adapters if is_adapted else None)
            example = [*weights.values(), *(each.clone() for each in inputs)]
            self.loaded[str(kind)] = load_program(kind, name, make, example, dims, self.may_compile)
        return self.loaded[str(kind)]
