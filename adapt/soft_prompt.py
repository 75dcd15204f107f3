"""Soft prompts: trained vectors before every text of a frozen model.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains the vectors. P-tuning trains a prompt
encoder, an MLP that computes them (Liu et al. 2021, arXiv:2103.10385, section 3.2; the same MLP as
`peft`).
"""

import torch
from torch import nn

from cli.errors import UserError
from configs.finetune_recipe import SoftPromptConfig
from model.soft_prompt import SoftPrompt
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


class PromptEncoder(SoftPrompt):
    """Vectors computed from trained embeddings by an MLP with two hidden layers."""

    def __init__(self, tokens: int, dim: int, hidden_dim: int):
        super().__init__(tokens, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self) -> torch.Tensor:
        """(tokens, dim)."""
        return self.mlp(self.vectors)


@torch.no_grad()
def add_soft_prompt(model: Transformer, tokenizer: Tokenizer, config: SoftPromptConfig, seed: int) -> Transformer:
    """Freeze `model` and add a trained soft prompt, in place; returns it.

    The vectors (or the inputs of a prompt encoder) start as embeddings of `init_text`, or of random
    tokens. Raises UserError if they fill the context, if `init_text` has more tokens, or if the
    model already has a soft prompt.
    """
    if model.config.soft_tokens:
        raise UserError(
            f"this model already has a soft prompt of {model.config.soft_tokens} vectors; use another "
            "method, or start from its base"
        )
    if config.tokens >= model.config.max_seq_len:
        raise UserError(f"soft_prompt.tokens = {config.tokens} fills the context of {model.config.max_seq_len}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(tokenizer.encode(config.init_text), dtype=torch.int64)
    if len(ids) > config.tokens:
        raise UserError(f"soft_prompt.init_text has {len(ids)} tokens, more than soft_prompt.tokens = {config.tokens}")
    if len(ids):
        ids = ids.repeat(-(-config.tokens // len(ids)))[: config.tokens]
    else:
        ids = torch.randint(model.vocab_size, (config.tokens,), generator=generator)
    if config.hidden_dim:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            prompt: SoftPrompt = PromptEncoder(config.tokens, model.config.dim, config.hidden_dim)
    else:
        prompt = SoftPrompt(config.tokens, model.config.dim)
    prompt.vectors.copy_(model.tok_embeddings.weight[ids])
    return attach_soft_prompt(model, prompt)


def attach_soft_prompt(model: Transformer, prompt: SoftPrompt) -> Transformer:
    """Put the vectors of `prompt` before every text of `model`, in place; returns it."""
    model.soft_prompt = prompt
    model.config = model.config.model_copy(update={"soft_tokens": len(prompt.vectors)})
    return model


@torch.no_grad()
def merge_prompt_encoder(model: Transformer) -> Transformer:
    """Replace a prompt encoder by the vectors that it computes, in place; returns the model."""
    prompt = SoftPrompt(model.config.soft_tokens, model.config.dim)
    prompt.vectors.copy_(model.soft_prompt())
    return attach_soft_prompt(model, prompt)
