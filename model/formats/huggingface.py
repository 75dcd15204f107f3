"""Read and write Hugging Face folders: Llama, Qwen2, Qwen3, SmolLM2, SmolLM3, Arcee, Apertus and GPT-2.

A folder holds config.json, model.safetensors (or shards with an index), tokenizer.json and
perhaps a chat template. A model with options that no architecture of transformers has is written
with its own modelling code, which only transformers reads.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli.atomic import safe_join, to_json
from cli.errors import UserError, nearest
from model.build import model_from_state
from model.formats import gpt2, llama, remote
from model.formats.families import CLASSES, find_family, fold, needs_own_code
from model.transformer import Transformer
from tokenizer.bpe import ChatTemplate, Tokenizer


def load_huggingface(folder: Path) -> tuple[Transformer, Tokenizer]:
    """The model in float32 on the CPU, and its tokenizer.

    Raises UserError for a missing or malformed file, an unsupported architecture or setting, and a
    tokenizer that is not byte-level BPE.
    """
    settings = _json(folder / "config.json")
    kind = str(settings.get("model_type"))
    if kind not in CLASSES:
        hint = nearest(kind, list(CLASSES))
        raise UserError(f'{folder}/config.json: unknown architecture "{kind}"{hint}')
    layout = gpt2 if kind == "gpt2" else llama
    try:
        config = layout.read_config(kind, settings)
    except KeyError as error:
        raise UserError(f"{folder}/config.json: no {error}") from None
    weights = {name: tensor.float() for name, tensor in _tensors(folder).items()}
    state = layout.read_weights(kind, weights)
    if config.tie_embeddings:
        state.pop("output.weight", None)
    try:
        return model_from_state(config, state).eval(), _tokenizer(folder, settings)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: the weights do not fit config.json: {reason}") from None


def save_huggingface(model: Transformer, tokenizer: Tokenizer, folder: Path, card: str) -> None:
    """Write a folder that `transformers` loads: weights in their dtype, tokenizer, and `card`.

    Raises UserError if `folder` is not empty, or for an option that cannot be exported.
    """
    state = {name: p.detach().cpu() for name, p in model.named_parameters()}
    config, state = fold(model.config, state)
    if needs_own_code(config):
        settings, named = remote.write_config(config), state
    else:
        kind = find_family(config)
        layout = gpt2 if kind == "gpt2" else llama
        settings = layout.write_config(kind, config)
        settings |= {"architectures": [CLASSES[kind]], "model_type": kind}
        named = layout.write_weights(kind, state)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if "auto_map" in settings:
        remote.write_code(folder)
    contiguous = {name: x.contiguous() for name, x in named.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    separator = tokenizer.separator_id
    settings |= {
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "dtype": str(model.tok_embeddings.weight.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(to_json(settings, 2) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_tokenizer(tokenizer, folder, config.max_seq_len)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    name = tokenizer.backend.id_to_token(tokenizer.separator_id)
    parts = json.loads(tokenizer.to_json())
    # A text starts after the separator, as in training; a chat template is applied without special tokens.
    start = {"SpecialToken": {"id": name, "type_id": 0}}
    parts["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [tokenizer.separator_id], "tokens": [name]}},
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        **{"bos_token": name, "eos_token": name, "pad_token": name},
    }
    if tokenizer.chat:
        (folder / "chat_template.jinja").write_text(tokenizer.chat.template, encoding="utf-8")
        about |= {k: v for k, v in tokenizer.chat._asdict().items() if v and k != "template"}
    (folder / "tokenizer.json").write_text(to_json(parts, 2), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(to_json(about, 2) + "\n")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(_json(index)["weight_map"].values()))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found |= load_file(safe_join(folder, file))
        except FileNotFoundError:
            raise UserError(f"{folder / file}: no such weights file") from None
        except SafetensorError as error:
            raise UserError(f"{folder / file}: not a safetensors file: {error}") from None
    return found


def _tokenizer(folder: Path, settings: dict) -> Tokenizer:
    path = folder / "tokenizer.json"
    parts = _json(path)
    if '"ByteLevel"' not in json.dumps(parts.get("decoder")):
        raise UserError(f"{path}: only byte-level BPE tokenizers are supported")
    about = folder / "tokenizer_config.json"
    named = _json(about) if about.exists() else {}

    def special(key: str) -> str:
        value = named.get(key) or ""
        return value["content"] if isinstance(value, dict) else value

    known = {token["content"] for token in parts.get("added_tokens", [])}
    wanted = ("<|endoftext|>", special("bos_token"), special("eos_token"))
    separator = next((token for token in wanted if token and token in known), None)
    if separator is None:
        raise UserError(f"{path}: has no special token that can separate documents")
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.exists() else named.get("chat_template")
    chat = None
    if isinstance(template, str):
        chat = ChatTemplate(template, special("bos_token"), special("eos_token"))
    loaded = Tokenizer.load(path)
    return Tokenizer(loaded.backend, separator, chat)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found
