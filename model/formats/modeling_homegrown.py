"""A decoder-only transformer of homegrown, for transformers: Llama with options of its own.

squared ReLU, shifted keys, value embeddings, bigram embeddings and sliding windows; see config.json.
This file is copied into exported folders and depends on torch and transformers alone.
"""

# mypy: disable-error-code="call-arg,override,misc,arg-type"
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

BIGRAM_HASH = (36313, 27191)


class HomegrownConfig(PretrainedConfig):
    """The options of the model."""

    model_type = "homegrown"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "hidden_dim",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        vocab_size: int = 4096,
        dim: int = 256,
        n_layers: int = 4,
        n_heads: int = 4,
        n_kv_heads: int = 4,
        head_dim: int = 64,
        hidden_dim: int = 1024,
        max_seq_len: int = 512,
        window: int = 0,
        activation: str = "swiglu",
        qk_norm: bool = False,
        key_shift: bool = False,
        value_embeddings: bool = False,
        bigram_buckets: int = 0,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ):
        self.vocab_size, self.dim, self.n_layers, self.n_heads = vocab_size, dim, n_layers, n_heads
        self.n_kv_heads, self.head_dim, self.hidden_dim = n_kv_heads, head_dim, hidden_dim
        self.max_seq_len = max_seq_len
        self.window, self.activation, self.qk_norm, self.key_shift = window, activation, qk_norm, key_shift
        self.value_embeddings, self.bigram_buckets = value_embeddings, bigram_buckets
        self.rope_theta, self.norm_eps = rope_theta, norm_eps
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: HomegrownConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        is_local = (config.n_layers - layer) % 2 == 0  # local and global layers alternate, and the last one is global
        self.window = config.window if is_local else 0
        q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, q, bias=False)
        self.wk = nn.Linear(config.dim, kv, bias=False)
        self.wv = nn.Linear(config.dim, kv, bias=False)
        self.wo = nn.Linear(q, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        if config.value_embeddings:
            self.value_scale = nn.Parameter(torch.ones(1))

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        visible: Tensor,
        positions: Tensor,
        cache: DynamicCache | None,
        values: Tensor | None,
    ) -> Tensor:
        """X (B, T, C), angles (2, B, 1, T, D/2), visible (B, 1, T, S), positions (B, S)."""
        B, T, _ = x.shape
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        if values is not None:
            v = v + (self.value_scale * values).to(v.dtype)
        q, k, v = (y.view(B, T, -1, self.config.head_dim).transpose(1, 2) for y in (q, k, v))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # keys before the shift
        if self.config.key_shift:
            k = shift_keys(k, positions)
        if self.window:
            S = k.shape[2]
            at = torch.arange(S, device=x.device)
            visible = visible & (at > at[S - T :, None] - self.window)
        groups = self.config.n_heads // self.config.n_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        o = F.scaled_dot_product_attention(q, k, v, visible)
        return self.wo(o.transpose(1, 2).reshape(B, T, -1))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions in half-split pairs, computed in float32."""
    a, b = x.float().chunk(2, -1)
    cos, sin = angles
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def shift_keys(k: Tensor, positions: Tensor) -> Tensor:
    """The first half of the heads of (B, K, S, D) uses the keys of the position before; zeros at a start."""
    half = k.shape[1] // 2
    before = F.pad(k[:, :half, :-1], (0, 0, 1, 0)).masked_fill((positions == 0)[:, None, :, None], 0)
    return torch.cat([before, k[:, half:]], 1)


class FeedForward(nn.Module):
    """SwiGLU, or squared ReLU."""

    def __init__(self, config: HomegrownConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.is_gated = config.activation == "swiglu"
        if self.is_gated:
            self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        h = F.silu(self.w1(x)) * self.w3(x) if self.is_gated else F.relu(self.w1(x)).square()
        return self.w2(h)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: HomegrownConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        if config.bigram_buckets:
            self.mix = nn.Parameter(torch.tensor([1.0, 0.1]))

    def forward(self, x: Tensor, pairs: Tensor | None, *inputs: Any) -> Tensor:
        """(B, T, C) -> (B, T, C); `pairs` are mixed into x."""
        if pairs is not None:
            x = self.mix[0] * x + self.mix[1] * pairs
        x = x + self.attention(self.attention_norm(x), *inputs)
        return x + self.feed_forward(self.ffn_norm(x))


class HomegrownForCausalLM(PreTrainedModel, GenerationMixin):
    """The transformer with its output projection."""

    config_class = HomegrownConfig
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"output.weight": "tok_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: HomegrownConfig):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.bigram_buckets:
            self.bigram_embeddings = nn.Embedding(config.bigram_buckets, config.dim)
        if config.value_embeddings:
            width = config.n_kv_heads * config.head_dim
            tables = (nn.Embedding(config.vocab_size, width) for _ in range(config.n_layers))
            self.value_embeddings = nn.ModuleList(tables)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.tok_embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.output

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict:
        """Adds the id before the first one of a step, which a bigram needs."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        T = inputs["input_ids"].shape[1]
        if input_ids.shape[1] > T:
            inputs["previous_ids"] = input_ids[:, -T - 1 : -T]
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        previous_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V). `previous_ids` (B, 1): the ids before `input_ids`, needed with `past_key_values`."""
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        B, T = input_ids.shape
        real = torch.ones(B, past + T, dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            real = attention_mask[:, : past + T].bool()
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        at = torch.arange(past + T, device=input_ids.device)
        visible = (at <= at[past:, None]) & real[:, None, None]
        visible = visible | (at == at[past:, None])  # padding sees itself: no row of the softmax is empty
        x, pairs = self.tok_embeddings(input_ids), None
        if self.config.bigram_buckets:
            pairs = self.embed_pairs(input_ids, previous_ids, past, positions[:, past:])
        angles = self.angles(positions[:, past:])
        for i, layer in enumerate(self.layers):
            values = self.value_embeddings[i](input_ids) if self.config.value_embeddings else None
            x = layer(x, pairs, angles, visible, positions, past_key_values, values)
        logits = self.output(self.norm(x[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def embed_pairs(self, ids: Tensor, previous_ids: Tensor | None, past: int, positions: Tensor) -> Tensor:
        """(B, T, C): the embedding of the hash of each token and the one before it, 0 at a start."""
        if past and previous_ids is None:
            raise ValueError("past_key_values without previous_ids, the ids before input_ids; generate() gives them")
        first = torch.zeros_like(ids[:, :1]) if previous_ids is None else previous_ids
        before = torch.cat([first, ids[:, :-1]], 1).masked_fill(positions == 0, 0)
        return self.bigram_embeddings((ids * BIGRAM_HASH[0] + before * BIGRAM_HASH[1]) % self.config.bigram_buckets)

    def angles(self, positions: Tensor) -> Tensor:
        """(2, B, 1, T, D/2): cosine and sine of the rotary angles, float32."""
        pairs = torch.arange(0, self.config.head_dim, 2, device=positions.device, dtype=torch.float64)
        angles = positions[:, None, :, None] * self.config.rope_theta ** (-pairs / self.config.head_dim)
        return torch.stack([angles.cos(), angles.sin()]).float()
