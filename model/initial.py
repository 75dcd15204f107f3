"""The initial weights of every model family."""

import math

import torch
from torch import nn

from configs.schema import ModelConfig


@torch.no_grad()
def draw_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw all weights of a transformer, in place.

    | weights                                | distribution                                            |
    | -------------------------------------- | ------------------------------------------------------- |
    | norms and scales; biases               | 1; 0                                                    |
    | embeddings, output, soft prompt        | normal, std 0.02                                        |
    | value embeddings; bigram embeddings    | normal, std 0.25; 0                                     |
    | mixes of residual stream and bigrams   | 1, 0.1                                                  |
    | wo, w2                                 | normal, std dim^-0.5 / sqrt(2 n_layers) (GPT-2, s. 2.3) |
    | wo, w2 with `zero_init`                | 0                                                       |
    | other matrices                         | normal, std dim^-0.5                                    |
    """
    generator = torch.Generator().manual_seed(seed)
    std = config.dim**-0.5
    for name, parameter in model.named_parameters():
        if name.endswith("mix"):
            parameter.fill_(0.1)[0] = 1.0
        elif parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name == "bigram_embeddings.weight":
            parameter.zero_()
        elif name.startswith("value_embeddings"):
            parameter.normal_(0, 0.25, generator=generator)
        elif name.endswith("embeddings.weight") or name in ("output.weight", "soft_prompt.vectors"):
            parameter.normal_(0, 0.02, generator=generator)
        elif name.endswith(("wo.weight", "w2.weight")):
            parameter.normal_(0, std / math.sqrt(2 * config.n_layers), generator=generator)
            if config.zero_init:  # drawn all the same: the other weights do not depend on `zero_init`
                parameter.zero_()
        else:
            parameter.normal_(0, std, generator=generator)
