from texts import words

from compare.tokenizers import bytes_per_token, colour_tokens
from configs.schema import TokenizerConfig
from tokenizer.train import train_tokenizer


def test_tokens_are_counted_and_coloured():
    tokenizer = train_tokenizer([words(0, 2000)], TokenizerConfig(vocab_size=300))
    assert bytes_per_token(tokenizer, ["one two\n"]) == 8 / len(tokenizer.encode("one two\n"))
    shown = colour_tokens(tokenizer, "one two\nthree")
    assert shown.plain == "one two⏎\nthree"
    assert len(shown.spans) == len(tokenizer.encode("one two\nthree"))


def test_each_split_is_shown_beside_the_foundation(command, recipe):
    done = command("compare.tokenizers", recipe)
    assert done.returncode == 0, done.stderr
    for word in ("train", "validation", "test", "smollm2-135m", "49,152"):
        assert word in done.stdout
