"""Models with options that no architecture of transformers has: a folder with modelling code of its own.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from cli.errors import UserError
from configs.schema import ModelConfig

CODE = "modeling_homegrown"
_OPTIONS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "max_seq_len", "window", "activation",
    "qk_norm", "key_shift", "value_embeddings", "bigram_buckets", "rope_theta", "norm_eps",
)  # fmt: skip


def write_config(c: ModelConfig) -> dict[str, Any]:
    """Settings of a config.json. Raises UserError for an option that the modelling code does not have."""
    plain = ModelConfig()
    for option in ("norm", "biases", "positions", "nope_every", "rope_scaling", "soft_tokens"):
        if getattr(c, option) != getattr(plain, option):
            value = json.dumps(getattr(c, option))
            raise UserError(f"model.{option} = {value} cannot be exported together with options of ours")
    classes = {"AutoConfig": "HomegrownConfig", "AutoModelForCausalLM": "HomegrownForCausalLM"}
    return {
        "model_type": "homegrown",
        "architectures": ["HomegrownForCausalLM"],
        "auto_map": {kind: f"{CODE}.{name}" for kind, name in classes.items()},
        **{option: getattr(c, option) for option in _OPTIONS},
    }


def write_code(folder: Path) -> None:
    """Copy the modelling code, which depends on torch and transformers alone."""
    shutil.copyfile(Path(__file__).with_name(f"{CODE}.py"), folder / f"{CODE}.py")
