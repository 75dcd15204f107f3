"""Train a byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019, section 2.2)."""

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from cli.console import console, say
from cli.errors import UserError
from configs.schema import TokenizerConfig
from tokenizer.bpe import Tokenizer


def build_pre_tokenizer(config: TokenizerConfig) -> pre_tokenizers.PreTokenizer:
    """The splits that no token may cross, as [tokenizer] digits, newlines and whitespace ask."""
    cuts: list[pre_tokenizers.PreTokenizer] = []
    if config.newlines == "own":
        cuts.append(pre_tokenizers.Split(Regex(r"\r?\n"), "isolated"))
    if config.whitespace == "own":
        cuts.append(pre_tokenizers.Split(Regex(r"[^\S\r\n]+"), "isolated"))
    if config.digits != "any":
        count = {"single": "", "triple": "{1,3}"}[config.digits]
        cuts.append(pre_tokenizers.Split(Regex(rf"\p{{N}}{count}"), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=config.whitespace != "merge"))
    return pre_tokenizers.Sequence(cuts)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learn a tokenizer of `config.vocab_size` entries from `texts`.

    Texts that do not hold enough different pairs for that many merges give a smaller vocabulary,
    which is said; with `config.strict` they raise UserError.
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
