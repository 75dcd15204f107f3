"""The same Llama in other libraries with the same weights, and GPT-2, for comparison."""

import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema import ModelConfig, Recipe
from model.formats.llama import write_config, write_weights
from model.transformer import Transformer


def transformers_llama(config: ModelConfig, state: dict[str, torch.Tensor]) -> nn.Module:
    """LlamaForCausalLM of transformers with the weights of `state` and its default attention (SDPA)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = write_config("llama", config) | {"tie_word_embeddings": config.tie_embeddings}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(state["tok_embeddings.weight"]), **settings))
    model.load_state_dict(write_weights("llama", state))
    return model


def litgpt_llama(config: ModelConfig, state: dict[str, torch.Tensor]) -> nn.Module:
    """The GPT of litgpt in a Llama configuration. Raises ImportError if litgpt is not installed."""
    from litgpt.config import Config
    from litgpt.model import GPT

    c, vocabulary = config, len(state["tok_embeddings.weight"])
    model = GPT(
        Config(
            name="bench",
            block_size=c.max_seq_len,
            padded_vocab_size=vocabulary,
            vocab_size=vocabulary,
            n_layer=c.n_layers,
            n_head=c.n_heads,
            n_embd=c.dim,
            n_query_groups=c.n_kv_heads,
            head_size=c.head_dim,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=c.norm_eps,
            mlp_class_name="LLaMAMLP",
            intermediate_size=c.hidden_dim,
            rope_base=int(c.rope_theta),
        )
    )
    names = {"tok_embeddings": "transformer.wte", "output": "lm_head", "norm": "transformer.ln_f"}
    parts = {
        "attention.wo": "attn.proj",
        "attention_norm": "norm_1",
        "ffn_norm": "norm_2",
        "feed_forward.w1": "mlp.fc_1",
        "feed_forward.w2": "mlp.proj",
        "feed_forward.w3": "mlp.fc_2",
    }
    renamed = {f"{new}.weight": state[f"{old}.weight"] for old, new in names.items()}
    for i in range(c.n_layers):
        for old, new in parts.items():
            renamed[f"transformer.h.{i}.{new}.weight"] = state[f"layers.{i}.{old}.weight"]
        qkv = [state[f"layers.{i}.attention.w{letter}.weight"] for letter in "qkv"]
        renamed[f"transformer.h.{i}.attn.qkv.weight"] = torch.cat(qkv)
    model.load_state_dict(renamed)
    return model


class Gpt2(nn.Module):
    """GPT2LMHeadModel of transformers, with the interface that the training loop expects.

    Learned positions, layer norms with biases, GELU, tied embeddings, no dropout: nanoGPT's model.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        """Raises ValueError for a shape that GPT-2 does not support."""
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        if config.n_heads * config.head_dim != config.dim or config.hidden_dim != 4 * config.dim:
            raise ValueError(f"GPT-2 needs head_dim = dim / n_heads and hidden_dim = 4 dim, not {config}")
        self.config = config.model_copy(update={"tie_embeddings": True})
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        self.gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=config.max_seq_len,
                n_embd=config.dim,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                bos_token_id=0,
                eos_token_id=0,
                **none,
            )
        )

    def forward(self, tokens: torch.Tensor, *, targets: torch.Tensor) -> torch.Tensor:
        """Summed loss in nats of (B, T) tokens, float32."""
        logits = self.gpt2(tokens).logits.flatten(0, 1)
        return nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")

    def num_parameters(self, trainable: bool = False) -> int:
        """Number of parameters; all are trainable."""
        return sum(p.numel() for p in self.parameters())

    # `model.flops` reads `layers` and `output`.
    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.gpt2.transformer.h

    @property
    def output(self) -> nn.Linear:
        """The output projection."""
        return self.gpt2.lm_head


class NanoGPT(nn.Module):
    """nanoGPT's GPT of this shape, called as our model is; `folder` is a checkout of it."""

    def __init__(self, folder: Path, recipe: Recipe, vocab_size: int):
        super().__init__()
        spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module
        spec.loader.exec_module(module)
        shape = recipe.model
        self.gpt = module.GPT(
            module.GPTConfig(
                block_size=shape.max_seq_len,
                vocab_size=vocab_size,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                n_embd=shape.dim,
                bias=False,
            )
        )

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B, T) ids and targets -> the summed loss."""
        return self.gpt(x, targets)[1] * targets.numel()


class LitGPT(nn.Module):
    """litgpt's model with the weights of `net`, called as our model is. Raises ImportError without litgpt."""

    def __init__(self, net: Transformer):
        super().__init__()
        self.gpt = litgpt_llama(net.config, net.state_dict())

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B, T) ids and targets -> the summed loss."""
        return F.cross_entropy(self.gpt(x).flatten(0, 1).float(), targets.flatten(), reduction="sum")
