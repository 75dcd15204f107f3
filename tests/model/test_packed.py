"""Packed weights against the plain model."""

import copy

import pytest
import torch

from model.cache import KVCache
from model.packed import PackedLinear, pack


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_packed_model_gives_the_same_logits(foundation, dtype, bound, rows):
    plain = copy.deepcopy(foundation[0]).to(dtype)
    packed = pack(copy.deepcopy(plain), rows)
    assert isinstance(packed.output, PackedLinear)
    tokens = torch.randint(0, plain.vocab_size, (rows, 9), generator=torch.Generator().manual_seed(0))
    expected, cache = plain(tokens), KVCache(9)
    found = torch.cat([packed(tokens[:, :8], cache=cache), packed(tokens[:, 8:], cache=cache)], 1)
    assert (found - expected).norm() <= bound * expected.norm()
