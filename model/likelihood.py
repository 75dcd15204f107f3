"""Log-likelihood of documents in bits, with overlapping windows for long documents."""

import math
from collections.abc import Iterator, Sequence

import torch

from cli.console import track
from cli.errors import UserError
from model.batches import pad_ids
from model.cache import KVCache
from model.fused import project_and_score
from model.quantized import float32_products
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

BATCH, BATCH_TOKENS = 8, 4096


@torch.no_grad()
@float32_products()
def document_bits(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], prefix: Sequence[str] = ()
) -> list[float]:
    """Negative log2-likelihood of each text in bits, given the documents of `prefix`.

    A document separator precedes each text. A text longer than the context, less the prefix, is scored in
    windows that overlap by half, each after the prefix: every token is scored once, with at least half a window
    before it. Raises UserError if the tokenizer does not round-trip a text (its bits would be too low), or if
    the prefix fills the context.
    """
    separator = tokenizer.separator_id
    encoded = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, encoded, strict=True):
        if tokenizer.decode(ids) != text:
            raise UserError(f"the tokenizer loses characters of the document {text[:60]!r}…; use another tokenizer")
    cache = None
    head = [token for ids in tokenizer.encode_batch(prefix) for token in (separator, *ids)]
    window = model.config.context - len(head)
    if window < 2:
        raise UserError(f"a prefix of {len(head)} tokens fills the context of {model.config.context}; shorten it")
    if head:
        cache = KVCache(len(head))
        model.features(torch.tensor([head], device=model.device), cache)
    pieces = []  # (document index, ids, number of scored targets at the end)
    for number, ids in enumerate(encoded):
        row, scored = [separator, *ids], 1
        while scored < len(row):
            start = 0 if scored == 1 else scored - window // 2
            piece = row[start : start + window + 1]
            pieces.append((number, piece, start + len(piece) - scored))
            scored = start + len(piece)
    pieces.sort(key=lambda piece: len(piece[1]))
    bits = [0.0] * len(texts)
    batches = list(_batches(pieces))
    for batch in track(batches, "scoring documents", len(batches)):
        inputs = pad_ids([piece[:-1] for _, piece, _ in batch])
        features = model.features(inputs.to(model.device), cache and cache.fork(*inputs.shape))
        weight = model.output.weight  # a quantised model widens it
        for hidden, (number, piece, count) in zip(features, batch, strict=True):
            x = hidden[len(piece) - 1 - count : len(piece) - 1]
            targets = torch.tensor(piece[-count:], device=model.device)
            nats = project_and_score(x.to(weight.dtype), weight, targets)
            bits[number] += nats.item() / math.log(2)
    return bits


@torch.no_grad()
def score_continuations(
    model: Transformer, prompt: Sequence[int], continuations: Sequence[Sequence[int]], prefix: KVCache | None = None
) -> list[tuple[float, bool]]:
    """Log-likelihood (nats) of each continuation of one prompt, and whether each token is the likeliest.

    The prompt is read once, and all continuations in one pass after it. `prefix` is a prefix cache of
    what precedes the prompt. All are token ids; none may be empty.
    """
    cache = KVCache(len(prompt)) if prefix is None else prefix.fork(1, len(prompt))
    features = model.features(torch.tensor([list(prompt)], device=model.device), cache)
    first = model.output(features[:, -1]).float().log_softmax(-1)[0]
    heads = torch.tensor([each[0] for each in continuations], device=model.device)
    nats, greedy = first[heads], heads == first.argmax()
    longest = max(map(len, continuations))
    if longest > 1:
        inputs = pad_ids([each[:-1] for each in continuations]).to(model.device)
        targets = pad_ids([each[1:] for each in continuations]).to(model.device)
        lengths = torch.tensor([len(each) - 1 for each in continuations], device=model.device)
        scored = torch.arange(longest - 1, device=model.device) < lengths[:, None]
        features = model.features(inputs, cache.fork(len(continuations), longest - 1))
        logits = model.output(features[scored]).float()  # without the padding, a third of the work
        logs = logits.log_softmax(-1).gather(1, targets[scored][:, None])[:, 0]
        nats = nats + torch.zeros_like(scored, dtype=logs.dtype).masked_scatter(scored, logs).sum(1)
        is_likeliest = torch.ones_like(scored).masked_scatter(scored, logits.argmax(-1) == targets[scored])
        greedy = greedy & is_likeliest.all(1)
    return list(zip(nats.tolist(), greedy.tolist(), strict=True))


def _batches(pieces: Sequence[tuple[int, list[int], int]]) -> Iterator[list]:
    # Bounds memory: a long text gets a batch of its own.
    batch: list = []
    for piece in pieces:  # shortest first
        if batch and (len(batch) == BATCH or (len(batch) + 1) * len(piece[1]) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def score_texts(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float | int]:
    """Bits per byte, perplexity and sizes of all texts together; raises as `document_bits` does."""
    bits = sum(document_bits(model, tokenizer, texts))
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    size = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": bits / max(1, size),
        "perplexity": 2 ** min(bits / max(1, tokens), 1000),
        "tokens": tokens,
        "bytes": size,
        "documents": len(texts),
    }
