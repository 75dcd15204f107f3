"""Train only the last blocks, the final norm and the output projection.

The backward pass stops at the first trained block.
"""

from torch import nn

from cli.errors import UserError
from configs.finetune_recipe import TopLayersConfig
from model.transformer import Transformer


def tune_top_layers(model: Transformer, config: TopLayersConfig) -> Transformer:
    """Freeze `model` except its top layers, in place; returns it.

    A tied output projection is untied, so that the embedding stays frozen. Raises UserError if the
    model has fewer blocks than `config.layers`.
    """
    if config.layers > len(model.layers):
        raise UserError(f"top_layers.layers = {config.layers}: this model has {len(model.layers)} layers; use fewer")
    model.requires_grad_(False)
    if model.config.tie_embeddings:
        model.output.weight = nn.Parameter(model.output.weight.detach().clone())
        model.config = model.config.model_copy(update={"tie_embeddings": False})
    first = len(model.layers) - config.layers
    for part in (*model.layers[first:], model.norm, model.output):
        part.requires_grad_(True)
    return model
