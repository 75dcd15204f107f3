"""Weights in 4 or 8 bits, in groups of 32 along a row, for generation and scoring on a CPU.

A weight is (level - 8) * scale + zero, with a level of 0 to 15 and one scale and zero per group:
GGUF's Q4_0 and Q4_1 as they are, or rounded from floats. A weight of 8 bits (Q8_0) is two of 4 bits,
16 * high + low. Products run in bfloat16, in torch's kernel for 4-bit weights, which reads them at
the speed of memory; for many rows one matrix at a time is widened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli.errors import UserError
from model.packed import fuse_projections
from model.transformer import Transformer

GROUP = 32
MOST_ROWS = 48  # above, widening a matrix first is faster
_PACKED_ROWS = 64  # rows are padded to a multiple


_exact = False


@contextmanager
def float32_products() -> Iterator[None]:
    """Multiply in float32 inside this context: slower, for scores.

    In bfloat16 bits per byte are 0.1 % higher (docs/log.md).
    """
    global _exact
    before, _exact = _exact, True
    try:
        yield
    finally:
        _exact = before


class Groups(NamedTuple):
    """A weight (N, K) in groups: levels uint8 (N, K'), scale and zero float32 (N, K' / 32).

    K' is K, or 2 K for 8 bits: the high halves of a row, then the low ones.
    """

    levels: Tensor
    scale: Tensor
    zero: Tensor
    halves: int

    def dequantise(self) -> Tensor:
        """float32 (N, K)."""
        levels = self.levels.float().unflatten(1, (-1, GROUP)) - 8
        wide = (levels * self.scale[..., None] + self.zero[..., None]).flatten(1)
        return wide.unflatten(1, (self.halves, -1)).sum(1)


def quantise(weight: Tensor, bits: int) -> Groups:
    """Round a float weight (N, K), K a multiple of 32, to 4 or 8 bits."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    if bits == 8:
        scale = (groups.abs().amax(-1) / 127).to(torch.bfloat16).float()  # as it is stored
        return join_halves(
            (groups / scale.clamp(min=1e-30)[..., None]).round().clamp(-128, 127).to(torch.int8).flatten(1), scale
        )
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).to(torch.bfloat16).float()
    zero = (low + 8 * scale).to(torch.bfloat16).float()  # as they are stored
    levels = ((groups - zero[..., None]) / scale.clamp(min=1e-30)[..., None] + 8).round().clamp(0, 15)
    return Groups(levels.to(torch.uint8).flatten(1), scale, zero, 1)


def join_halves(values: Tensor, scale: Tensor) -> Groups:
    """8-bit weights int8 (N, K) of `scale` (N, K / 32) as two of 4 bits: 16 * high + low."""
    levels = torch.cat([(values >> 4) + 8, values & 15], 1).to(torch.uint8)
    return Groups(levels, torch.cat([16 * scale, scale], 1), torch.cat([torch.zeros_like(scale), 8 * scale], 1), 2)


@cache
def block_rows() -> int:
    """Rows of a block of torch's packed layout on this CPU; 0 if it is another layout, or has no fast kernel.

    A block holds a byte per column and pair of rows: row r in the low half, row r + rows / 2 in the high one.
    """
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        levels = torch.randint(16, (_PACKED_ROWS, GROUP), generator=torch.Generator().manual_seed(0))
        for rows in (64, 32):
            blocks = _pack(levels.int()).view(-1, GROUP, rows // 2)
            if torch.equal(torch.cat([blocks & 15, blocks >> 4], -1).transpose(1, 2).flatten(0, 1).long(), levels):
                return rows
    return 0


def _pack(levels: Tensor) -> Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 2)


def widen(blocks: Tensor, scale: Tensor, zero: Tensor, halves: int) -> Tensor:
    """The transposed weight (K, N) in float32, whose rows lie as they do in the packed blocks.

    `blocks` uint8 (N / rows, groups, 32, rows / 2); `scale` and `zero` float32 (groups, N / rows, 2, rows / 2).
    """
    blocks = blocks.permute(1, 2, 0, 3)
    low, high = (
        (levels.float() - 8) * scale[:, None, :, i] + zero[:, None, :, i]
        for i, levels in enumerate((blocks & 15, blocks >> 4))
    )
    wide = torch.cat([low, high], -1).flatten(2).flatten(0, 1)
    return wide if halves == 1 else wide.unflatten(0, (halves, -1)).sum(0)


class QuantizedLinear(nn.Module):
    """y = x W^T (+ bias) with a 4- or 8-bit W, without gradients."""

    widen: Callable[..., Tensor] = staticmethod(widen)  # model/compiled.py replaces it

    packed: Tensor
    scale_zero: Tensor

    def __init__(self, weight: Groups, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.halves = len(weight.levels), weight.halves
        padding = (0, 0, 0, -self.out_features % _PACKED_ROWS)
        self.register_buffer("packed", _pack(F.pad(weight.levels, padding).int()))
        both = torch.stack([F.pad(each, padding).T for each in (weight.scale, weight.zero)], -1)
        self.register_buffer("scale_zero", both.to(torch.bfloat16).contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N), dtype of x."""
        rows = x.to(torch.float32 if _exact else torch.bfloat16).flatten(0, -2)
        if not torch.compiler.is_compiling() and (_exact or len(rows) > MOST_ROWS):
            y = rows @ self._transposed().to(rows.dtype)
        else:
            rows = torch.cat([rows] * self.halves, 1) if self.halves > 1 else rows
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scale_zero)
        y = y[:, : self.out_features].to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    @property
    def weight(self) -> Tensor:
        """float32 (N, K), computed at each use."""
        return self._transposed().T[: self.out_features]

    def _transposed(self) -> Tensor:
        rows = block_rows()
        blocks = self.packed.view(-1, len(self.scale_zero), GROUP, rows // 2)
        scale, zero = (each.float().unflatten(1, (-1, 2, rows // 2)) for each in self.scale_zero.unbind(-1))
        return (widen if _exact else self.widen)(blocks, scale, zero, self.halves)

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows of W: (…,) int64 -> (…, K) float32."""
        flat, size = numbers.flatten(), block_rows()
        row = flat % size
        blocks = self.packed.view(-1, self.scale_zero.shape[0] * GROUP, size // 2)
        levels = blocks[flat // size, :, row % (size // 2)]
        levels = (levels >> (row >= size // 2)[:, None] * 4) & 15
        scale, zero = self.scale_zero[:, flat].float().unbind(-1)  # (groups, rows)
        wide = (levels.float().unflatten(1, (-1, GROUP)) - 8) * scale.T[..., None] + zero.T[..., None]
        wide = wide.flatten(1).unflatten(1, (self.halves, -1)).sum(1)
        return wide.view(*numbers.shape, -1)


class QuantizedEmbedding(nn.Module):
    """Rows of a quantised matrix, which may be the output projection's."""

    def __init__(self, table: QuantizedLinear):
        super().__init__()
        self.table = table

    def forward(self, tokens: Tensor) -> Tensor:
        """(…,) int64 -> (…, K) float32."""
        return self.table.rows(tokens)


def concat_rows(parts: Sequence[Groups]) -> Groups:
    """The rows of several weights with the same input, as one weight. All have 4 bits, or all 8."""
    levels, scale, zero = (torch.cat(each) for each in list(zip(*parts, strict=True))[:3])
    return Groups(levels, scale, zero, parts[0].halves)


def cache_dtype(model: Transformer) -> torch.dtype:
    """Dtype of keys and values in generation: that of the weights, bfloat16 for quantised ones."""
    return torch.bfloat16 if isinstance(model.output, QuantizedLinear) else model.norm.weight.dtype


@torch.no_grad()
def quantise_model(model: Transformer, bits: int, kept: Mapping[str, Groups] | None = None) -> Transformer:
    """Replace every matrix of a `model` by a quantised one, in place; returns it.

    Projections with the same input are fused, lookup tables stay floats. The model then generates and
    scores on a CPU, but cannot be trained. `kept` holds weights by their names in the state dict,
    which are used as they are. Raises UserError for a matrix whose rows are not a multiple of 32
    long, or a CPU without a kernel for them.
    """
    if not block_rows():
        raise UserError("int4 and int8 need an x86 CPU with AVX2; use --precision bfloat16")
    kept = dict(kept or {})

    def groups(name: str, weight: Tensor) -> Groups:
        if name in kept:
            return kept.pop(name)
        if weight.shape[1] % GROUP:
            raise UserError(f"{name}: rows of {weight.shape[1]} weights cannot be quantised in groups of {GROUP}")
        return quantise(weight, bits)

    def make(names: list[str], layers: list[nn.Linear]) -> QuantizedLinear:
        parts = [groups(name, layer.weight) for name, layer in zip(names, layers, strict=True)]
        if len({part.halves for part in parts}) > 1:  # a file may store some with more bits
            parts = [part if part.halves == 2 else quantise(part.dequantise(), 8) for part in parts]
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        return QuantizedLinear(concat_rows(parts), bias)

    fuse_projections(model, make)
    embeddings = groups("tok_embeddings.weight", model.tok_embeddings.weight)
    table = QuantizedLinear(embeddings)
    output = table
    if not model.config.tie_embeddings:
        output = QuantizedLinear(groups("output.weight", model.output.weight))
    model.register_module("tok_embeddings", QuantizedEmbedding(table))
    model.register_module("output", output)
    return model
