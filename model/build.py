"""The model class of a configuration: Llama family, GPT-2, or our own recipe's."""

import torch

from configs.schema import ModelConfig
from model.gpt2 import GPT2
from model.rope import rope_table
from model.scratch import ScratchTransformer
from model.transformer import Transformer

SCRATCH_OPTIONS = ("key_shift", "value_embeddings", "bigram_buckets", "embedding_norm", "zero_init", "base_dim")


def build_model(config: ModelConfig, vocab_size: int) -> Transformer:
    """A model with uninitialised weights: call `init_weights`, or load a state dict."""
    if config.positions == "learned":
        return GPT2(config, vocab_size)
    if config.activation != "swiglu" or any(getattr(config, option) for option in SCRATCH_OPTIONS):
        return ScratchTransformer(config, vocab_size)
    return Transformer(config, vocab_size)


def model_from_state(config: ModelConfig, state: dict[str, torch.Tensor]) -> Transformer:
    """A model whose parameters are the tensors of `state`, without a copy."""
    with torch.device("meta"):
        model = build_model(config, len(state["tok_embeddings.weight"]))
    if config.tie_embeddings:
        state = state | {"output.weight": state["tok_embeddings.weight"]}
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.output.weight = model.tok_embeddings.weight
    model.rope = rope_table(config)
    return model
