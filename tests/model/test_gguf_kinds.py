"""GGUF files of every quantisation, written with `gguf` from tiny models of transformers."""

import re

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from cli.errors import UserError
from model.formats.gguf import read_gguf
from model.load import load_model

TOKENS = ["<|begin|>", *sorted("ĠĊ!abcdefghijklmnopqrstuvwxyz0123456789"), "ab", "Ġa"]
MERGES = ["a b", "Ġ a"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
HEADS, KV_HEADS = 4, 2


def blocks(shape, kind):
    """Random blocks of a quantisation that `gguf` cannot write, with small scales."""
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 256, (shape[0], shape[1] // size, bytes_), dtype=np.uint8)
    scale = np.full((*rows.shape[:2], 1), 1e-4, np.float16).view(np.uint8)
    if kind == Kind.Q4_K:  # d and dmin come first
        rows[..., :4] = np.concatenate([scale, scale], -1)
    else:  # Q6_K: d comes last
        rows[..., -2:] = scale
    return rows.reshape(shape[0], -1)


def interleave_pairs(weight, heads):
    """Reorder half-split rows to the interleaved order of GGUF."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write(path, kind, *, architecture="llama", pre="gpt-2", freqs=None, scaling=None, layers=2, **changes):
    """Write a GGUF file; returns the transformers model with the dequantised weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=20_000,
            rms_norm_eps=1e-5,
            **changes,
        )
    ).eval()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    writer.add_context_length(20_000)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", freqs)
    with torch.no_grad():
        for name, p in model.named_parameters():
            inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
            stored = TOP.get(name) or f"blk.{inside[1]}.{NAMES[inside[2]]}.weight"
            weight = p.numpy()
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stored.split(".")[-2])
            if p.dim() == 1:
                writer.add_tensor(stored, weight)
                continue
            if kind in (Kind.Q4_K, Kind.Q6_K):
                data = blocks(weight.shape, kind)
            else:
                data = quantize(interleave_pairs(weight, heads) if heads else weight, kind)
            writer.add_tensor(stored, data, raw_dtype=kind)
            value = dequantize(data, kind).astype(np.float32)
            if heads:
                rows = len(value)
                value = value.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
            p.copy_(torch.from_numpy(value.reshape(p.shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_quantisation_gives_the_logits_of_transformers(kind, tmp_path):
    theirs = write(tmp_path / "x.gguf", kind)
    ours, tokenizer = load_model(tmp_path / "x.gguf")
    x = torch.randint(len(TOKENS), (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, atol=1e-4, rtol=1e-3)
    assert tokenizer.decode(tokenizer.encode("ab a 10!")) == "ab a 10!"
    assert tokenizer.separator_id == 0


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_quantised_weights_are_kept_as_they_are(kind, tmp_path):
    write(tmp_path / "x.gguf", kind)
    wide, _ = load_model(tmp_path / "x.gguf")
    empty, _, kept = read_gguf(tmp_path / "x.gguf", (kind.name,))
    assert {name for name, p in empty.named_parameters() if p.is_meta} == set(kept)
    assert len(kept) == 2 * 7 + 2
    for name, groups in kept.items():
        torch.testing.assert_close(groups.dequantise(), wide.state_dict()[name], rtol=0, atol=1e-7)


def test_rope_scaling_of_llama_3(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = 500000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    model = write(tmp_path / "first.gguf", Kind.F32, rope_parameters=rope)
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, device="cpu")
    freqs = (plain / slowed).numpy().astype(np.float32)
    theirs = write(tmp_path / "x.gguf", Kind.F32, pre="llama-bpe", freqs=freqs, rope_parameters=rope)
    ours, _ = load_model(tmp_path / "x.gguf")
    x = torch.randint(len(TOKENS), (1, 3000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, atol=2e-4, rtol=1e-3)
    write(tmp_path / "y.gguf", Kind.F32, freqs=freqs * 1.1, rope_parameters=rope)
    with pytest.raises(UserError, match="rope_freqs are not those of"):
        load_model(tmp_path / "y.gguf")


def test_unsupported_settings_are_named(tmp_path):
    path = tmp_path / "x.gguf"
    write(path, Kind.F32, architecture="lama")
    with pytest.raises(UserError, match='unknown architecture "lama"; did you mean "llama"'):
        load_model(path)
    write(path, Kind.F32, pre="qwen3")
    with pytest.raises(UserError, match='pre-tokenizer "qwen3"; did you mean "qwen2"'):
        load_model(path)
    write(path, Kind.F32, scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(UserError, match='rope scaling "yarn" is not supported'):
        load_model(path)
    write(path, Kind.F32, layers=3)
    with pytest.raises(UserError, match="the weights do not fit the metadata"):
        load_model(path)


def test_unsupported_quantisation_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    write(path, Kind.Q4_0)
    monkeypatch.delitem(gguf.quants._type_traits, Kind.Q4_0)
    with pytest.raises(UserError, match="unsupported quantisation Q4_0"):
        load_model(path)
