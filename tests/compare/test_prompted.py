import lzma
import math
import random

import numpy as np
import pytest
import torch
from texts import words

from cli.errors import UserError
from compare.methods.baselines import Compressor, TfIdf, xz, zstd
from compare.methods.prompted import fit_documents, token_lengths
from compare.ngram import NGram
from configs.schema import ModelConfig, TokenizerConfig
from data.items import Item, Task
from model.build import build_model
from model.likelihood import document_bits
from tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def small():
    tokenizer = train_tokenizer(words(0, 3000).splitlines(), TokenizerConfig(vocab_size=300))
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=64, max_seq_len=48)
    return build_model(config, 300).init_weights(0).eval(), tokenizer


def nats(model, ids, scored):
    with torch.no_grad():
        logp = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    picked = logp.gather(1, torch.tensor(ids[1:])[:, None])[-scored:]
    return -picked.sum().item()


def test_documents_are_scored_one_by_one_whatever_the_batch(small):
    model, tokenizer = small
    texts = [words(n, 3 + n % 5) for n in range(20)]
    expected = []
    for text in texts:
        ids = [tokenizer.separator_id, *tokenizer.encode(text)]
        expected.append(nats(model, ids, len(ids) - 1) / math.log(2))
    assert document_bits(model, tokenizer, texts) == pytest.approx(expected, rel=1e-4)


def test_a_prefix_is_read_but_not_scored(small):
    model, tokenizer = small
    texts, prefix = [words(n, 2) for n in range(10)], [words(50, 1), words(51, 1)]
    head = [i for text in prefix for i in (tokenizer.separator_id, *tokenizer.encode(text))]
    expected = []
    for text in texts:
        ids = [*head, tokenizer.separator_id, *tokenizer.encode(text)]
        expected.append(nats(model, ids, len(tokenizer.encode(text))) / math.log(2))
    assert document_bits(model, tokenizer, texts, prefix) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prefix", [[], [words(50, 1)]])
def test_a_long_document_is_scored_once_in_overlapping_windows(small, prefix):
    model, tokenizer = small
    text = words(3, 60)
    head = [i for each in prefix for i in (tokenizer.separator_id, *tokenizer.encode(each))]
    ids, window = [tokenizer.separator_id, *tokenizer.encode(text)], 48 - len(head)
    assert len(ids) > 3 * window > 30
    total, scored = 0.0, 1
    while scored < len(ids):
        start = 0 if scored == 1 else scored - window // 2
        piece = ids[start : start + window + 1]
        new = start + len(piece) - scored
        total += nats(model, [*head, *piece], new)
        scored += new
    assert document_bits(model, tokenizer, [text], prefix) == pytest.approx([total / math.log(2)], rel=1e-4)


def test_a_prefix_that_fills_the_context_is_refused(small):
    model, tokenizer = small
    with pytest.raises(UserError, match=r"a prefix of \d+ tokens fills the context of 48; shorten it"):
        document_bits(model, tokenizer, ["a"], [words(3, 60)])


def test_documents_of_a_prompt_are_left_out_or_truncated_to_fit(small):
    _, tokenizer = small
    documents = [words(n, 4) for n in range(3)]
    lengths = token_lengths(tokenizer, documents)
    assert fit_documents(tokenizer, documents, sum(lengths)) == documents
    assert fit_documents(tokenizer, documents, sum(lengths) - 1) == documents[:2]
    (start,) = fit_documents(tokenizer, documents, lengths[0] // 2)
    assert documents[0].startswith(start)
    assert 0.6 * (lengths[0] // 2) < token_lengths(tokenizer, [start])[0] <= lengths[0] // 2
    assert fit_documents(tokenizer, [], 10) == []


def test_text_that_the_tokenizer_cannot_encode_is_refused(foundation):
    model, tokenizer = foundation
    with pytest.raises(UserError, match="loses characters"):
        document_bits(model, tokenizer, ["a control character \x04 that the vocabulary lacks"])


def test_a_compressor_is_charged_for_the_held_out_text_only():
    train, test = [words(0, 2000), words(7, 9000)], [words(0, 2000)[:5000], words(9, 200)]
    seen = "".join(f"{text}\n\n" for text in train).encode()
    for stream in (xz, zstd):
        bits = Compressor(stream(), train).bits(test)
        assert bits[0] < bits[1] / 10  # it is in the training text
        for text, found in zip(test, bits, strict=True):
            # Close to the difference of whole archives, apart from some bytes for block boundaries.
            sizes = [len(archive(stream(), data)) for data in (seen, seen + text.encode())]
            assert found == pytest.approx(8 * (sizes[1] - sizes[0]), abs=400, rel=0.05)
            assert 0 < found < 1.1 * 8 * len(archive(stream(), text.encode()))
    assert lzma.decompress(archive(xz(), b"abc" * 100)) == b"abc" * 100


def archive(stream, data):
    return stream.compress(data) + stream.flush()


def labelled(count, seed):
    draw = random.Random(seed)
    kinds = {"vowel": "aeiou", "late": "tuvwxyz"}
    made = []
    for n in range(count):
        label = draw.choice(list(kinds))
        made.append(Item(str(n), "".join(draw.choices(kinds[label] + "lmn", k=30)), label))
    return made


def test_the_tfidf_baseline_learns_separable_labels():
    task = Task("Text", "Kind", ["late", "vowel"], labelled(200, 0), labelled(40, 1), labelled(60, 2))
    learned = TfIdf(task, 10.0)
    found = learned.answers(task.test)
    assert np.mean(found["correct"]) > 0.95
    assert all(0.5 <= sure <= 1 for sure in found["confidence"])
    assert learned.costs["trained_parameters"] > 100
    alone = task._replace(train=[task.train[0]])
    assert set(TfIdf(alone, 10.0).answers(task.test)["confidence"]) == {1.0}


def naive_bits(train, text, order):
    """A naive Witten-Bell model: dictionaries of tuples, one byte at a time."""
    counts = [{} for _ in range(order)]
    data = [b for t in train for b in (0, *t.encode())]
    for n in range(order):
        for i in range(1, len(data)):
            context = tuple(data[j] if j >= 0 else None for j in range(i - n, i))
            seen = counts[n].setdefault(context, {})
            seen[data[i]] = seen.get(data[i], 0) + 1
    total, data = 0.0, [0, *text.encode()]
    for i in range(1, len(data)):
        p = 1 / 256
        for n in range(order):
            seen = counts[n].get(tuple(data[j] if j >= 0 else None for j in range(i - n, i)))
            if seen:
                p = (seen.get(data[i], 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
        total -= math.log2(p)
    return total


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngrams_equal_a_naive_implementation(order):
    train = [words(n, 20) for n in range(6)] + ["été, naïve", "x"]
    texts = [words(9, 8), "été", "quite other: 0123", words(0, 20)]
    found = NGram(train, order).bits(texts)
    assert found == pytest.approx([naive_bits(train, text, order) for text in texts], rel=1e-9)
