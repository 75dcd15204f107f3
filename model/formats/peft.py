"""LoRA adapters in the format of `peft`: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cli.errors import UserError
from configs.finetune_recipe import LoraConfig
from model.formats.llama import LAYER_NAMES

_PREFIX = "base_model.model.model.layers"
_OURS = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
_TARGETS = {theirs.rpartition(".")[2]: ours.rpartition(".")[2] for ours, theirs in LAYER_NAMES.items()}


class PeftFiles(NamedTuple):
    """What an adapter folder holds."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


class LowRank(NamedTuple):
    """An update B A of a projection: A (rank, in), B (out, rank), the scale included."""

    A: torch.Tensor
    B: torch.Tensor


def read_peft(folder: Path) -> PeftFiles:
    """Read an adapter of any kind. Raises UserError if `folder` is none."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return PeftFiles(config, tensors, file.metadata() or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: not an adapter: {error}") from None


def read_lora_config(folder: Path, config: dict[str, Any]) -> LoraConfig:
    """The settings of a LoRA adapter. Raises UserError for options that are not supported."""
    for option in ("alpha_pattern", "rank_pattern", "use_dora", "fan_in_fan_out"):
        if config.get(option):
            raise UserError(f"{folder}: {option} = {config[option]} is not supported")
    if isinstance(config["target_modules"], str):
        pattern = config["target_modules"]
        raise UserError(f'{folder}: target_modules = "{pattern}" is a pattern; only lists are supported')
    targets = []
    for name in config["target_modules"]:
        if name.rpartition(".")[2] not in _TARGETS:
            raise UserError(f'{folder}: target module "{name}" is not supported')
        targets.append(_TARGETS[name.rpartition(".")[2]])
    return LoraConfig(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_stabilized=config.get("use_rslora", False),
        dropout=config.get("lora_dropout", 0.0),
        targets=targets,
    )


def read_updates(folder: Path) -> dict[str, LowRank]:
    """The updates of a LoRA adapter by the names of their projections, as "layers.0.attention.wq".

    Raises UserError for another kind of adapter, and for a malformed one.
    """
    config, tensors, _ = read_peft(folder)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: peft_type {config.get('peft_type')} cannot stay unmerged; only LORA can")
    try:
        scale = read_lora_config(folder, config).scale
        updates = {}
        for name in [each for each in tensors if each.endswith(".lora_A.weight")]:
            number, inside = name.removeprefix(_PREFIX + ".").removesuffix(".lora_A.weight").split(".", 1)
            A, B = tensors.pop(name), tensors.pop(name.replace(".lora_A.", ".lora_B."))
            updates[f"layers.{int(number)}.{_OURS[inside]}"] = LowRank(A.float(), scale * B.float())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: malformed adapter: {' '.join(str(error).split())}") from None
    if tensors:
        raise UserError(f'{folder}: "{next(iter(tensors))}" is not a part of a LoRA adapter')
    return updates


def peft_name(name: str) -> str:
    """The name that `peft` gives to the projection "layers.N.…"."""
    _, number, inside = name.split(".", 2)
    return f"{_PREFIX}.{number}.{LAYER_NAMES[inside]}"
