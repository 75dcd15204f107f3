"""The transformer against `transformers`' Llama and against itself in float64."""

import math

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from model.cache import KVCache
from model.flops import forward_flops, training_flops
from model.fused import attend, rope
from model.masks import document_starts
from model.norm import RMSNorm
from model.transformer import IGNORE

BASE = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 10, "hidden_dim": 48, "max_seq_len": 96}
VARIANTS = [
    {},
    {"n_kv_heads": 1},
    {"n_kv_heads": 4, "tie_embeddings": False},
    {"activation": "relu2"},
    {"qk_norm": True, "activation": "relu2", "tie_embeddings": False},
    {"bigram_buckets": 13},
    {"key_shift": True},
    {"window": 7},
    {
        "qk_norm": True,
        "activation": "relu2",
        "tie_embeddings": False,
        "key_shift": True,
        "embedding_norm": True,
        "value_embeddings": True,
        "bigram_buckets": 113,
        "zero_init": True,
    },
]


def build(**changes):
    model = build_model(ModelConfig(**BASE | changes), 67).init_weights(0)
    draw = torch.Generator().manual_seed(2)
    for p in model.parameters():  # zero weights would hide mistakes
        if not p.any():
            p.data.normal_(0, 0.1, generator=draw)
    return model


def tokens(batch=2, length=40):
    return torch.randint(0, 67, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers_llama(kv_heads, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = build(n_kv_heads=kv_heads, tie_embeddings=tied)
    c = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=67,
            hidden_size=c.dim,
            intermediate_size=c.hidden_dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=tied,
            max_position_embeddings=c.max_seq_len,
        )
    ).eval()
    names = {
        "attention.w": "self_attn.",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    state = {}
    for key, value in ours.state_dict().items():
        if key == "output.weight":
            state["lm_head.weight"] = value
            continue
        key = key.replace("tok_embeddings", "embed_tokens")
        for a, b in names.items():
            key = key.replace(a, b)
        for letter in "qkvo":
            key = key.replace(f"self_attn.{letter}.", f"self_attn.{letter}_proj.")
        state[f"model.{key}"] = value
    theirs.load_state_dict(state)
    x = tokens(length=96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_loss_is_the_sum_of_cross_entropies_of_scored_targets(variant):
    model, x = build(**variant), tokens()
    targets = tokens().roll(-1, 1)
    targets[0, :30] = IGNORE
    expected = torch.nn.functional.cross_entropy(
        model(x).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(model(x, targets=targets), expected)
    assert model(x, targets=torch.full_like(x, IGNORE)).item() == 0


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_attention_is_causal(variant):
    model, x = build(**variant), tokens()
    changed = x.clone()
    changed[:, 25:] = (changed[:, 25:] + 1) % 67
    with torch.no_grad():
        a, b = model(x), model(changed)
    assert (a[:, :25] == b[:, :25]).all()
    assert (a[:, 25:] != b[:, 25:]).any()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("chunks", [[1] * 40, [40], [7, 1, 12, 20], [39, 1]], ids=str)
def test_cached_chunks_give_the_same_logits(variant, chunks):
    model, x = build(**variant), tokens()
    cache = KVCache(40)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in x.split(chunks, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"window": 7}, VARIANTS[-1]], ids=str)
def test_expanded_cache_continues_several_rows(variant):
    model, x = build(**variant), tokens(batch=1, length=20)
    rest = tokens(batch=5, length=8)
    cache = KVCache(20)
    with torch.no_grad():
        model(x, cache=cache)
        got = model(rest, cache=cache.expand(5, 8))
        whole = model(torch.cat([x.expand(5, -1), rest], 1))[:, 20:]
    torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 20


@pytest.mark.parametrize(("T", "S"), [(1, 9), (9, 9), (4, 9)])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_attention_equals_softmax_in_float64(T, S, kv_heads):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, T, 6, 8, generator=draw)
    k, v = torch.randn(2, 2, S, kv_heads, 8, generator=draw)
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k.double().repeat_interleave(6 // kv_heads, 2)) / math.sqrt(8)
    later = torch.arange(S)[None] > torch.arange(S - T, S)[:, None]
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.double().repeat_interleave(6 // kv_heads, 2))
    torch.testing.assert_close(attend(q, k, v).double(), expected, atol=1e-6, rtol=1e-5)


def test_bigram_embeddings_are_mixed_into_every_block():
    model, x = build(**VARIANTS[-1]), tokens()
    for layer in model.layers:  # only the bigram embeddings remain
        layer.attention.wo.weight.data.zero_()
        layer.feed_forward.w2.weight.data.zero_()
        layer.mix.data.normal_()
    before = torch.cat([torch.zeros(2, 1, dtype=torch.int64), x[:, :-1]], 1)
    pairs = model.bigram_embeddings.weight[(36313 * x + 27191 * before) % 113].double()
    stream = model.tok_embeddings.weight[x].double()
    stream = stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    for layer in model.layers:
        stream = layer.mix[0].double() * stream + layer.mix[1].double() * pairs
    normal = stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normal @ model.output.weight.double().T
    torch.testing.assert_close(model(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_key_shift_shifts_half_of_the_key_heads():
    model, x = build(key_shift=True, n_layers=1, n_kv_heads=4), torch.randn(2, 40, 32)
    attention, table = model.layers[0].attention, model.rope[:, :40]
    q, k, v = (y.view(2, 40, 4, 10) for y in attention.project(x))
    q, k = rope(q, table), rope(k, table)
    shifted = k.clone()
    for t in range(40):
        shifted[:, t, :2] = k[:, t - 1, :2] if t else 0
    expected = attention.wo(attend(q, shifted, v).flatten(2))
    torch.testing.assert_close(attention(x, table), expected)


def test_value_embeddings_are_added_to_the_values():
    model, x = build(value_embeddings=True, n_layers=1, n_kv_heads=4), tokens()
    attention = model.layers[0].attention
    attention.wq.weight.data.zero_()  # every key then has the same weight
    h = torch.randn(2, 40, 32)
    values = attention.wv(h) + 3 * model.value_embeddings[0].weight[x]
    attention.value_scale.data.fill_(3)
    seen = values.cumsum(1) / torch.arange(1, 41)[:, None]
    found = attention(h, model.rope[:, :40], values=model.value_embeddings[0](x))
    torch.testing.assert_close(found, attention.wo(seen), atol=1e-5, rtol=1e-5)


def test_rmsnorm_computes_in_float32():
    norm = RMSNorm(64, 1e-5).bfloat16()
    x = (torch.randn(3, 64) * 100).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), exact.bfloat16(), atol=0, rtol=0.005)


def test_converting_to_bfloat16_keeps_the_rope_angles():
    model = build()
    before = model.rope.clone()
    assert (model.bfloat16().rope == before).all()
    assert model.tok_embeddings.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", [{}, VARIANTS[-1]], ids=str)
def test_flops_equal_torch_flop_counter(variant):
    from torch.utils.flop_counter import FlopCounterMode

    model, x = build(**variant | {"n_kv_heads": 4}), tokens(batch=2, length=64)
    targets = torch.where(torch.rand(x.shape) < 0.5, x, IGNORE)
    scored = int((targets != IGNORE).sum())
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x, targets=targets)
    with FlopCounterMode(display=False) as both:
        model(x, targets=targets).backward()
    # We count half of the T x T pairs for attention and twice that backward; the kernel counts the
    # exact pairs and its five backward products. Compare all other FLOPs.
    c = model.config
    attention = x.numel() * 2 * c.n_layers * c.n_heads * c.head_dim * 64
    kernel = attention * 65 // 64
    counted = forward.get_total_flops() - kernel
    assert forward_flops(model, x.numel(), scored, 64) - attention == counted
    counted = both.get_total_flops() - kernel * 7 // 2
    assert training_flops(model, x.numel(), scored, 64) - 3 * attention == counted


def test_local_layers_see_a_window_and_alternate_with_global_ones():
    config = ModelConfig(**BASE | {"n_layers": 4, "window": 5})
    assert [config.window_of(layer) for layer in range(4)] == [5, 0, 5, 0]
    q, k, v = (torch.randn(2, 12, 4, 8, dtype=torch.float64) for _ in range(3))
    i = torch.arange(12)
    seen = (i[:, None] >= i) & (i[:, None] - i < 5)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v, window=5), expected)


def test_flops_of_local_layers_count_the_visible_positions():
    full, local = build(n_layers=4), build(n_layers=4, window=8)
    pairs = 64 * 8 - 8 * 8 / 2  # of a row; a full layer has 64 * 64 / 2
    saved = 2 * (64 * 64 / 2 - pairs) * 4 * 4 * 10
    assert forward_flops(full, 64, 64, 64) - forward_flops(local, 64, 64, 64) == saved


def test_init_is_seeded_and_gives_uniform_loss():
    a, b = build(), build()
    assert all((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    x = tokens(8, 90)
    loss = a(x, targets=x.roll(-1, 1)).item() / x.numel()
    assert abs(loss - math.log(67)) < 0.2


def test_positions_beyond_the_context_are_refused():
    with pytest.raises(ValueError, match="97 positions; the context is 96"):
        build()(tokens(length=97))


GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu", "biases": "all", "n_kv_heads": 4}
EXTRAS = {"qk_norm": True, "key_shift": True, "value_embeddings": True, "bigram_buckets": 50}


@pytest.mark.parametrize("changes", [{}, EXTRAS, GPT2, {"window": 4}], ids=["llama", "scratch", "gpt2", "window"])
def test_the_document_mask_hides_documents_from_each_other(changes):
    model = build(**changes).double()
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(1, 67, (1, n), generator=draw) for n in (5, 1, 9, 20)]
    documents = [torch.cat([torch.zeros(1, 1, dtype=torch.int64), d], 1) for d in documents]
    alone = torch.cat([model(d) for d in documents], 1)
    row = torch.cat(documents, 1)
    assert (model(row) - alone).abs().max() > 0.1
    starts = document_starts(row, separator=0)
    torch.testing.assert_close(model(row, document_starts=starts), alone)
    model(row, targets=row, document_starts=starts).backward()
    rows = torch.cat([row, row])
    both = model(rows, document_starts=document_starts(rows, separator=0))
    torch.testing.assert_close(both, torch.cat([alone, alone]))
