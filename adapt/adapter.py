"""Save and load adapters (LoRA, soft prompts) in the format of `peft`.

An adapter is adapter_config.json and a few MB of safetensors; `peft` loads it on the Hugging Face
form of the base model. The safetensors metadata holds the SHA-256 of the base model's weights, so
that the adapter is never loaded on another base.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapt.lora import add_lora, lora_layers
from adapt.soft_prompt import attach_soft_prompt
from cli.atomic import to_json, write_atomically
from cli.errors import UserError
from cli.revisions import is_commit
from model.formats.peft import peft_name, read_lora_config, read_peft
from model.soft_prompt import SoftPrompt
from model.transformer import Transformer
from train.preflight import frozen_hash


def save_adapter(model: Transformer, folder: Path, base: str) -> None:
    """Write the adapter of `model`, which was trained on the frozen base model named `base`.

    LoRA is written in peft's LORA format, a soft prompt as PROMPT_TUNING, a prompt encoder as the
    vectors that it computes. Raises UserError for a model whose layers have no names in `peft`.
    """
    name, _, revision = base.partition("@")
    if not is_commit(revision):
        name, revision = base, ""
    config: dict[str, Any] = {
        "base_model_name_or_path": name,
        "revision": revision or None,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    if layers := lora_layers(model):
        if model.config.biases == "all":
            raise UserError("GPT-2: its layers have no names in peft's adapter format; use merged/")
        tensors = {
            f"{peft_name(name)}.lora_{side}.weight": getattr(layer, f"lora_{side}").detach()
            for name, layer in layers.items()
            for side in "AB"
        }
        first = next(iter(layers.values()))
        rank = len(first.lora_A)
        config |= {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": first.scale * rank,
            "lora_dropout": first.dropout,
            "use_rslora": False,  # lora_alpha includes the rank-stabilised scale
            "target_modules": sorted({peft_name(name).rpartition(".")[2] for name in layers}),
            "bias": "none",
        }
    else:
        with torch.no_grad():
            tensors = {"prompt_embeddings": model.soft_prompt().detach().clone()}
        config |= {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": model.config.soft_tokens,
            "token_dim": model.config.dim,
            "num_layers": model.config.n_layers,
            "num_attention_heads": model.config.n_heads,
            "num_transformer_submodules": 1,
        }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
    about = {"format": "pt", "base_sha256": frozen_hash(model), "base": base}
    save_file(tensors, folder / "adapter_model.safetensors", metadata=about)
    write_atomically(folder / "adapter_config.json", to_json(config, 2) + "\n")


def load_adapter(model: Transformer, folder: Path) -> Transformer:
    """Attach a saved adapter to its base model, frozen, in place; returns the model.

    Adapters written by `peft` have no hash of the base weights, so only their shapes are checked.
    Raises UserError if the adapter was trained on another base, does not fit, or has an
    unsupported type.
    """
    config, tensors, about = read_peft(folder)
    try:
        return _attach_adapter(model, folder, config, tensors, about)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{folder}: incomplete adapter: no {error}") from None
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: malformed adapter: {reason}") from None


def _attach_adapter(
    model: Transformer, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], about: dict[str, str]
) -> Transformer:
    model.requires_grad_(False)
    base_hash = about.get("base_sha256")
    if base_hash and base_hash != frozen_hash(model):
        raise UserError(
            f"{folder}: was trained on another base model ({about.get('base', 'unnamed')}, whose "
            f"weights have the hash {base_hash[:12]}); load that one"
        )
    kind = config.get("peft_type")
    if kind in ("PROMPT_TUNING", "P_TUNING"):
        vectors = tensors["prompt_embeddings"].float()
        if vectors.shape[1] != model.config.dim:
            raise UserError(f"{folder}: vectors of width {vectors.shape[1]}; this model's is {model.config.dim}")
        prompt = SoftPrompt(*vectors.shape)
        prompt.vectors = torch.nn.Parameter(vectors)
        return attach_soft_prompt(model, prompt)
    if kind != "LORA":
        raise UserError(f"{folder}: peft_type {kind} is not supported; only LORA, PROMPT_TUNING and P_TUNING are")
    settings = read_lora_config(folder, config)
    add_lora(model, settings, seed=0)
    own = dict(model.named_parameters())
    for name, layer in lora_layers(model).items():
        for side in "AB":
            tensor = tensors.pop(f"{peft_name(name)}.lora_{side}.weight", None)
            parameter = own[f"{name}.lora_{side}"]
            if tensor is None or tensor.shape != parameter.shape:
                raise UserError(f"{folder}: no lora_{side} of the right shape for {name}; load its own base")
            with torch.no_grad():
                parameter.copy_(tensor)
        layer.requires_grad_(False)
    if tensors:
        raise UserError(f'{folder}: "{next(iter(tensors))}" matches no layer of this model')
    return model
