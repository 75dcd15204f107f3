"""Options of our own recipes beyond the Llama family, each with a measured gain (`benchmarks/ablation.py`).

| option           | effect                                                                  |
| ---------------- | ----------------------------------------------------------------------- |
| activation relu2 | squared ReLU: two matrices instead of three (So et al. 2021)            |
| key_shift        | half of the key heads use the key of the previous position              |
| value_embeddings | every layer adds an embedding of the token to its values                |
| bigram_buckets   | every block mixes in an embedding of the hashed token bigram            |
| embedding_norm   | RMSNorm after the embedding                                             |
| zero_init        | every block starts as the identity                                      |
| base_dim         | muP: logits and learning rates scale with the width (Yang et al. 2022)  |
"""

import torch
from torch import Tensor, nn

from configs.schema import ModelConfig
from model.cache import Cache
from model.fused import relu2
from model.norm import RMSNorm
from model.transformer import Attention, Block, FeedForward, Transformer


class ScratchAttention(Attention):
    """Attention with value embeddings and shifted keys.

    A shifted key lets a query find what followed an earlier occurrence of its token, which
    otherwise takes two layers (smeared keys; Olsson et al. 2022, arXiv:2209.11895).
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        if config.value_embeddings:
            self.value_scale = nn.Parameter(torch.ones(1))

    def shift_keys(self, k: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """(B, T, K, D) keys, the first half of the heads shifted by one position; zeros come first."""
        half = self.config.n_kv_heads // 2
        shifted = k[:, :, :half]
        if cache is None:
            shifted = torch.cat([torch.zeros_like(shifted[:, :1]), shifted[:, :-1]], 1)
        else:
            shifted = cache.shift_keys(self.layer, shifted)
        if document_starts is not None:
            is_start = document_starts == torch.arange(k.shape[1], device=k.device)
            shifted = shifted.masked_fill(is_start[..., None, None], 0)
        return torch.cat([shifted, k[:, :, half:]], 2)

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        cache: Cache | None = None,
        document_starts: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """As `Attention.forward`; `values` (B, T, K * D) are added to the values of x."""
        q, k, v = self.project(x)
        if values is not None:
            v = v + (self.value_scale * values).to(v.dtype)
        q, k, v = self.split_heads(q, k, v)
        q, k = self.rotate(q, k, angles)
        if self.config.key_shift:
            k = self.shift_keys(k, cache, document_starts)
        return self.attend(q, k, v, cache, document_starts)


class ReluFeedForward(nn.Module):
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def activate(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, hidden_dim)."""
        return relu2(self.w1(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.w2(self.activate(x))


class ScratchBlock(Block):
    """A block whose input is a learned mix of the residual stream and a bigram embedding.

    (Huang et al. 2025, arXiv:2501.16975.)
    """

    attention_class = ScratchAttention

    def __init__(self, config: ModelConfig, layer: int):
        self.feed_forward_class = FeedForward if config.activation == "swiglu" else ReluFeedForward
        super().__init__(config, layer)
        if config.bigram_buckets:
            self.mix = nn.Parameter(torch.tensor([1.0, 0.1]))

    def forward(
        self,
        x: Tensor,
        angles: Tensor,
        cache: Cache | None = None,
        document_starts: Tensor | None = None,
        pairs: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); `pairs` are mixed into x, `values` go to the attention."""
        if pairs is not None:
            x = self.mix[0] * x + self.mix[1] * pairs
        y = self.attention(self.attention_norm(x), angles, cache, document_starts, values)
        normal, x = self.ffn_norm.add(y, x)
        return x + self.feed_forward(normal)


class ScratchTransformer(Transformer):
    """The Llama family with any of the options above."""

    block_class = ScratchBlock

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__(config, vocab_size)
        if config.embedding_norm:
            self.embedding_norm = RMSNorm(config.dim, config.norm_eps)
        if config.bigram_buckets:
            self.bigram_embeddings = nn.Embedding(config.bigram_buckets, config.dim)
        if config.value_embeddings:
            kv_dim = config.n_kv_heads * config.head_dim
            tables = (nn.Embedding(vocab_size, kv_dim) for _ in range(config.n_layers))
            self.value_embeddings = nn.ModuleList(tables)

    def embed(self, tokens: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """As `Transformer.embed`, then RMSNorm if `embedding_norm` is set."""
        x = super().embed(tokens, cache, document_starts)
        return self.embedding_norm(x) if self.config.embedding_norm else x

    def embed_pairs(self, tokens: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """(B, T) ids -> (B, T, C), the bigram embedding of each token and the previous one.

        The token before the first is id 0 (a window may start anywhere). Bigrams are hashed to the
        rows of a table.
        """
        if cache is None:
            before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        else:
            before = cache.previous_tokens(tokens)
        if document_starts is not None:
            is_start = document_starts == torch.arange(tokens.shape[1], device=tokens.device)
            before = before.masked_fill(is_start, 0)
        rows = (tokens * 36313 + before * 27191) % self.config.bigram_buckets
        return self.bigram_embeddings(rows)

    def run_layers(
        self, x: Tensor, tokens: Tensor, angles: Tensor, cache: Cache | None, document_starts: Tensor | None
    ) -> Tensor:
        """All blocks, (B, T, C) -> (B, T, C); a soft prompt has no bigram or value embeddings."""
        soft = x.shape[1] - tokens.shape[1]

        def padded(embedded: Tensor) -> Tensor:
            return nn.functional.pad(embedded, (0, 0, soft, 0)) if soft else embedded

        pairs = values = None
        if self.config.bigram_buckets:
            pairs = padded(self.embed_pairs(tokens, cache, document_starts))
        for i, layer in enumerate(self.layers):
            if self.config.value_embeddings:
                values = padded(self.value_embeddings[i](tokens))
            x = layer(x, angles, cache, document_starts, pairs, values)
        return x

    def features(self, tokens: Tensor, cache: Cache | None = None, document_starts: Tensor | None = None) -> Tensor:
        """As `Transformer.features`; muP multiplies by base_dim / dim."""
        x = super().features(tokens, cache, document_starts)
        return x * self.config.width_ratio if self.config.base_dim else x
