"""The last blocks, the last norm and the output projection are trained, the rest is frozen.

No gradient runs below the first trained block: its backward pass is neither computed nor kept.
"""

from torch import nn

from configs.cli import UserError
from configs.schema import TopLayersConfig
from model.transformer import Transformer


def tune_top_layers(model: Transformer, config: TopLayersConfig) -> Transformer:
    """Freeze `model` but for its top; returns it.

    An output projection that was the embedding becomes a copy of its own, so that the embedding
    stays frozen. Raises UserError if there are fewer blocks than asked for.
    """
    if config.layers > len(model.layers):
        raise UserError(f"top_layers.layers = {config.layers}: this model has {len(model.layers)} layers")
    model.requires_grad_(False)
    if model.config.tie_embeddings:
        model.output.weight = nn.Parameter(model.output.weight.detach().clone())
        model.config = model.config.model_copy(update={"tie_embeddings": False})
    first = len(model.layers) - config.layers
    for part in (*model.layers[first:], model.norm, model.output):
        part.requires_grad_(True)
    return model
