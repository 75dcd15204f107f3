"""Which architecture of other libraries equals a model, and the model in that form.

Some options of our recipes are other architectures under another name. Two are folded into the
weights: `base_dim` into the gain of the last norm, and `embedding_norm` into the embedding table,
which then differs from the output table. Squared ReLU without QK-norm is Arcee's feed-forward; with it
the model is an Apertus, whose xIELU (Huang and Schlag 2024, arXiv:2411.13010) is squared ReLU for beta
= 0, alpha_p = 1 and alpha_n = 0.
"""

import json
import math

import torch
from torch import Tensor

from cli.errors import UserError
from configs.schema import ModelConfig, TokenizerConfig

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "arcee": "ArceeForCausalLM",
    "apertus": "ApertusForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
OWN = ("key_shift", "value_embeddings", "bigram_buckets")
"""Options of ours that no other architecture has."""
GGUF_FAMILIES = ("llama", "qwen2", "qwen3", "smollm3", "arcee", "apertus")
SMOLLM3_NOPE = 4  # llama.cpp knows no other interval
XIELU = {"alpha_p": math.log(math.expm1(1.0)), "alpha_n": -100.0, "beta": 0.0, "eps": -1e-6}
"""Apertus's parameters of squared ReLU; softplus of the alphas is 1 and 0."""
_GPT2 = {"norm": "layer", "biases": "all", "positions": "learned", "activation": "gelu"}


def needs_own_code(config: ModelConfig) -> bool:
    """Whether a folded model has options of ours that no architecture of transformers has."""
    is_qwen3 = config.qk_norm and config.activation == "swiglu"
    return any(getattr(config, option) for option in OWN) or (config.window > 0 and not is_qwen3)


def find_family(config: ModelConfig) -> str:
    """The architecture, a key of CLASSES, that equals a folded model. Raises UserError if there is none."""
    plain = ModelConfig()
    for option in (*OWN, "soft_tokens"):
        value = getattr(config, option)
        if value != getattr(plain, option):
            raise _no_equivalent(option, value)
    if all(getattr(config, option) == value for option, value in _GPT2.items()):
        return "gpt2"
    for option, value in _GPT2.items():
        if getattr(config, option) == value:
            raise _no_equivalent(option, value)
    is_relu2 = config.activation == "relu2"
    extras = {
        "qwen2": config.biases == "qkv",
        "arcee" if not config.qk_norm else "apertus": is_relu2,
        "qwen3": config.qk_norm and not is_relu2,
        "smollm3": config.nope_every > 0,
    }
    found = [kind for kind, has in extras.items() if has] or ["llama"]
    if len(found) > 1:
        raise UserError(f"no other architecture has the options of {' and '.join(found)}")
    if config.window and found[0] != "qwen3":
        raise UserError(
            f"model.window = {config.window}: of other architectures only Qwen3 has it (set model.qk_norm = true and "
            'model.activation = "swiglu")'
        )
    return found[0]


def _no_equivalent(option: str, value: object) -> UserError:
    return UserError(f"model.{option} = {json.dumps(value)}: no other architecture has it")


def find_gguf_family(config: ModelConfig) -> str:
    """As `find_family`, for llama.cpp. Raises UserError if it does not know the model."""
    family = find_family(config)
    if family not in GGUF_FAMILIES:
        raise UserError(f"{CLASSES[family]}: not written as GGUF; convert its Hugging Face folder with llama.cpp")
    if config.window:
        raise UserError(f"model.window = {config.window}: llama.cpp has no sliding window for {CLASSES[family]}")
    if family == "smollm3" and config.nope_every != SMOLLM3_NOPE:
        raise UserError(f"model.nope_every = {config.nope_every}: llama.cpp knows {SMOLLM3_NOPE} only")
    return family


def fold_config(config: ModelConfig) -> ModelConfig:
    """The configuration of the same model without `base_dim`, `embedding_norm` and `zero_init`."""
    changes: dict[str, object] = {"base_dim": 0, "zero_init": False}
    if config.embedding_norm:
        changes |= {"embedding_norm": False, "tie_embeddings": False}
    return config.model_copy(update=changes)


def fold(config: ModelConfig, state: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """`fold_config`, and the weights of that model: its logits differ by rounding."""
    state = dict(state)
    if config.base_dim:
        state["norm.weight"] = state["norm.weight"] * config.width_ratio
    if config.embedding_norm:
        table, gain = state["tok_embeddings.weight"], state.pop("embedding_norm.weight")
        state.setdefault("output.weight", table)  # tied: from here on another table
        normal = torch.nn.functional.rms_norm(table.float(), table.shape[1:], gain.float(), config.norm_eps)
        state["tok_embeddings.weight"] = normal.to(table.dtype)
    return fold_config(config), state


def check_portable(config: ModelConfig, tokenizer: TokenizerConfig) -> None:
    """Raise UserError for an option that transformers or llama.cpp does not have."""
    find_gguf_family(fold_config(config))
    known = {"newlines": ["attach"], "whitespace": ["word"], "digits": ["single", "any"]}
    for key, values in known.items():
        value = getattr(tokenizer, key)
        if value not in values:
            others = '" or "'.join(values)
            raise UserError(f'tokenizer.{key} = "{value}": llama.cpp has no such pre-tokenizer; set it to "{others}"')
