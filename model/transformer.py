"""The decoder-only transformer of the Llama family: pre-norm, rotary positions, grouped queries.

Module names, state-dict keys and the half-split rotary layout are Llama's, so a checkpoint of that
family loads by renaming keys. `model/scratch.py` adds the options of our own recipes,
`model/gpt2.py` the differences of GPT-2; `model.build.build_model` picks the class.

Shapes: B batch, T positions, S positions including cached ones, H query heads, K key/value heads,
D head_dim, C dim, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from configs.schema import ModelConfig
from model.cache import Cache
from model.fused import attend, project_and_score, rope, swiglu
from model.initial import draw_weights
from model.norm import LayerNorm, RMSNorm
from model.rope import rope_table
from model.soft_prompt import SoftPrompt

IGNORE = -100  # targets of this value are not scored


class Attention(nn.Module):
    """Causal self-attention with grouped queries and rotary positions."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        qkv_bias = config.biases != "none"  # Qwen2
        self.wq = nn.Linear(config.dim, q_dim, qkv_bias)
        self.wk = nn.Linear(config.dim, kv_dim, qkv_bias)
        self.wv = nn.Linear(config.dim, kv_dim, qkv_bias)
        self.wo = nn.Linear(q_dim, config.dim, config.biases == "all")
        # NoPE (Kazemnejad et al. 2023, arXiv:2305.19466): SmolLM3 has no RoPE in every n-th layer.
        self.is_nope = config.nope_every > 0 and (layer + 1) % config.nope_every == 0
        self.window = config.window_of(layer)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, T, H * D), keys and values (B, T, K * D) of x (B, T, C)."""
        return self.wq(x), self.wk(x), self.wv(x)

    def split_heads(self, *projected: Tensor) -> tuple[Tensor, ...]:
        """Each (B, T, heads * D) as (B, T, heads, D)."""
        return tuple(y.unflatten(-1, (-1, self.config.head_dim)) for y in projected)

    def rotate(self, q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Apply QK norm and rotary positions, in one kernel, unless this is a NoPE layer."""
        if self.is_nope:
            return q, k
        q_gain, k_gain = (self.q_norm.weight, self.k_norm.weight) if self.config.qk_norm else (None, None)
        eps = self.config.norm_eps
        return rope(q, angles, q_gain, eps), rope(k, angles, k_gain, eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """Attention of q, k, v (B, T, heads, D) over these and the cached positions -> (B, T, C)."""
        if cache is None:
            o = attend(q, k, v, document_starts, (), self.window)
        else:
            o = cache.attend(self.layer, q, k, v, document_starts, self.window)
        return self.wo(o.flatten(2))

    def forward(
        self, x: Tensor, angles: Tensor, cache: Cache | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); `angles` (2, T, D/2) are of these T positions."""
        q, k, v = self.split_heads(*self.project(x))
        q, k = self.rotate(q, k, angles)
        return self.attend(q, k, v, cache, document_starts)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def activate(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, hidden_dim)."""
        return swiglu(self.w1(x), self.w3(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.w2(self.activate(x))


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    attention_class: type[Attention] = Attention
    feed_forward_class: type[nn.Module] = FeedForward
    norm_class: type[RMSNorm] | type[LayerNorm] = RMSNorm

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = self.norm_class(config.dim, config.norm_eps)
        self.attention = self.attention_class(config, layer)
        self.ffn_norm = self.norm_class(config.dim, config.norm_eps)
        self.feed_forward = self.feed_forward_class(config)

    def forward(
        self, x: Tensor, angles: Tensor, cache: Cache | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        y = self.attention(self.attention_norm(x), angles, cache, document_starts)
        normal, x = self.ffn_norm.add(y, x)  # x + y and its norm in one pass
        return x + self.feed_forward(normal)


class Transformer(nn.Module):
    """Token ids to next-token logits, or to a summed loss when targets are given."""

    block_class: type[Block] = Block

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.tok_embeddings = nn.Embedding(vocab_size, config.dim, _weight=torch.empty(vocab_size, config.dim))
        self.layers = nn.ModuleList(self.block_class(config, i) for i in range(config.n_layers))
        self.norm = self.block_class.norm_class(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        if config.soft_tokens:
            self.soft_prompt = SoftPrompt(config.soft_tokens, config.dim)
        # Not a buffer: `.to(bfloat16)` must not round the angles, and DDP need not broadcast them.
        self.rope = rope_table(config)

    def _apply(self, fn: Callable, recurse: bool = True) -> "Transformer":
        super()._apply(fn, recurse)
        self.rope = self.rope.to(self.device)
        return self

    def init_weights(self, seed: int) -> "Transformer":
        """Draw all weights as `model.initial.draw_weights` says; returns self."""
        draw_weights(self, self.config, seed)
        return self

    def embed(self, tokens: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, T, C), or (B, soft_tokens + T, C) at the start of a text.

        Raises ValueError beyond `max_seq_len` positions.
        """
        x = self.tok_embeddings(tokens)
        if self.config.soft_tokens and (cache is None or cache.end_after(0) == 0):
            x = self.soft_prompt.prepend(x)
            if cache is not None:
                cache.capacity += self.config.soft_tokens
        end = x.shape[1] if cache is None else cache.end_after(x.shape[1])
        if end > self.config.max_seq_len:
            raise ValueError(f"{end} positions; the context is {self.config.max_seq_len}")
        return x

    def run_layers(
        self, x: Tensor, tokens: Tensor, angles: Tensor, cache: Cache | None, document_starts: Tensor | None
    ) -> Tensor:
        """All blocks, (B, T, C) -> (B, T, C)."""
        for layer in self.layers:
            x = layer(x, angles, cache, document_starts)
        return x

    def features(self, tokens: Tensor, cache: Cache | None = None, document_starts: Tensor | None = None) -> Tensor:
        """Last hidden states after the final norm, for training, prefill and decode.

        Args:
            tokens: (B, T) int64 ids, at the positions after those in `cache`.
            cache: extended by T positions, in place.
            document_starts: (B, T) int32, the document mask: the first position that each token
                sees (`model.masks.document_starts`). None: all positions before it.

        Returns:
            (B, T, C), dtype of the weights. Raises ValueError beyond `max_seq_len` positions.
        """
        x = self.embed(tokens, cache, document_starts)
        positions = slice(x.shape[1]) if cache is None else cache.positions(x.shape[1])
        x = self.run_layers(x, tokens, self.rope[:, positions], cache, document_starts)
        if cache is not None:
            cache.advance(tokens, x.shape[1])
        return self.norm(x[:, -tokens.shape[1] :])  # drops the positions of a soft prompt

    def forward(
        self,
        tokens: Tensor,
        *,
        targets: Tensor | None = None,
        cache: Cache | None = None,
        document_starts: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the summed loss when `targets` are given.

        Args:
            tokens: (B, T) int64 ids.
            targets: (B, T) int64 next ids; IGNORE (-100) is not scored.
            cache: keys and values of earlier positions, extended in place.
            document_starts: the document mask, see `features`.

        Returns:
            (B, T, V) logits in the dtype of the weights, or a float32 scalar in nats.
        """
        x = self.features(tokens, cache, document_starts)
        if targets is None:
            return self.output(x)
        return project_and_score(x.flatten(0, 1), self.output.weight, targets.flatten())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    def num_parameters(self, trainable: bool = False) -> int:
        """Number of parameters, tied ones counted once; `trainable`: only those with gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)
