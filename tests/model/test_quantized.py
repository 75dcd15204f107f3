"""Quantised weights against the same weights in float."""

import copy
from itertools import islice

import pytest
import torch

from cli.errors import UserError
from configs.schema import DataConfig, ModelConfig
from data.prepare import prepare
from data.splits import read_documents
from model.build import build_model
from model.formats.gguf import read_gguf
from model.generate import generate
from model.likelihood import score_texts
from model.quantized import QuantizedLinear, block_rows, quantise, quantise_model

pytestmark = pytest.mark.skipif(not block_rows(), reason="needs an x86 CPU with AVX2")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(64, 32), (100, 96), (33, 576)])
def test_a_product_is_that_of_the_dequantised_weight(bits, shape):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw)
    groups = quantise(weight, bits)
    wide, layer = groups.dequantise(), QuantizedLinear(groups)
    spread = weight.unflatten(1, (-1, 32)).aminmax(dim=-1)
    step = (spread.max - spread.min) / 15 if bits == 4 else 2 * weight.unflatten(1, (-1, 32)).abs().amax(-1) / 127
    assert ((wide - weight).abs().unflatten(1, (-1, 32)) <= 0.6 * step[..., None]).all()
    torch.testing.assert_close(layer.weight, wide, rtol=0, atol=1e-5)
    numbers = torch.tensor([[0, shape[0] - 1], [5, 7]])
    torch.testing.assert_close(layer.rows(numbers), wide[numbers], rtol=0, atol=1e-5)
    for rows in (1, 3, 70):  # 4-bit kernel, and widened
        x = torch.randn(rows, shape[1], generator=draw)
        expected = x.double() @ wide.double().T
        assert (layer(x) - expected).norm() < 6e-3 * expected.norm()
    x = torch.randn(2, 3, shape[1])
    assert layer(x).shape == (2, 3, shape[0])


def test_a_bias_is_added():
    weight, bias = torch.randn(64, 32), torch.randn(64)
    plain, biased = QuantizedLinear(quantise(weight, 8)), QuantizedLinear(quantise(weight, 8), bias)
    x = torch.randn(2, 32)
    torch.testing.assert_close(biased(x), plain(x) + bias)


def test_rows_must_fill_groups():
    config = ModelConfig(dim=40, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=20, hidden_dim=64)
    with pytest.raises(UserError, match=r"layers\.0\.attention\.wq\.weight: rows of 40 weights"):
        quantise_model(build_model(config, 50).init_weights(0), 4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["scratch", "gpt2", "untied"])
def test_every_family_is_quantised(family):
    shape = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 32, "hidden_dim": 96}
    options = {
        "scratch": {"activation": "relu2", "key_shift": True, "value_embeddings": True, "bigram_buckets": 40},
        "gpt2": {"positions": "learned", "norm": "layer", "biases": "all", "activation": "gelu"},
        "untied": {"tie_embeddings": False},
    }[family]
    model = build_model(ModelConfig(**shape, max_seq_len=64, **options), 70).init_weights(0).eval()
    quantised = quantise_model(copy.deepcopy(model), 8)
    tokens = torch.randint(70, (2, 9))
    expected = model(tokens)
    assert (quantised(tokens) - expected).norm() < 0.03 * expected.norm()
    steps = list(generate(quantised, tokens, max_new_tokens=5, temperature=0))
    assert torch.stack(steps).shape == (5, 2)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["folk-tunes", "aws-api", "python-stdlib"])
def test_bits_per_byte_hardly_change(foundation, foundation_path, cache, corpus):
    model, tokenizer = foundation
    folder = prepare(DataConfig(corpus=corpus, cache_dir=str(cache)))
    texts = [row["text"][:1500] for row in islice(read_documents(folder, "test"), 12)]
    kinds = ("Q4_0", "Q4_1", "Q8_0")
    empty, _, kept = read_gguf(foundation_path, kinds)
    assert all(p.is_meta for name, p in empty.named_parameters() if name in kept)  # never widened
    base = score_texts(model, tokenizer, texts)["bits_per_byte"]
    of_file = score_texts(quantise_model(empty, 8, kept), tokenizer, texts)["bits_per_byte"]
    int8 = score_texts(quantise_model(copy.deepcopy(model), 8), tokenizer, texts)["bits_per_byte"]
    assert of_file == pytest.approx(base, rel=1e-3)
    assert int8 == pytest.approx(base, rel=5e-3)
