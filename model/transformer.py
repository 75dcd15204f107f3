"""The decoder-only transformer, pretrained from nothing or loaded from a Llama-family checkpoint.

Names, key names and the half-split rotary layout are Llama's, so such a checkpoint loads by
renaming keys. Shapes: B batch, T positions, S positions with the cached ones, H query heads,
K key/value heads, D head_dim, C dim, V vocabulary.
"""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from configs.schema import ModelConfig
from model.cache import KVCache
from model.fused import attend, project_and_score, relu2, rope, swiglu
from model.norm import LayerNorm, RMSNorm
from model.rope import rope_table
from model.soft_prompt import SoftPrompt, pad_front

IGNORE = -100  # targets of this value are not scored


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions.

    A key that is shifted lets a query find what followed an earlier occurrence of its token, which
    otherwise takes two layers (the smeared keys of Olsson et al. 2022, arXiv:2209.11895).
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        bias = config.biases != "none"
        self.wq = nn.Linear(config.dim, q_dim, bias)
        self.wk = nn.Linear(config.dim, kv_dim, bias)
        self.wv = nn.Linear(config.dim, kv_dim, bias)
        self.wo = nn.Linear(q_dim, config.dim, config.biases == "all")
        every = config.unrotated_every
        self.rotates = config.positions == "rotary" and not (every and (layer + 1) % every == 0)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        if config.value_embeddings:
            self.value_scale = nn.Parameter(torch.ones(1))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries (B, T, H * D), keys and values (B, T, K * D) of x (B, T, C)."""
        return self.wq(x), self.wk(x), self.wv(x)

    def forward(
        self,
        x: torch.Tensor,
        angles: torch.Tensor,
        cache: KVCache | None = None,
        values: torch.Tensor | None = None,
        first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); `angles` (2, T, D/2) are those of these positions.

        `values` (B, T, K * D) are added to those that x gives; `first` (B, T) int32 is the first
        position that each one sees.
        """
        B, T, _ = x.shape
        q, k, v = self.project(x)
        if values is not None:
            v = v + (self.value_scale * values).to(v.dtype)
        q, k, v = (y.view(B, T, -1, self.config.head_dim) for y in (q, k, v))  # (B, T, H or K, D)
        gains = (self.q_norm.weight, self.k_norm.weight) if self.config.qk_norm else (None, None)
        if self.rotates:
            q, k = (rope(y, angles, gain, self.config.norm_eps) for y, gain in zip((q, k), gains, strict=True))
        if self.config.key_shift:
            half = self.config.n_kv_heads // 2
            shifted = k[:, :, :half]
            start = torch.zeros_like(shifted[:, :1]) if cache is None else cache.before(self.layer, shifted)
            shifted = torch.cat([start, shifted[:, :-1]], 1)
            if first is not None:
                alone = first == torch.arange(T, device=first.device)
                shifted = shifted.masked_fill(alone[..., None, None], 0)
            k = torch.cat([shifted, k[:, :, half:]], 2)
        trunk: list[torch.Tensor] = []
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, S, K, D)
            trunk = cache.before_branch(self.layer)
        return self.wo(attend(q, k, v, first, trunk).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), squared ReLU (So et al. 2021) or GPT-2's GELU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation, bias = config.activation, config.biases == "all"
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias)
        if self.activation == "swiglu":
            self.w3 = nn.Linear(config.dim, config.hidden_dim, bias)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, hidden_dim)."""
        if self.activation == "swiglu":
            return swiglu(self.w1(x), self.w3(x))
        if self.activation == "gelu":
            return nn.functional.gelu(self.w1(x), approximate="tanh")
        return relu2(self.w1(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.w2(self.activate(x))


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward.

    It may start from a learnt mix of the stream and an embedding of token pairs (Huang et al. 2025,
    arXiv:2501.16975).
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        norm = LayerNorm if config.norm == "layer" else RMSNorm
        self.attention_norm = norm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = norm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        if config.bigram_buckets:
            self.mix = nn.Parameter(torch.tensor([1.0, 0.1]))

    def forward(
        self,
        x: torch.Tensor,
        angles: torch.Tensor,
        cache: KVCache | None = None,
        pairs: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        first: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); `pairs` are mixed into x, the rest is the attention's."""
        if pairs is not None:
            x = self.mix[0] * x + self.mix[1] * pairs
        y = self.attention(self.attention_norm(x), angles, cache, values, first)
        normal, x = self.ffn_norm.add(y, x)
        return x + self.feed_forward(normal)


class Transformer(nn.Module):
    """Token ids to next-token logits, or to a summed loss when targets are given."""

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.recompute = False  # activations of each layer in the backward pass (Chen et al. 2016)
        self.separator = -1  # nothing is seen across this token: rows hold unrelated documents
        weight = torch.empty(vocab_size, config.dim)
        self.tok_embeddings = nn.Embedding(vocab_size, config.dim, _weight=weight)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        norm = LayerNorm if config.norm == "layer" else RMSNorm
        self.norm = norm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight
        if config.embedding_norm:
            self.embedding_norm = RMSNorm(config.dim, config.norm_eps)
        if config.positions == "learned":
            self.pos_embeddings = nn.Embedding(config.max_seq_len, config.dim)
        if config.soft_tokens:
            self.soft_prompt = SoftPrompt(config.soft_tokens, config.dim)
        if config.bigram_buckets:
            self.bigram_embeddings = nn.Embedding(config.bigram_buckets, config.dim)
        kv_dim, layers = config.n_kv_heads * config.head_dim, range(config.n_layers)
        if config.value_embeddings:
            tables = (nn.Embedding(vocab_size, kv_dim) for _ in layers)
            self.value_embeddings = nn.ModuleList(tables)
        # Not a buffer: `.to(bfloat16)` must not round the angles, and ranks need not send it.
        self.rope = rope_table(config)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.rope = self.rope.to(self.device)
        return self

    @classmethod
    def from_state(cls, config: ModelConfig, state: dict[str, torch.Tensor]) -> "Transformer":
        """A model that holds the tensors of `state` themselves, without a copy."""
        with torch.device("meta"):
            model = cls(config, len(state["tok_embeddings.weight"]))
        if config.tie_embeddings:
            state = state | {"output.weight": state["tok_embeddings.weight"]}
        model.load_state_dict(state, assign=True)
        if config.tie_embeddings:
            model.output.weight = model.tok_embeddings.weight
        model.rope = rope_table(config)
        return model

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Transformer":
        """Draw all weights; returns self.

        | weights             | distribution                                            |
        | ------------------- | ------------------------------------------------------- |
        | norms; biases       | 1; 0                                                    |
        | embeddings          | normal, std 0.02                                        |
        | output (if untied)  | normal, std 0.02                                        |
        | wo, w2              | normal, std dim^-0.5 / sqrt(2 n_layers) (GPT-2, s. 2.3) |
        |                     | or 0 (`zero_init`)                                      |
        | other matrices      | normal, std dim^-0.5                                    |
        | value embeddings    | normal, std 0.25                                        |
        | pair embeddings     | 0                                                       |
        | value scales, mixes | 1; 1, 0.1                                               |
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.dim**-0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("norm.weight", "value_scale")):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("mix"):
                parameter.fill_(0.1)[0] = 1.0
            elif name == "bigram_embeddings.weight":
                parameter.zero_()
            elif name.startswith("value_embeddings"):
                parameter.normal_(0, 0.25, generator=generator)
            elif name.endswith("embeddings.weight") or name in ("output.weight", "soft_prompt.vectors"):
                parameter.normal_(0, 0.02, generator=generator)
            elif name.endswith(("wo.weight", "w2.weight")):
                depth = math.sqrt(2 * self.config.n_layers)
                small = 0.0 if self.config.zero_init else std / depth
                parameter.normal_(0, small, generator=generator)
            else:
                parameter.normal_(0, std, generator=generator)
        return self

    def embed_pairs(self, tokens: torch.Tensor, cache: KVCache | None) -> torch.Tensor | None:
        """(B, T) ids -> (B, T, C), what every block mixes in; None without `bigram_buckets`.

        A pair is a token and the one before it, which for the first is id 0 (a window may start
        anywhere). Pairs share the rows of their table by a hash.
        """
        if not self.config.bigram_buckets:
            return None
        last = tokens.new_zeros(1, 1) if cache is None else cache.last.to(tokens.device)
        before = torch.cat([last.expand(len(tokens), 1), tokens[:, :-1]], 1)
        if self.separator >= 0:
            before = before.masked_fill(tokens == self.separator, 0)
        rows = (tokens * 36313 + before * 27191) % self.config.bigram_buckets
        return self.bigram_embeddings(rows)

    def features(self, tokens: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Normalised last hidden states, times base_dim / dim if there is a base_dim.

        Args:
            tokens: (B, T) int64 ids, the positions after those in `cache`.
            cache: extended by T positions.

        Returns:
            (B, T, C), dtype of the weights. Raises ValueError beyond `max_seq_len` positions.
        """
        T = tokens.shape[1]
        start = 0 if cache is None else cache.length
        soft = self.config.soft_tokens if start == 0 else 0  # they stand before the first token
        end = start + soft + T
        if end > self.config.max_seq_len:
            raise ValueError(f"{end} positions; the context is {self.config.max_seq_len}")
        angles = self.rope[:, start:end]
        first = self.first_seen(tokens) if cache is None and self.separator >= 0 else None
        x, pairs = self.tok_embeddings(tokens), self.embed_pairs(tokens, cache)
        if soft:
            x = torch.cat([self.soft_prompt().to(x.dtype).expand(len(x), -1, -1), x], 1)
            pairs = pad_front(pairs, soft)
            if cache is not None:
                cache.room += soft
        if self.config.positions == "learned":
            positions = torch.arange(start, end, device=x.device)
            x = x + self.pos_embeddings(positions if first is None else positions - first)
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        for i, layer in enumerate(self.layers):
            values = self.value_embeddings[i](tokens) if self.config.value_embeddings else None
            values = pad_front(values, soft)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, angles, None, pairs, values, first, use_reentrant=False)
            else:
                x = layer(x, angles, cache, pairs, values, first)
        if cache is not None:
            cache.length, cache.last = end, tokens[:, -1:]
        x = self.norm(x[:, soft:])
        return x * self.config.width_ratio if self.config.base_dim else x

    def first_seen(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T) int32, where the document of each begins: at its separator."""
        positions = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.int32)
        return (positions * (tokens == self.separator)).cummax(1).values

    def forward(
        self, tokens: torch.Tensor, *, targets: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Logits, or the summed loss when `targets` are given.

        Args:
            tokens: (B, T) int64 ids.
            targets: (B, T) int64 next ids; IGNORE (-100) is not scored, nor is its logit computed.
            cache: keys and values of earlier positions, extended in place.

        Returns:
            (B, T, V) logits in the dtype of the weights, or a float32 scalar in nats.
        """
        x = self.features(tokens, cache)
        if targets is None:
            return self.output(x)
        scored = targets != IGNORE
        return project_and_score(x[scored], self.output.weight, targets[scored])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tok_embeddings.weight.device

    def num_parameters(self, trainable: bool = False) -> int:
        """Parameters, a shared one counted once; `trainable`: only those with gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def forward_flops(self, tokens: int, scored: int, length: int, first: int = 0) -> float:
        """FLOPs of forward passes (Kaplan et al. 2020, section 2.1), of the blocks from `first`.

        Two per weight of a matrix product, for `tokens` through the blocks and `scored` through
        the output projection, plus 4 H D per layer, token and visible position, of which there
        are half of `length` on average.
        """
        c = self.config
        blocks = sum(p.numel() for p in self.layers[first:].parameters() if p.dim() == 2)
        attention = 4 * (c.n_layers - first) * c.n_heads * c.head_dim * length / 2
        return tokens * (2 * blocks + attention) + scored * 2 * self.output.weight.numel()

    def training_flops(self, tokens: int, scored: int, length: int) -> float:
        """FLOPs of forward and backward over rows of `length` tokens.

        The backward pass costs a forward pass for the activations (attention: two), down to the
        lowest block that anything is trained in or below, and one for the trainable weights.
        """
        c = self.config
        tokens += c.soft_tokens * tokens // length
        length += c.soft_tokens
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in self.layers]
        first = trained.index(True) if any(trained) else len(trained)
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        below = (p for name, p in self.named_parameters() if "embeddings" in name or "soft" in name)
        first = 0 if any(p.requires_grad for p in below) else first
        backward = self.forward_flops(tokens, scored, length, first)
        attention = tokens * 4 * (c.n_layers - first) * c.n_heads * c.head_dim * length / 2
        weights = sum(
            2 * p.numel() * (scored if p is self.output.weight else tokens)
            for p in self.parameters()
            if p.requires_grad and p.dim() == 2 and id(p) not in tables
        )
        if self.config.tie_embeddings and self.output.weight.requires_grad:
            weights += 2 * self.output.weight.numel() * scored
        return self.forward_flops(tokens, scored, length) + backward + attention + weights
