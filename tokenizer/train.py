"""Train a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019, section 2.2)."""

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from cli.console import console, say
from cli.errors import UserError
from configs.schema import TokenizerConfig
from tokenizer.bpe import Tokenizer


def build_pre_tokenizer(config: TokenizerConfig) -> pre_tokenizers.PreTokenizer:
    """Build the pre-tokenizer: tokens cannot cross its splits (`digits`, `newlines`, `whitespace`)."""
    splits: list[pre_tokenizers.PreTokenizer] = []
    if config.newlines == "own":
        splits.append(pre_tokenizers.Split(Regex(r"\r?\n"), "isolated"))
    if config.whitespace == "own":
        splits.append(pre_tokenizers.Split(Regex(r"[^\S\r\n]+"), "isolated"))
    if config.digits != "any":
        count = {"single": "", "triple": "{1,3}"}[config.digits]
        splits.append(pre_tokenizers.Split(Regex(rf"\p{{N}}{count}"), "isolated"))
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=config.whitespace != "merge"))
    return pre_tokenizers.Sequence(splits)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a tokenizer with `config.vocab_size` entries on `texts`.

    If the texts have too few different pairs for that many merges, the vocabulary is smaller and a
    warning is printed; with `config.strict`, raises UserError.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = build_pre_tokenizer(config)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=config.special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=console.is_terminal,
    )
    backend.train_from_iterator(texts, trainer)
    learned = backend.get_vocab_size()
    if learned < config.vocab_size:
        reason = f"tokenizer.vocab_size = {config.vocab_size} is more than the corpus supports"
        if config.strict:
            raise UserError(f"{reason}: it yields {learned} tokens; set it to {learned} or less, or add text")
        say(f"WARNING: {reason}: the vocabulary is reduced to {learned:,} tokens")
    return Tokenizer(backend, config.special_tokens[0])
