"""Tensor names and settings of the Llama family: Llama, Qwen2, Qwen3, SmolLM2, SmolLM3, Arcee, Apertus."""

from typing import Any

import torch
import torch.nn.functional as F

from cli.errors import UserError
from configs.schema import ModelConfig
from model.formats.families import XIELU
from model.formats.names import inverted, rename

LAYER_NAMES = {  # ours: theirs
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
}
_TOP = {"layers": "model.layers", "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_RELU2 = {"feed_forward.w1": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj"}
_OWN_NAMES = {
    "arcee": _RELU2,
    "apertus": _RELU2 | {"attention_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
}
_ACTIVATIONS = {"arcee": "relu2", "apertus": "xielu"}
_XIELU_ERROR = 1e-2  # of softplus of a parameter in bfloat16


def _names(kind: str) -> dict[str, str]:
    names = LAYER_NAMES | _TOP | _OWN_NAMES.get(kind, {})
    return {ours: theirs for ours, theirs in names.items() if kind not in _OWN_NAMES or ours != "feed_forward.w3"}


def read_config(kind: str, c: dict[str, Any]) -> ModelConfig:
    """Options of a config.json. Raises UserError for unsupported values, KeyError for missing keys."""
    activation = _ACTIVATIONS.get(kind, "silu")
    for option, plain in (("hidden_act", activation), ("attention_bias", False), ("mlp_bias", False)):
        if c.get(option, plain) != plain:
            raise UserError(f"config.json: {option} = {c[option]!r} is not supported")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    rope_kind = rope.get("rope_type", rope.get("type", "default"))
    if rope_kind not in ("default", "llama3"):
        raise UserError(f'config.json: rope_type = "{rope_kind}" is not supported')
    scaling = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    heads = c["num_attention_heads"]
    return ModelConfig(
        dim=c["hidden_size"],
        n_layers=c["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        hidden_dim=c["intermediate_size"],
        max_seq_len=c["max_position_embeddings"],
        rope_theta=rope.get("rope_theta") or c.get("rope_theta", 10000.0),
        rope_scaling=[float(rope[key]) for key in scaling] if rope_kind == "llama3" else [],
        norm_eps=c["rms_norm_eps"],
        tie_embeddings=c.get("tie_word_embeddings", kind == "smollm3"),  # the defaults of transformers
        activation="relu2" if kind in _ACTIVATIONS else "swiglu",
        window=_window(c) if c.get("use_sliding_window") else 0,
        qk_norm=kind in ("qwen3", "apertus"),
        biases="qkv" if kind == "qwen2" else "none",
        nope_every=_nope_every(c) if kind == "smollm3" else 0,
    )


def _window(c: dict[str, Any]) -> int:
    found = ModelConfig(n_layers=c["num_hidden_layers"], window=c["sliding_window"])
    if c.get("layer_types") != _layer_types(found):
        raise UserError("config.json: layer_types has to alternate, and end with full_attention")
    return found.window


def _layer_types(c: ModelConfig) -> list[str]:
    return ["sliding_attention" if c.window_of(i) else "full_attention" for i in range(c.n_layers)]


def _nope_every(c: dict[str, Any]) -> int:
    every = c.get("no_rope_layer_interval", 4)
    layers = range(1, c["num_hidden_layers"] + 1)
    if c.get("no_rope_layers", [int(i % every != 0) for i in layers]) != [int(i % every != 0) for i in layers]:
        raise UserError("config.json: no_rope_layers (NoPE) has to be every n-th layer")
    return every


def write_config(kind: str, c: ModelConfig) -> dict[str, Any]:
    """Settings of a config.json. Raises UserError for an option that the family does not have."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        factor, low, high, length = c.rope_scaling
        rope |= {"rope_type": "llama3", "factor": factor}
        rope |= {"low_freq_factor": low, "high_freq_factor": high}
        rope["original_max_position_embeddings"] = int(length)
    settings = {
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.hidden_dim,
        "max_position_embeddings": c.max_seq_len,
        "rope_parameters": rope,
        "rope_theta": c.rope_theta,  # read by transformers before version 5
        "rms_norm_eps": c.norm_eps,
        "hidden_act": _ACTIVATIONS.get(kind, "silu"),
    }
    if c.window:
        settings |= {"use_sliding_window": True, "sliding_window": c.window, "layer_types": _layer_types(c)}
    if kind == "qwen2" and c.head_dim * c.n_heads != c.dim:
        raise UserError(f"model.head_dim = {c.head_dim}: Qwen2 needs dim / n_heads")
    if kind == "smollm3":
        layers = range(1, c.n_layers + 1)
        settings["no_rope_layers"] = [int(i % c.nope_every != 0) for i in layers]
        settings["no_rope_layer_interval"] = c.nope_every
        settings["pad_token_id"] = None  # the default exceeds a small vocabulary
    return settings


def read_weights(kind: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face tensors under our names.

    Raises UserError for an unknown name, and for an xIELU that is not squared ReLU.
    """
    kept = {}
    for name, x in weights.items():
        parameter = name.rpartition("mlp.act_fn.")[2] if "mlp.act_fn." in name else ""
        if parameter in ("beta", "alpha_p", "alpha_n"):
            value, wanted = float(x), XIELU[parameter]
            if parameter != "beta":
                value, wanted = (float(F.softplus(torch.tensor(each))) for each in (value, wanted))
            if abs(value - wanted) > _XIELU_ERROR:
                raise UserError(f"model.safetensors: {name} is not that of a squared ReLU, which alone is supported")
        elif not parameter and not name.endswith("rotary_emb.inv_freq"):
            kept[name] = x
    return rename(kept, inverted(_names(kind)), "model.safetensors")


def write_weights(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under Hugging Face names."""
    named = rename(state, _names(kind), "model")
    if kind == "apertus":
        layers = sum(name.endswith("attention.wq.weight") for name in state)
        one = state["norm.weight"].new_ones(1)
        for name, value in XIELU.items():
            shape = (1,) if name.startswith("alpha") else ()
            named |= {f"model.layers.{i}.mlp.act_fn.{name}": (value * one).view(shape) for i in range(layers)}
    return named
