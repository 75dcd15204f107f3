"""Write a model as a GGUF file for llama.cpp: weights, configuration and tokenizer.

llama.cpp rotates interleaved pairs in some architectures and half-split ones, as we do, in others; the
rows of q and k are reordered for the first.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import pre_tokenizers

from cli.errors import UserError
from configs.schema import ModelConfig, TokenizerConfig
from model.formats.families import XIELU, find_gguf_family, fold
from model.formats.gguf import NAMES, PRE_TOKENIZERS, import_gguf
from model.formats.names import inverted, rename
from model.rope import rope_divisors
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from tokenizer.train import build_pre_tokenizer

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
_INTERLEAVED = ("llama", "smollm3", "arcee")
_RELU2 = {"feed_forward.w1": "ffn_up", "feed_forward.w2": "ffn_down"}
_QK_NORM = {"attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm"}
_NORMAL, _CONTROL = 1, 3  # types of tokens


def save_gguf(model: Transformer, tokenizer: Tokenizer, path: Path, kind: str, name: str) -> None:
    """Write `path`, aside first. `kind` is one of TYPES, for the matrices; vectors are float32.

    A matrix whose rows are not a multiple of 32 stays float16 under q8_0 and q4_0. Raises UserError for
    an option that llama.cpp does not have, naming it, and for a tokenizer that it does not know.
    """
    gguf = import_gguf()
    state = {key: p.detach().cpu().float() for key, p in model.named_parameters()}
    config, state = fold(model.config, state)
    family, pre = find_gguf_family(config), find_pre_tokenizer(tokenizer)
    aside = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(aside, family)
    writer.add_name(name)
    _add_settings(writer, family, config, model.vocab_size)
    _add_tokenizer(writer, tokenizer, pre)
    writer.add_file_type(getattr(gguf.LlamaFileType, {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")))
    for key, tensor in _named(family, config, state).items():
        data, its_type = _convert(gguf, tensor, kind)
        writer.add_tensor(key, data, raw_dtype=its_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def find_pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises UserError if it has none, with the settings that have one."""
    ours = {digits: TokenizerConfig(newlines="attach", digits=digits) for digits in ("any", "single")}
    known = {_describe(pre_tokenizers.Sequence(make())): name for name, make in PRE_TOKENIZERS.items()}
    known[_describe(build_pre_tokenizer(ours["single"]))] = "smollm"
    known[_describe(build_pre_tokenizer(ours["any"]))] = "gpt-2"
    described = _describe(tokenizer.backend.pre_tokenizer)
    if described not in known:
        raise UserError(
            f"llama.cpp has no pre-tokenizer like this one ({described}); before training set tokenizer.newlines = "
            '"attach", tokenizer.whitespace = "word", and tokenizer.digits = "single" or "any"'
        )
    return known[described]


def _describe(pre_tokenizer: Any) -> str:
    # What decides the splits: kinds, patterns and switches of the steps.
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    found = json.loads(backend.to_str())["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    named = []
    for step in steps:
        decides = [step.get("pattern", {}).get("Regex"), step.get("individual_digits"), step.get("use_regex")]
        named.append(f"{step.get('type')}({', '.join(str(each) for each in decides if each is not None)})")
    return ", ".join(named)


def _add_settings(writer: Any, family: str, c: ModelConfig, vocab_size: int) -> None:
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_vocab_size(vocab_size)
    if family == "apertus":
        for key, value in XIELU.items():
            getattr(writer, f"add_xielu_{key}")([value] * c.n_layers)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, pre: str) -> None:
    parts = json.loads(tokenizer.to_json())
    special = set(tokenizer.special_ids)
    tokens = [tokenizer.backend.id_to_token(i) for i in range(tokenizer.vocab_size)]
    merges = parts["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if i in special else _NORMAL for i in range(len(tokens))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.separator_id)
    writer.add_eos_token_id(tokenizer.separator_id)
    writer.add_add_bos_token(True)  # a text starts after the separator, as in training
    if tokenizer.chat:
        writer.add_chat_template(tokenizer.chat.template)


def _named(family: str, c: ModelConfig, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if family == "apertus":  # llama.cpp reads no tied table for it
        state.setdefault("output.weight", state["tok_embeddings.weight"])
    names = inverted(NAMES) | _QK_NORM | (_RELU2 if c.activation == "relu2" else {})
    if family in _INTERLEAVED:
        for key, tensor in state.items():
            part = key.split(".")[-2]
            if part in ("wq", "wk"):
                state[key] = _interleave(tensor, c.n_heads if part == "wq" else c.n_kv_heads)
    named = rename(state, names, "model")
    if c.rope_scaling:
        pairs = torch.arange(0, c.head_dim, 2, dtype=torch.float64)
        named["rope_freqs.weight"] = rope_divisors(c.rope_theta ** (-pairs / c.head_dim), c.rope_scaling).float()
    return named


def _interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    # Rows of (head, 2, pair) as (head, pair, 2).
    return rows.view(heads, 2, len(rows) // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _convert(gguf: Any, tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, Any]:
    types = gguf.GGMLQuantizationType
    array = tensor.contiguous().numpy()
    if tensor.dim() == 1 or kind == "f32":
        return array, types.F32
    wanted = types[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    if tensor.shape[1] % block:
        wanted = types.F16
    return gguf.quants.quantize(array, wanted), wanted
