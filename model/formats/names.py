"""Rename the tensors of a state dict between our names and those of another format."""

import re
from collections.abc import Mapping
from typing import TypeVar

from cli.errors import UserError

T = TypeVar("T")


def rename(tensors: Mapping[str, T], names: Mapping[str, str], place: str) -> dict[str, T]:
    """`tensors` under new names: every dotted part of a name, but for numbers and kind, is looked up.

    With `names` of {"blk": "layers", "attn_q": "attention.wq", "output_norm": "norm"},
    `blk.3.attn_q.weight` becomes `layers.3.attention.wq.weight`, and `output_norm.weight` becomes
    `norm.weight`. Raises UserError with the `place` for an unknown name.
    """
    renamed = {}
    for name, tensor in tensors.items():
        inside = re.fullmatch(r"(.+)\.(\d+)\.(.+)\.(weight|bias)", name)
        stem, _, kind = name.rpartition(".")
        try:
            key = f"{names[inside[1]]}.{inside[2]}.{names[inside[3]]}" if inside else names[stem]
        except KeyError:
            raise UserError(f'{place}: unknown tensor "{name}"') from None
        renamed[f"{key}.{kind}"] = tensor
    return renamed


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """The names for the other direction."""
    return {new: old for old, new in names.items()}
