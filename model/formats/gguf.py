"""Read a Llama-family GGUF file: weights, configuration and tokenizer, all from its metadata.

Weights are dequantised to float32. GGUF stores q and k with interleaved rotary pairs; the rows are
reordered to half-split pairs.
"""

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from cli.errors import UserError, nearest
from configs.schema import ModelConfig
from model.build import model_from_state
from model.formats.names import rename
from model.quantized import GROUP, Groups, join_halves
from model.rope import rope_divisors
from model.transformer import Transformer
from tokenizer.bpe import ChatTemplate, Tokenizer

ARCHITECTURES = ("llama",)
SEPARATOR = "<|endoftext|>"  # document separator; files without it use their BOS token
_WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = (1.0, 4.0, 8192.0)  # RoPE scaling of Llama 3.1 and later: low and high factor, context

NAMES = {  # theirs: ours
    "blk": "layers",
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "attn_norm": "attention_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_norm": "ffn_norm",
}


def load_gguf(path: Path) -> tuple[Transformer, Tokenizer]:
    """The model in float32 on the CPU, and its tokenizer.

    Raises UserError if the file is missing, not GGUF, or not of the Llama architecture.
    """
    model, tokenizer, _ = read_gguf(path)
    return model, tokenizer


def read_gguf(path: Path, keep: Container[str] = ()) -> tuple[Transformer, Tokenizer, dict[str, Groups]]:
    """As `load_gguf`, but matrices of the kinds `keep` ("Q4_0", "Q4_1", "Q8_0") stay quantised.

    They are returned by name, and the model holds "meta" tensors in their place.
    """
    reader = _open(path)
    architecture = _field(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        hint = nearest(architecture, ARCHITECTURES)
        raise UserError(f'{path}: unknown architecture "{architecture}"{hint}')

    def value(key: str) -> Any:
        return _field(reader, f"llama.{key}")

    scaled = reader.get_field("llama.rope.scaling.type")
    if scaled is not None and scaled.contents() != "none":
        raise UserError(f'{path}: rope scaling "{scaled.contents()}" is not supported')
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    n_heads, dim = value("attention.head_count"), value("embedding_length")
    head_dim = value("rope.dimension_count")
    divisors = tensors.pop("rope_freqs.weight", None)
    theta = value("rope.freq_base")
    config = ModelConfig(
        dim=dim,
        n_layers=value("block_count"),
        n_heads=n_heads,
        n_kv_heads=value("attention.head_count_kv"),
        head_dim=head_dim,
        hidden_dim=value("feed_forward_length"),
        max_seq_len=value("context_length"),
        activation="swiglu",
        qk_norm=False,
        tie_embeddings="output.weight" not in tensors,
        rope_theta=theta,
        rope_scaling=[] if divisors is None else _rope_scaling(divisors.data, theta, head_dim, path),
        norm_eps=value("attention.layer_norm_rms_epsilon"),
    )
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}
    state, kept = {}, {}
    for name, tensor in rename(tensors, NAMES, str(path)).items():
        its_heads = heads.get(name.split(".")[-2])
        if tensor.tensor_type.name in keep:
            kept[name] = _keep(tensor, its_heads)
            state[name] = torch.empty(*tensor.shape.tolist()[::-1], device="meta")
        else:
            state[name] = torch.from_numpy(_dequantize(tensor, its_heads, path))
    try:
        model = model_from_state(config, state).eval()
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the weights do not fit the metadata: {reason}") from None
    return model, _tokenizer(reader, path), kept


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE tokenizer stored in the file."""
    return _tokenizer(_open(path), path)


def _tokenizer(reader: Any, path: Path) -> Tokenizer:
    model, pre = (_field(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2":
        raise UserError(f'{path}: tokenizer "{model}"; only byte-level BPE ("gpt2") is supported')
    if pre not in PRE_TOKENIZERS:
        raise UserError(f'{path}: pre-tokenizer "{pre}"{nearest(pre, list(PRE_TOKENIZERS))}')
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre]())
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True) for token in control])
    separator = SEPARATOR
    if separator not in vocabulary:
        separator = tokens[_field(reader, "tokenizer.ggml.bos_token_id")]
    return Tokenizer(backend, separator, _chat_template(reader, tokens))


def _gpt2_split() -> list[Any]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False)]


def _words_split(digits: int) -> list[Any]:
    words = pre_tokenizers.Split(tokenizers.Regex(_WORD_PATTERN % digits), "isolated")
    return [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


PRE_TOKENIZERS: dict[str, Callable[[], list[Any]]] = {
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), *_gpt2_split()],
    "gpt-2": _gpt2_split,
    "default": _gpt2_split,
    "llama-bpe": lambda: _words_split(3),
    "qwen2": lambda: _words_split(1),
}


def _chat_template(reader: Any, tokens: list[str]) -> ChatTemplate | None:
    template = reader.get_field("tokenizer.chat_template")
    if template is None:
        return None
    named = {}
    for kind in ("bos", "eos"):
        field = reader.get_field(f"tokenizer.ggml.{kind}_token_id")
        named[f"{kind}_token"] = tokens[field.contents()] if field else ""
    return ChatTemplate(template.contents(), **named)


def import_gguf() -> Any:
    """The gguf package. Raises UserError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(".gguf files need: pip install -e '.[compare]'") from None
    return gguf


def _open(path: Path) -> Any:
    gguf = import_gguf()
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: not a readable GGUF file: {error}") from None


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UserError(f'{reader.data.filename}: no "{key}" in the file')
    return field.contents()


def _rope_scaling(divisors: np.ndarray, theta: float, head_dim: int, path: Path) -> list[float]:
    # A file holds the divisor of each frequency, not the four scaling parameters.
    scaling = [float(divisors.max()), *_LLAMA_3]
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
    expected = rope_divisors(theta ** (-pairs / head_dim), scaling).numpy()
    if not np.allclose(expected, divisors, rtol=1e-3):
        raise UserError(f"{path}: rope_freqs are not those of Llama 3.1: not supported")
    return scaling


def _dequantize(tensor: Any, heads: int | None, path: Path) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=True)
    except NotImplementedError:
        kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
        raise UserError(f"{path}: {tensor.name} has the unsupported quantisation {kind}") from None
    return _reorder(weight, heads) if heads else weight


def _reorder(rows: np.ndarray, heads: int) -> np.ndarray:
    # Rows of (head, pair, 2) as (head, 2, pair).
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(rows.shape)


def _keep(tensor: Any, heads: int | None) -> Groups:
    data = _reorder(tensor.data, heads) if heads else tensor.data
    kind, (columns, rows) = tensor.tensor_type.name, tensor.shape.tolist()
    blocks = np.ascontiguousarray(data).reshape(rows, columns // GROUP, -1)
    numbers = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}[kind]  # scale, and minimum, in float16
    scales, values = blocks[..., : 2 * numbers], blocks[..., 2 * numbers :]
    scale, *minimum = torch.from_numpy(np.ascontiguousarray(scales).view(np.float16).astype(np.float32)).unbind(-1)
    if kind == "Q8_0":
        return join_halves(torch.from_numpy(np.ascontiguousarray(values).view(np.int8)).flatten(1), scale)
    levels = torch.from_numpy(np.concatenate([values & 15, values >> 4], -1)).flatten(1)
    zero = minimum[0] + 8 * scale if minimum else torch.zeros_like(scale)
    return Groups(levels, scale, zero, 1)
