"""The real SmolLM2-135M against `transformers` on the same file."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from cli.errors import UserError
from model.formats.gguf import gguf_tokenizer, load_gguf

CODE = '''
def rotate(matrix: list[list[int]], times: int = 1) -> list[list[int]]:
    """Turn a square matrix by a quarter, `times` times."""
    for _ in range(times % 4):
        matrix = [list(row)[::-1] for row in zip(*matrix)][::-1]
    return matrix  # 0x1F, 3.14159, 1e-10
'''
ENGLISH = (
    "The committee, which had met for the third time since the winter, could not agree on whether "
    "the bridge should be repaired or replaced. Its chairman spoke for an hour about the cost of "
    "stone; his deputy, a quiet man from the north, said only that the river would not wait. "
)
TUNE = "M:6/8\nL:1/8\nK:G\nGFG BAB|gfg gab|GFG BAB|d2A AFD|\nGFG BAB|gfg gab|age edB|dBA AFD:|\n"
TEXTS = {"code": CODE * 4, "english": ENGLISH * 5, "tune": TUNE * 5}


@pytest.fixture(scope="module")
def theirs(foundation_path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        foundation_path.parent, gguf_file=foundation_path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer(foundation_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(foundation_path.parent, gguf_file=foundation_path.name)


@pytest.mark.parametrize("name", TEXTS)
def test_logits_equal_transformers(foundation, theirs, name):
    model, tokenizer = foundation
    ids = torch.tensor([tokenizer.encode(TEXTS[name])])
    assert ids.shape[1] >= 200
    with torch.no_grad():
        gap = (model(ids) - theirs(ids).logits).abs().max().item()
    assert gap <= 1e-3


def test_config_and_tokenizer_are_read_from_the_file(foundation):
    model, tokenizer = foundation
    assert model.num_parameters() == 134_515_008
    assert (model.config.n_heads, model.config.n_kv_heads, model.config.head_dim) == (9, 3, 64)
    assert (model.config.rope_theta, model.config.max_seq_len) == (100_000, 8192)
    assert model.config.tie_embeddings
    assert tokenizer.vocab_size == model.vocab_size == 49152
    assert tokenizer.special_ids == list(range(17))


def random_text(seed):
    draw = random.Random(seed)
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x530), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
    picked = (draw.choice(ranges) for _ in range(draw.randint(1, 60)))
    return "".join(chr(draw.randrange(*r)) for r in picked)


STRINGS = [
    *TEXTS.values(),
    "line one\r\nline two\r\n",
    "non\u00a0breaking\u00a0space",
    "tabs\tand  double   triple spaces   ",
    "東京は日本の首都です。",
    "한국어 텍스트",
    "👩‍👩‍👧‍👦 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "bell\x07 null\x00 escape\x1b delete\x7f",
    "",
    *(random_text(seed) for seed in range(300)),
]
DIGITS = ["a  12", "x\n\n\n3", "½ ² ٣ Ⅷ 12345", "3.14159 in 2026", "    42\n\n  7"]


def test_ids_equal_transformers_without_the_digit_split(foundation_path, their_tokenizer):
    twin = gguf_tokenizer(foundation_path)  # without the digit split, as in the conversion of transformers
    twin.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in STRINGS + DIGITS:
        assert twin.encode(text) == their_tokenizer.encode(text, add_special_tokens=False), text


def test_digits_are_split(foundation):
    _, tokenizer = foundation
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("in 2026, 3.14")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("2026314")


def test_strings_round_trip(foundation):
    _, tokenizer = foundation
    for text in STRINGS + DIGITS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# These bytes have no token in the file: six control characters, and the lead bytes F1 and F2.
MISSING = set("\x04\x06\x13\x14\x16\x1d")


@settings(max_examples=300)
@given(text=st.text())
def test_any_string_round_trips_except_missing_bytes(foundation, text):
    _, tokenizer = foundation
    lacking = any(c in MISSING or 0x40000 <= ord(c) <= 0xBFFFF for c in text)
    assert (tokenizer.decode(tokenizer.encode(text)) == text) != lacking


def test_files_that_are_not_gguf_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_gguf(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("not a model " * 100)
    with pytest.raises(UserError, match="not a readable GGUF"):
        load_gguf(tmp_path / "text.gguf")
