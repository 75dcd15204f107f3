"""GPT-2, as differences from Llama: LayerNorm, biases, GELU and learned positions.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

import torch
from torch import Tensor, nn

from configs.schema import ModelConfig
from model.cache import Cache
from model.norm import LayerNorm
from model.transformer import Attention, Block, Transformer


class GPT2Attention(Attention):
    """Attention without rotary positions."""

    def rotate(self, q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Returns q and k unchanged: positions are in the embedding."""
        return q, k


class GPT2FeedForward(nn.Module):
    """Two linear layers with biases around a GELU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim)
        self.w2 = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.w2(nn.functional.gelu(self.w1(x), approximate="tanh"))


class GPT2Block(Block):
    """Pre-norm residual block."""

    attention_class = GPT2Attention
    feed_forward_class = GPT2FeedForward
    norm_class = LayerNorm


class GPT2(Transformer):
    """A transformer with learned position embeddings."""

    block_class = GPT2Block

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__(config, vocab_size)
        self.pos_embeddings = nn.Embedding(config.max_seq_len, config.dim)

    def embed(self, tokens: Tensor, cache: Cache | None, document_starts: Tensor | None) -> Tensor:
        """As `Transformer.embed`, plus the embedding of each position."""
        x = super().embed(tokens, cache, document_starts)
        if document_starts is not None:
            return x + self.pos_embeddings(torch.arange(x.shape[1], device=x.device) - document_starts)
        positions = slice(x.shape[1]) if cache is None else cache.positions(x.shape[1])
        return x + self.pos_embeddings.weight[positions]
