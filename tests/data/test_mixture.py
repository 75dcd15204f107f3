"""Several corpora: prepared together, tokenised in parts, drawn by weight."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import words

import data.prepare as stages
from cli.errors import UserError
from configs.schema import CorpusShare, DataConfig, TokenizerConfig
from data import tokenise
from data.loader import Loader, Mixture
from data.prepare import prepare
from data.shards import Windows, cached_tokenizer, write_shards
from data.splits import SPLITS, load_manifest, read_documents
from model.formats.native import latest_checkpoint
from tokenizer.bpe import Tokenizer
from train.metrics import read_metrics


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two corpora, of which the second repeats documents of the first, prepared together."""
    folder = tmp_path_factory.mktemp("mixture")
    texts = [words(seed, 60) for seed in range(300)]
    (folder / "one.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:100]))
    (folder / "two.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[50:]))
    corpora = [CorpusShare(path=str(folder / name), weight=w) for name, w in (("one.jsonl", 3), ("two.jsonl", 1))]
    return DataConfig(corpora=corpora, cache_dir=str(folder))


def test_a_document_of_two_corpora_is_kept_once(mixture):
    folder = prepare(mixture)
    texts = [row["text"] for split in SPLITS for row in read_documents(folder, split)]
    assert len(set(texts)) == len(texts) >= 290
    assert load_manifest(folder)["counts"]["dropped_exact_duplicate"] == 50
    heavier = [each.model_copy(update={"weight": 9.0}) for each in mixture.corpora]
    assert prepare(mixture.model_copy(update={"corpora": heavier})) == folder  # weights change nothing here


@pytest.mark.parametrize("size", [1500, 1 << 27])
def test_the_corpora_follow_each_other_also_if_one_is_all_copies(tmp_path, monkeypatch, size):
    monkeypatch.setattr(stages, "PART_BYTES", size)
    texts = [words(seed, 60) for seed in range(100)]
    for name, chosen in (("first", texts[:60]), ("copies", texts[:60]), ("third", texts[60:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    corpora = [CorpusShare(path=str(tmp_path / f"{name}.jsonl"), weight=1) for name in ("first", "copies", "third")]
    folder = prepare(DataConfig(corpora=corpora, cache_dir=str(tmp_path)))
    starts = [source["start"] for source in load_manifest(folder)["sources"]]
    lines = (folder / "train.jsonl").read_bytes().splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    sources = [(json.loads(line)["id"][0], end - len(line)) for line, end in zip(lines, ends, strict=True)]
    first_of_third = next(start for source, start in sources if source == "2")
    assert [source for source, _ in sources] == sorted(source for source, _ in sources)
    assert starts == [0, first_of_third, first_of_third]


@pytest.mark.parametrize("size", [2000, 1 << 27])
def test_a_window_of_a_part_holds_one_corpus(mixture, monkeypatch, size):
    monkeypatch.setattr(tokenise, "RANGE_BYTES", size)
    folder = prepare(mixture)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, TokenizerConfig(vocab_size=400 + size % 7)))
    windows = Windows(write_shards(folder, tokenizer), "train", 16, tokenizer)
    joined = {0: "", 1: ""}
    for row in read_documents(folder, "train"):
        joined[int(row["id"][0])] += row["text"]
    assert [name for name, _, _ in windows.parts] == ["one.jsonl", "two.jsonl"]
    for number, (_, first, count) in enumerate(windows.parts):
        assert count > 20
        for index in range(first, first + count):
            ids = windows.ids[index * 16 : index * 16 + 16]
            assert tokenizer.decode(ids) in joined[number]
    assert not Windows(write_shards(folder, tokenizer), "validation", 16, tokenizer).parts


def test_many_files_are_read_as_one(mixture, monkeypatch):
    folder = prepare(mixture)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, TokenizerConfig(vocab_size=300)))
    whole = Windows(write_shards(folder, tokenizer), "train", 50, tokenizer)
    expected = whole.ids[:].copy()
    monkeypatch.setattr(tokenise, "RANGE_BYTES", 3000)
    other = mixture.model_copy(update={"cache_dir": mixture.cache_dir + "/other"})
    shards = write_shards(prepare(other), tokenizer, workers=2)
    parts = Windows(shards, "train", 50, tokenizer)
    assert len(list(shards.glob("train-*.bin"))) > 10
    assert (parts.ids[:] == expected).all()
    assert len(parts) == len(whole)
    for index in range(len(whole)):
        for a, b in zip(whole.batch([index]), parts.batch([index]), strict=True):
            assert (a == b).all()
    path = shards / "train-00003.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert write_shards(prepare(other), tokenizer) == shards
    assert (Windows(shards, "train", 50, tokenizer).ids[:] == expected).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_parts_are_drawn_by_weight_and_each_evenly(parts, batch, ranks, stop):
    counts, weights = [count for count, _ in parts], [weight for _, weight in parts]
    first = np.cumsum([0, *counts])[:-1]
    loaders = [Mixture(list(zip(first, counts, strict=True)), weights, batch * ranks, 7) for _ in range(ranks)]
    drawn = []
    for step in range(30):
        drawn += np.concatenate([loader.next(rank, ranks) for rank, loader in enumerate(loaders)]).tolist()
        if step == stop:  # resume on one rank
            state = json.loads(json.dumps(loaders[0].state()))
            loaders, ranks = [Mixture(list(zip(first, counts, strict=True)), weights, batch * ranks, 7)], 1
            loaders[0].restore(state)
    for start, count, weight in zip(first, counts, weights, strict=True):
        own = [index for index in drawn if start <= index < start + count]
        assert abs(len(own) - weight / sum(weights) * len(drawn)) <= 1 + 1e-9 * len(drawn)
        seen = [own.count(index) for index in range(start, start + count)]
        assert max(seen) - min(seen) <= 1


def test_ranks_divide_the_batches_of_one(mixture):
    whole = Mixture([(0, 10), (10, 5)], [1, 2], 6, 0)
    ranks = [Mixture([(0, 10), (10, 5)], [1, 2], 6, 0) for _ in range(2)]
    for _ in range(20):
        expected = whole.next()
        for rank, loader in enumerate(ranks):
            assert (loader.next(rank, 2) == expected[rank::2]).all()


def test_one_part_is_drawn_like_a_whole_dataset():
    mixture, loader = Mixture([(0, 12)], [1.0], 4, 3), Loader(12, 4, 3)
    for _ in range(9):
        assert sorted(mixture.next()) == sorted(loader.next())


def test_a_part_without_a_window_is_refused(mixture):
    folder = prepare(mixture)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, TokenizerConfig(vocab_size=300)))
    shards = write_shards(folder, tokenizer)
    start = load_manifest(shards)["sources"][1]["token"]
    windows = Windows(shards, "train", start + 1, tokenizer)
    with pytest.raises(UserError, match=rf"data\.corpora: one\.jsonl has less than one window of {start + 1} tokens"):
        windows.mix([1, 1])


def test_a_run_trains_on_a_mixture_and_resumes(command, mixture, recipe, tmp_path):
    tables = "".join(f'[[data.corpora]]\npath = "{c.path}"\nweight = {c.weight}\n' for c in mixture.corpora)
    text = recipe.read_text().replace("[tokenizer]", f"{tables}\n[tokenizer]")
    (tmp_path / "mixed.toml").write_text(text)
    run = ("train.pretrain", tmp_path / "mixed.toml", "--run-dir", tmp_path / "run")
    done = command(*run)
    assert done.returncode == 0, done.stderr
    assert "data: 75% from one.jsonl" in done.stderr
    assert "data: 25% from two.jsonl" in done.stderr
    before = losses(tmp_path / "run")
    shutil.rmtree(latest_checkpoint(tmp_path / "run"))
    again = command(*run, "--resume")
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "run") == before
    assert len(before) == 10


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]
