"""Texts and bytes of single tokens, for log-probabilities."""

from functools import cache

from tokenizer.bpe import Tokenizer


@cache
def _byte_of() -> dict[str, int]:
    # The characters that stand for bytes in byte-level BPE (Radford et al. 2019; GPT-2's encoder.py).
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token; of a special one, of its name."""
    name = tokenizer.backend.id_to_token(token) or ""
    if token in tokenizer.special_ids:
        return name.encode()
    return bytes(_byte_of()[character] for character in name if character in _byte_of())


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""The text of a token; an incomplete character is written as OpenAI does, "bytes:\xe6"."""
    raw = token_bytes(tokenizer, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
