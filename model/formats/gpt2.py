"""Tensor names and settings of GPT-2: linear layers stored as (in, out), q, k and v fused."""

import json
import re
from typing import Any

import torch

from cli.errors import UserError
from configs.schema import ModelConfig
from model.formats.names import inverted, rename

_NAMES = {  # ours: theirs
    "layers": "h",
    "tok_embeddings": "wte",
    "pos_embeddings": "wpe",
    "norm": "ln_f",
    "attention.wqkv": "attn.c_attn",  # wq, wk and wv concatenated
    "attention.wo": "attn.c_proj",
    "attention_norm": "ln_1",
    "feed_forward.w1": "mlp.c_fc",
    "feed_forward.w2": "mlp.c_proj",
    "ffn_norm": "ln_2",
}
_QKV = ("wq", "wk", "wv")


def read_config(kind: str, c: dict[str, Any]) -> ModelConfig:
    """Options of a config.json. Raises UserError for unsupported values, KeyError for missing keys."""
    for option, plain in (
        ("activation_function", "gelu_new"),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("tie_word_embeddings", True),
    ):
        if c.get(option, plain) != plain:
            raise UserError(f"config.json: {option} = {c[option]!r} is not supported")
    return ModelConfig(
        dim=c["n_embd"],
        n_layers=c["n_layer"],
        n_heads=c["n_head"],
        n_kv_heads=c["n_head"],
        head_dim=c["n_embd"] // c["n_head"],
        hidden_dim=c.get("n_inner") or 4 * c["n_embd"],
        max_seq_len=c["n_positions"],
        norm_eps=c.get("layer_norm_epsilon", 1e-5),
        activation="gelu",
        norm="layer",
        biases="all",
        positions="learned",
        tie_embeddings=True,
    )


def write_config(kind: str, c: ModelConfig) -> dict[str, Any]:
    """Settings of a config.json. Raises UserError for an option that GPT-2 does not have."""
    for option, value in (
        ("n_kv_heads", c.n_heads),
        ("head_dim", c.dim // c.n_heads),
        ("tie_embeddings", True),
        ("qk_norm", False),
    ):
        if getattr(c, option) != value:
            raise UserError(f"model.{option} = {json.dumps(getattr(c, option))}: GPT-2 needs {value}")
    return {
        "n_embd": c.dim,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_inner": c.hidden_dim,
        "n_positions": c.max_seq_len,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": "gelu_new",
    }


def read_weights(kind: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face tensors under our names. Raises UserError for an unknown name."""
    kept = {}
    for name, tensor in weights.items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):
            continue  # the tied embedding; the causal mask in old files
        is_linear = ".c_" in name and name.endswith(".weight")
        kept[name] = tensor.T.contiguous() if is_linear else tensor
    state = rename(kept, inverted(_NAMES), "model.safetensors")
    for name in [name for name in state if ".wqkv." in name]:
        for part, rows in zip(_QKV, state.pop(name).chunk(3), strict=True):
            state[name.replace("wqkv", part)] = rows.contiguous()
    return state


def write_weights(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under Hugging Face names."""
    fused = {}
    for name, tensor in state.items():
        if ".wk." in name or ".wv." in name:
            continue
        if ".wq." in name:
            tensor = torch.cat([state[name.replace("wq", part)] for part in _QKV])
        is_linear = name.startswith("layers.") and tensor.dim() == 2
        fused[name.replace(".wq.", ".wqkv.")] = tensor.T if is_linear else tensor
    return {f"transformer.{name}": tensor for name, tensor in rename(fused, _NAMES, "model").items()}
