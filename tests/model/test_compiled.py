"""Blocks compiled ahead of time against the plain model."""

import copy

import pytest
import torch

import model.compiled
from configs.schema import ModelConfig
from model.build import build_model
from model.cache import RowCache
from model.compiled import CompiledBlocks
from model.packed import fuse
from model.quantized import QuantizedLinear, block_rows, cache_dtype, quantise_model

NEEDS_AVX2 = pytest.mark.skipif(not block_rows(), reason="needs an x86 CPU with AVX2")
SHAPE = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 96, "max_seq_len": 64}
OPTIONS = {"qk_norm": True, "key_shift": True, "value_embeddings": True, "bigram_buckets": 40, "window": 5}


def logits_of(m):
    """Prefill of two rows, then one token, then several of both rows."""
    cache = RowCache(m.config, 2, 32, m.device, cache_dtype(m))
    tokens = torch.arange(14).view(2, 7) % 50
    view = cache.view(slice(0, 2), 0)
    found = [m.output(m.features(tokens, view)).flatten(0, 1)]
    cache.finish_prefill(slice(0, 2), 1, view)
    for rows, at in (([1], [7]), ([0, 0, 1], [7, 8, 8]), ([1, 1, 1], [9, 10, 11]), ([0], [9])):
        rows, at = torch.tensor(rows), torch.tensor(at)
        cache.place(rows, at, (at * 3) % 50, int(at.max()) + 1)
        found.append(m.output(m.features((at * 5 + rows)[None] % 50, cache))[0])
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("int4", marks=pytest.mark.skipif(not block_rows(), reason="needs AVX2"))]
)
def test_compiled_blocks_give_the_same_logits(monkeypatch, tmp_path, capsys, precision):
    monkeypatch.setattr(model.compiled, "FOLDER", tmp_path)
    plain = build_model(ModelConfig(**SHAPE, **OPTIONS), 50).init_weights(0).eval()
    if precision == "int4":
        quantise_model(plain, 4)
        assert isinstance(plain.output, QuantizedLinear)
    expected = logits_of(plain)
    compiled = copy.deepcopy(plain)
    CompiledBlocks(compiled if precision == "int4" else fuse(compiled), True)
    said = capsys.readouterr().err
    assert "WARNING" not in said
    assert len(list(tmp_path.iterdir())) == said.count("once:")
    assert said.count("once:") == (7 if precision == "int4" else 6)  # two kinds of layers: local and global
    bound = 2e-2 if precision == "int4" else 1e-5
    assert (logits_of(compiled) - expected).norm() < bound * expected.norm()
    # Another process would load them.
    monkeypatch.setattr(model.compiled, "_compile", None)
    again = copy.deepcopy(plain)
    blocks = CompiledBlocks(again if precision == "int4" else fuse(again), False)
    assert (logits_of(again) - expected).norm() < bound * expected.norm()
    assert all(blocks.programs.values())


@torch.no_grad()
def test_without_a_compiler_decode_is_only_slower(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model.compiled, "FOLDER", tmp_path)
    plain = build_model(ModelConfig(**SHAPE), 50).init_weights(0).eval()
    expected = logits_of(plain)
    other = fuse(copy.deepcopy(plain))
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/g++",)}):
        CompiledBlocks(other, True)
    assert "WARNING: a block for one token is not compiled" in capsys.readouterr().err
    torch.testing.assert_close(logits_of(other), expected)
    assert not list(tmp_path.glob("*.pt2"))
