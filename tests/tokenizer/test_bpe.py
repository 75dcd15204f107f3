import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import words

from cli.errors import UserError
from configs.schema import TokenizerConfig
from tokenizer.bpe import Tokenizer
from tokenizer.train import train_tokenizer

TEXT = words(0, 4000) + "1234567 and 12 at 3.14\n\n\n    indented  twice\n" * 20
VARIANTS = [
    TokenizerConfig(vocab_size=400, digits=d, newlines=n, whitespace=w)
    for d, n, w in itertools.product(("single", "triple", "any"), ("own", "attach"), ("word", "own", "merge"))
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: f"{v.digits}-{v.newlines}-{v.whitespace}")
def variant(request):
    lines = TEXT.splitlines(keepends=True)
    texts = ["".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    return request.param, train_tokenizer(texts, request.param)


@settings(max_examples=60)
@given(text=st.text())
def test_every_string_round_trips(variant, text):
    _, tokenizer = variant
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_token_crosses_a_pre_tokenizer_split(variant):
    config, tokenizer = variant
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    digits = max(sum(c.isdigit() for c in piece) for piece in pieces)
    limit = {"single": 1, "triple": 3}.get(config.digits)
    assert limit is None or digits <= limit
    if config.newlines == "own":
        assert not [p for p in pieces if "\n" in p and p != "\n"]
    if config.whitespace == "own":
        assert not [p for p in pieces if " " in p and p.strip(" ")]
    spans_words = any(" " in piece.strip(" ") and piece.strip() for piece in pieces)
    assert spans_words == (config.whitespace == "merge")


def test_token_bytes_add_up_to_the_text(variant):
    _, tokenizer = variant
    text = "naïve café 東京 12 345\n\n👍"
    ids = tokenizer.encode(text)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes()[tokenizer.special_ids].sum() == 0


def test_text_never_encodes_to_special_tokens(variant):
    _, tokenizer = variant
    text = "before <|endoftext|> after"
    ids = tokenizer.encode(text)
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_saved_tokenizer_loads_unchanged(variant, tmp_path):
    _, tokenizer = variant
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.hash == tokenizer.hash
    assert again.separator_id == tokenizer.separator_id
    assert again.encode(TEXT[:500]) == tokenizer.encode(TEXT[:500])


def test_training_is_deterministic():
    texts = TEXT.splitlines(keepends=True)
    hashes = {train_tokenizer(texts, VARIANTS[0]).hash for _ in range(3)}
    assert len(hashes) == 1


def test_too_large_a_vocabulary_is_refused_or_reduced(capsys):
    texts = ["a small text, " * 5]
    with pytest.raises(UserError, match=r"vocab_size = 5000 is more than .* yields \d+ tokens"):
        train_tokenizer(texts, TokenizerConfig(vocab_size=5000, strict=True))
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=5000))
    assert 257 < tokenizer.vocab_size < 300
    output = capsys.readouterr().err
    assert f"is reduced to {tokenizer.vocab_size} tokens" in output
