import lzma
import math
import random

import numpy as np
import pytest
import torch
from texts import words

from compare.floors import compressor_bits, majority, tfidf_logistic, xz, zstd
from compare.score import document_bits
from compare.stats import Estimate, accuracy, bits_per_byte, difference
from configs.cli import UserError
from configs.schema import ModelConfig, TokenizerConfig
from data.tasks import Item, Task
from model.transformer import Transformer
from tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def small():
    tokenizer = train_tokenizer(words(0, 3000).splitlines(), TokenizerConfig(vocab_size=300))
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=64, max_seq_len=48
    )
    return Transformer(config, 300).init_weights(0).eval(), tokenizer


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


def test_a_long_document_is_scored_once_in_overlapping_windows(small):
    model, tokenizer = small
    text = words(3, 60)
    ids = [tokenizer.separator_id, *tokenizer.encode(text)]
    assert len(ids) > 3 * 48
    total, scored = 0.0, 1
    while scored < len(ids):
        start = 0 if scored == 1 else scored - 24
        piece = ids[start : start + 49]
        new = start + len(piece) - scored
        total += nats(model, piece, new)
        scored += new
    assert document_bits(model, tokenizer, [text]) == pytest.approx([total / math.log(2)], rel=1e-4)


def test_text_that_the_tokenizer_loses_is_not_scored(foundation):
    model, tokenizer = foundation
    with pytest.raises(UserError, match="loses characters"):
        document_bits(model, tokenizer, ["a control character \x04 that the vocabulary lacks"])


def test_a_compressor_is_charged_for_the_held_out_text_only():
    train, test = [words(0, 2000)], [words(0, 2000)[:5000], words(9, 200)]
    for tool in (xz, zstd):
        bits = compressor_bits(tool, train, test)
        alone = 8 * len(tool("\n\n".join(test).encode()))
        assert 0 < bits < alone
    assert lzma.decompress(xz(b"abc" * 100)) == b"abc" * 100


def labelled(count, seed):
    draw = random.Random(seed)
    kinds = {"vowel": "aeiou", "late": "tuvwxyz"}
    made = []
    for n in range(count):
        label = draw.choice(list(kinds))
        made.append(Item(str(n), "".join(draw.choices(kinds[label] + "lmn", k=30)), label))
    return made


def test_the_task_floors_learn_what_can_be_learned():
    task = Task(
        "Text", "Kind", ["late", "vowel"], labelled(200, 0), labelled(40, 1), labelled(60, 2)
    )
    learned = tfidf_logistic(task)
    assert np.mean(learned["correct"]) > 0.95
    assert learned["trained_parameters"] > 100
    common = max(task.labels, key=[i.label for i in task.train].count)
    expected = np.mean([i.label == common for i in task.test])
    assert np.mean(majority(task)["correct"]) == pytest.approx(expected)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    draw = np.random.default_rng(0)
    hits = {"accuracy": 0, "bits": 0, "difference": 0}
    for _ in range(200):
        item_skill = draw.uniform(0.5, 0.9, 100)
        correct = (draw.random(100) < item_skill).astype(int).tolist()
        score = accuracy([{"correct": correct}])
        hits["accuracy"] += score.low <= 0.7 <= score.high
        sizes = draw.integers(50, 150, 80)
        bits = sizes * draw.normal(2.0, 0.5, 80)
        found = bits_per_byte([{"document_bits": bits.tolist(), "document_bytes": sizes.tolist()}])
        hits["bits"] += found.low <= 2.0 <= found.high
        other = bits + sizes * draw.normal(0.1, 0.2, 80)
        row = {"document_bits": other.tolist(), "document_bytes": sizes.tolist()}
        base = {"document_bits": bits.tolist(), "document_bytes": sizes.tolist()}
        gap = difference([row], [base], "document_bits")
        hits["difference"] += gap.low <= 0.1 <= gap.high
    for name, count in hits.items():
        assert 0.88 <= count / 200 <= 0.995, name


def test_seeds_widen_an_interval():
    same = [{"correct": [1] * 70 + [0] * 30}] * 3
    apart = [{"correct": [1] * n + [0] * (100 - n)} for n in (50, 70, 90)]
    wide, narrow = accuracy(apart), accuracy(same)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > narrow.high - narrow.low
    assert str(Estimate(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
