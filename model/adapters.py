"""Unmerged LoRA updates in generation: every row of a batch has its own adapter, or none.

The updates of all adapters are stacked, and each row takes its own from the stack, so that one read
of the base weights serves rows of all adapters (as in Punica, Chen et al. 2023, arXiv:2310.18547).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli.errors import UserError
from configs.schema import ModelConfig
from model.formats.peft import LowRank
from model.packed import projection_groups
from model.quantized import cache_dtype
from model.transformer import Transformer

UPDATES = (".A", ".B")  # how the names of their tensors end
Updates = Mapping[str, LowRank]  # as `model.formats.peft.read_updates` returns them


class Adapters:
    """The adapters of a model, attached in place; rows without one do what they did before."""

    def __init__(self, model: Transformer, adapters: Mapping[str, Updates]):
        """`model`: in any precision, fused and compiled or not. `adapters`: by name.

        Raises UserError for an adapter that does not fit the model.
        """
        self.numbers_of = {name: number for number, name in enumerate(["", *adapters])}
        self.device = model.device
        self.numbers: Tensor | None = None  # (rows,) int64, 0: no adapter; None: no row has one
        shapes, dtype = _shapes(model.config), cache_dtype(model)
        for name, updates in adapters.items():
            _check(name, updates, shapes, model.config.n_layers)
        for prefix, parent, names, fused in projection_groups(model):
            for group, at in [(names, fused)] if hasattr(parent, fused) else [((each,), each) for each in names]:
                keys = [f"{prefix}.{each}" for each in group]
                if any(key in updates for updates in adapters.values() for key in keys):
                    stacks = [_join(updates, keys, [shapes[each] for each in group]) for updates in adapters.values()]
                    parent.register_module(at, AdaptedLinear(getattr(parent, at), stacks, self, dtype))

    @contextmanager
    def of_rows(self, names: Sequence[str]) -> Iterator[None]:
        """In this context, row i of the model's input has the adapter `names[i]`; "" is none."""
        numbers = [self.numbers_of[name] for name in names]
        with self.numbered(torch.tensor(numbers, device=self.device) if any(numbers) else None):
            yield

    @contextmanager
    def numbered(self, numbers: Tensor | None) -> Iterator[None]:
        """As `of_rows`, with the adapters' numbers (rows,) int64, of which 0 is none."""
        self.numbers = numbers
        try:
            yield
        finally:
            self.numbers = None


class AdaptedLinear(nn.Module):
    """A projection with one update per row of its input."""

    A: Tensor  # (1 + adapters, rank, in), the first zero
    B: Tensor  # (1 + adapters, out, rank)

    def __init__(self, linear: nn.Module, updates: Sequence[LowRank], adapters: Adapters, dtype: torch.dtype):
        super().__init__()
        self.linear, self.adapters = linear, adapters
        rank = max(len(update.A) for update in updates)
        none = LowRank(torch.zeros_like(updates[0].A[:0]), torch.zeros_like(updates[0].B[:, :0]))
        padded = [(update.A, update.B, rank - len(update.A)) for update in (none, *updates)]
        A = torch.stack([F.pad(A, (0, 0, 0, missing)) for A, _, missing in padded])
        B = torch.stack([F.pad(B, (0, missing)) for _, B, missing in padded])
        self.register_buffer("A", A.to(adapters.device, dtype), False)
        self.register_buffer("B", B.to(adapters.device, dtype), False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, T, in), or (1, rows, in) in decode -> (…, out)."""
        y, numbers = self.linear(x), self.adapters.numbers
        if numbers is None:
            return y
        A, B = (each[numbers] for each in (self.A, self.B))
        rows = x if numbers.shape[0] == x.shape[0] else x.transpose(0, 1)  # (rows, T, in)
        update = rows.to(A.dtype) @ A.mT @ B.mT
        return y + update.view_as(y).to(y.dtype)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    # (out, in) of each projection.
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    dim, hidden = config.dim, config.hidden_dim
    shapes = {"wq": (q, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, q), "w1": (hidden, dim)}
    return shapes | {"w2": (dim, hidden), "w3": (hidden, dim)}


def _check(adapter: str, updates: Updates, shapes: dict[str, tuple[int, int]], layers: int) -> None:
    for name, (A, B) in updates.items():
        _, layer, _, inside = name.split(".")
        if int(layer) >= layers or (len(B), A.shape[1]) != shapes[inside]:
            raise UserError(f'adapter "{adapter}": {name} of shape {len(B)} x {A.shape[1]} does not fit this model')


def _join(updates: Updates, keys: Sequence[str], shapes: Sequence[tuple[int, int]]) -> LowRank:
    # The updates of fused projections as one: A's one after the other, B's on the diagonal.
    empty = [LowRank(torch.zeros(0, width), torch.zeros(out, 0)) for out, width in shapes]
    parts = [updates.get(key, none) for key, none in zip(keys, empty, strict=True)]
    return LowRank(torch.cat([part.A for part in parts]), torch.block_diag(*(part.B for part in parts)))
