"""Adapters alone, in the format of `peft`: a few MB of safetensors beside adapter_config.json.

`peft` loads them upon the Hugging Face form of the base model. The file of weights also says which
base it was trained upon, by the SHA-256 of its weights, so that it is never put on another.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapt.lora import add_lora, lora_layers
from adapt.soft_prompt import with_soft_prompt
from cli.atomic import to_json, write_atomically
from cli.errors import UserError
from cli.revisions import is_commit
from configs.finetune_recipe import LoraConfig
from model.formats.llama import LAYER_NAMES
from model.soft_prompt import SoftPrompt
from model.transformer import Transformer
from train.preflight import frozen_hash

_PREFIX = "base_model.model.model.layers"
_OURS = {theirs: ours for ours, theirs in LAYER_NAMES.items()}


def save_adapter(model: Transformer, folder: Path, base: str) -> None:
    """Write what was trained upon the frozen model that is named `base`.

    LoRA in peft's LORA format; vectors before the text as PROMPT_TUNING, those of a prompt encoder
    as what it gives. Raises UserError for a model that `peft` has no names for.
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
            raise UserError("adapters of GPT-2 have no names in peft's format; use merged/")
        tensors = {
            f"{_theirs(name)}.lora_{side}.weight": getattr(layer, f"lora_{side}").detach()
            for name, layer in layers.items()
            for side in "AB"
        }
        one = next(iter(layers.values()))
        rank = len(one.lora_A)
        config |= {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": one.scale * rank,
            "lora_dropout": one.dropout,
            "use_rslora": False,  # alpha says what it comes to
            "target_modules": sorted({_theirs(name).rpartition(".")[2] for name in layers}),
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
    """Put a saved adapter on its base model, frozen; returns the model.

    Those that `peft` has written say nothing of the base's weights and are taken at their word.
    Raises UserError if it was trained upon another base, does not fit, or is of another kind.
    """
    path = folder / "adapter_model.safetensors"
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: not an adapter: {error}") from None
    try:
        return _put_on(model, folder, config, tensors, about)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{folder}: not a whole adapter: no {error}") from None
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: no adapter of a kind that is known: {reason}") from None


def _put_on(
    model: Transformer, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], about: dict[str, str]
) -> Transformer:
    model.requires_grad_(False)
    trained_upon = about.get("base_sha256")
    if trained_upon and trained_upon != frozen_hash(model):
        raise UserError(
            f"{folder}: was trained upon another base model ({about.get('base', 'unnamed')}, whose "
            f"weights have the hash {trained_upon[:12]}); load that one"
        )
    kind = config.get("peft_type")
    if kind in ("PROMPT_TUNING", "P_TUNING"):
        vectors = tensors["prompt_embeddings"].float()
        if vectors.shape[1] != model.config.dim:
            raise UserError(f"{folder}: vectors of width {vectors.shape[1]}; this model's is {model.config.dim}")
        prompt = SoftPrompt(*vectors.shape)
        prompt.vectors = torch.nn.Parameter(vectors)
        return with_soft_prompt(model, prompt)
    if kind != "LORA":
        raise UserError(f"{folder}: adapters of the kind {kind} are not supported")
    for option in ("alpha_pattern", "rank_pattern", "use_dora", "fan_in_fan_out"):
        if config.get(option):
            raise UserError(f"{folder}: {option} = {config[option]} is not supported")
    if isinstance(config["target_modules"], str):
        pattern = config["target_modules"]
        raise UserError(f'{folder}: target_modules = "{pattern}" is a pattern; only lists are read')
    settings = LoraConfig(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_stabilized=config.get("use_rslora", False),
        dropout=config.get("lora_dropout", 0.0),
        targets=[_target(name, folder) for name in config["target_modules"]],
    )
    add_lora(model, settings, seed=0)
    own = dict(model.named_parameters())
    for name, layer in lora_layers(model).items():
        for side in "AB":
            tensor = tensors.pop(f"{_theirs(name)}.lora_{side}.weight", None)
            parameter = own[f"{name}.lora_{side}"]
            if tensor is None or tensor.shape != parameter.shape:
                raise UserError(f"{folder}: has no fitting lora_{side} for {name}: another base?")
            with torch.no_grad():
                parameter.copy_(tensor)
        layer.requires_grad_(False)
    if tensors:
        raise UserError(f'{folder}: "{next(iter(tensors))}" belongs to no layer of this model')
    return model


def _theirs(name: str) -> str:
    _, number, inside = name.split(".", 2)
    return f"{_PREFIX}.{number}.{LAYER_NAMES[inside]}"


def _target(name: str, folder: Path) -> str:
    for theirs, ours in _OURS.items():
        if theirs.rpartition(".")[2] == name.rpartition(".")[2]:
            return ours.rpartition(".")[2]
    raise UserError(f'{folder}: adapts "{name}", which no layer of ours is')
