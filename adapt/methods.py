"""The fine-tuning methods and the weights that each one trains, for recipes and studies.

| method        | trained weights                                     | source                |
| ------------- | --------------------------------------------------- | --------------------- |
| `full`        | all weights                                         |                       |
| `top_layers`  | the last blocks, the last norm, the output          | `adapt/top_layers.py` |
| `lora`        | low-rank adapters                                   | `adapt/lora.py`       |
| `soft_prompt` | vectors before every text                           | `adapt/soft_prompt.py`|
| `features`    | a classifier on frozen features, without the loop   | `adapt/features.py`   |

To add a method, write a function that freezes all other weights and add it to METHODS; its settings
are a table with the name of the method in configs/finetune_recipe.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adapt.lora import add_lora, merge_lora
from adapt.soft_prompt import add_soft_prompt, merge_prompt_encoder
from adapt.top_layers import tune_top_layers
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


class Method(NamedTuple):
    """How a method prepares a model in place; the training loop does the rest."""

    prepare: Callable[[Transformer, Tokenizer, Any, int], Transformer]
    """(model, tokenizer, settings, seed) -> model, with `requires_grad` set on trained weights only."""
    has_adapter: bool
    """Whether the trained weights can be stored without the base model."""


METHODS = {
    "full": Method(lambda model, tokenizer, settings, seed: model.requires_grad_(True), False),
    "top_layers": Method(lambda model, tokenizer, settings, seed: tune_top_layers(model, settings), False),
    "lora": Method(lambda model, tokenizer, settings, seed: add_lora(model, settings, seed), True),
    "soft_prompt": Method(add_soft_prompt, True),
}


def prepare_model(model: Transformer, tokenizer: Tokenizer, method: str, recipe: Any, seed: int) -> Transformer:
    """Freeze `model` except for the weights that `method` trains, in place; returns it.

    LoRA adapters and soft prompts are added. The settings are the table of `recipe` with the name
    of the method.
    """
    return METHODS[method].prepare(model, tokenizer, getattr(recipe, method, None), seed)


def merge_model(model: Transformer) -> Transformer:
    """Merge LoRA adapters and prompt encoders into the weights of `model`, in place; returns it."""
    merge_lora(model)
    return merge_prompt_encoder(model) if model.config.soft_tokens else model
