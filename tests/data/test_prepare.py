import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import words

from cli.errors import UserError
from configs.schema import DataConfig
from data.builtin import abc_body, melody
from data.cleaning import clean
from data.prepare import prepare
from data.splits import SPLITS, read_documents, subsample


@given(st.text())
def test_clean_gives_nfc_without_control_characters_and_is_idempotent(text):
    cleaned = clean(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert clean(cleaned) == cleaned
    cleaned.encode("utf-8")


def test_clean_counts_changed_documents():
    changed = Counter()
    assert clean("a\r\nb\x07\ufffdc e\u0301", changed) == "a\nbc é"
    assert changed == {"invalid_utf8": 1, "control_characters": 1, "not_nfc": 1}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_manifest_counts_every_document(tmp_path):
    texts = [words(seed, 80) for seed in range(60)]
    near = texts[0].replace(texts[0].split()[40], "changed", 1)
    rows = [{"text": t} for t in [*texts, "short", texts[3], near, None]]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    folder = prepare(DataConfig(corpus=str(path), cache_dir=str(tmp_path / "cache")))
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["documents_read"] == len(rows)
    assert counts["dropped_too_short"] == 2
    assert counts["dropped_exact_duplicate"] == 1
    assert counts["dropped_near_duplicate"] == 1
    dropped = sum(v for k, v in counts.items() if k.startswith("dropped_"))
    assert counts["documents_kept"] == len(rows) - dropped
    written = {split: [d["text"] for d in read_documents(folder, split)] for split in SPLITS}
    for split, numbers in manifest["splits"].items():
        assert numbers["documents"] == len(written[split]) > 0
        assert numbers["bytes"] == sum(len(text.encode()) for text in written[split])
    kept = [text for split in SPLITS for text in written[split]]
    assert len(set(kept)) == len(kept) == counts["documents_kept"]


def shingles(text):
    parts = text.split()
    return {tuple(parts[i : i + 5]) for i in range(max(1, len(parts) - 4))}


def test_no_near_duplicate_straddles_a_split(tmp_path):
    # Variants share about two thirds of their shingles: too few for near-duplicate removal, too
    # many for different splits.
    draw = random.Random(0)
    rows = []
    for seed in range(150):
        parts = words(seed, 120).split()
        rows.append({"text": " ".join(parts)})
        parts[draw.randrange(20, 40)] = parts[draw.randrange(60, 80)] = "other"
        rows.append({"text": " ".join([*parts[:-10], *words(seed + 1000, 10).split()])})
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path), validation_fraction=0.2, test_fraction=0.2)
    folder = prepare(config)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["dropped_straddles_split"] > 20
    found = [(split, shingles(d["text"])) for split in SPLITS for d in read_documents(folder, split)]
    for i, (split, a) in enumerate(found):
        for other, b in found[:i]:
            if split != other:
                assert len(a & b) / len(a | b) < config.straddle_similarity


def test_groups_never_straddle_a_split(tmp_path):
    rows = [{"text": words(n, 60), "author": f"author {n % 23}"} for n in range(230)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path), group_field="author")
    folder = prepare(config)
    groups = {split: {d["group"] for d in read_documents(folder, split)} for split in SPLITS}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["test"] & groups["validation"]


def test_prepare_uses_the_cache_until_a_byte_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 3000))
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path / "cache"))
    first = prepare(config)
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert prepare(config) == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    path.write_text(words(0, 3000) + "more")
    assert prepare(config) != first


def test_subsamples_have_the_requested_size_and_are_nested(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 20_000))
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path / "cache"), section_chars=400)
    folder, before = prepare(config), set()
    whole = json.loads((folder / "manifest.json").read_text())["splits"]
    for share in (0.001, 0.1, 0.5, 0.9):
        part = subsample(folder, share, seed=1)
        rows = {d["id"]: d["text"] for d in read_documents(part, "train")}
        size = sum(len(text.encode()) for text in rows.values())
        if share > 0.001:  # the smallest share has one document, which may be larger
            assert share * whole["train"]["bytes"] - 600 < size <= share * whole["train"]["bytes"]
        assert len(rows) >= 1
        assert before < rows.keys()
        before = set(rows)
        assert json.loads((part / "manifest.json").read_text())["splits"] == whole | {
            "train": {"documents": len(rows), "characters": size, "bytes": size}
        }
    assert subsample(folder, 1.0, seed=1) == folder
    assert subsample(folder, 0.5, seed=2) != subsample(folder, 0.5, seed=1)


def test_folk_tunes_have_no_melody_in_two_splits(cache):
    folder = prepare(DataConfig(cache_dir=str(cache)))
    incipits = {split: {tuple(melody(d["text"])[:24]) for d in read_documents(folder, split)} for split in SPLITS}
    assert len(incipits["train"]) > 3000
    assert not incipits["train"] & (incipits["test"] | incipits["validation"])
    assert not incipits["test"] & incipits["validation"]
    for document in read_documents(folder, "train"):
        letters = re.findall(r"(?m)^([A-Zw]):(?!\|)", document["text"])
        assert set(letters) <= set("MLRK"), document["text"]


def test_abc_body_drops_titles_comments_and_fingerings():
    tune = 'X:1\nT:A Title\nM: 2/4\nK:G\n%note\nu"4"A2 B2|{c}d4| % end\nw:la la\n'
    assert abc_body(tune) == "M:2/4\nK:G\nuA2 B2|{c}d4|"
    assert list(melody(abc_body(tune))) == [0, 1, 3]
    assert abc_body('X:2\nK:G\n|:"3"ab|\nA:|\n') == "K:G\n|:ab|\nA:|"
    assert list(melody("K:G\n|:ab|\nA:|")) == [0, 1, 0]


def test_python_stdlib_groups_never_straddle_a_split(cache):
    for name, minimum in (("python-stdlib", 300),):
        folder = prepare(DataConfig(corpus=name, cache_dir=str(cache)))
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["counts"]["documents_kept"] > minimum
        groups = {split: {d["group"] for d in read_documents(folder, split)} for split in SPLITS}
        assert not groups["train"] & groups["test"]


def test_a_corpus_that_is_too_small_to_split_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": words(n, 50)} for n in range(2)])
    with pytest.raises(UserError, match="too small to hold out"):
        prepare(DataConfig(corpus=str(path), cache_dir=str(tmp_path)))


def test_a_corpus_of_one_template_is_refused_with_the_reason(tmp_path):
    # Half of every document is the template: all are similar, but none is a near-duplicate.
    template = words(0, 60)
    rows = [{"text": f"{template} {words(n + 1, 40)}"} for n in range(1500)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"every .* document is similar to one of another split"):
        prepare(DataConfig(corpus=str(path), cache_dir=str(tmp_path), straddle_similarity=0.2))
    assert not list((tmp_path / "documents").iterdir())


# ru_maxrss of a child process starts at its parent's peak; VmHWM does not.
PREPARE = """
from data.prepare import main
main()
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(line)
"""


@pytest.mark.slow
def test_preparing_two_hundred_megabytes_takes_limited_memory(tmp_path):
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    stock = ["".join(draw.choice(letters, size)) for size in draw.integers(2, 10, 20_000)]
    weights = 1 / np.arange(1, len(stock) + 1)
    weights /= weights.sum()
    path, written = tmp_path / "large.txt", 0
    with path.open("w") as file:
        while written < 200e6:  # without long repeats
            drawn = [stock[i] for i in draw.choice(len(stock), 100_000, p=weights)]
            lines = (" ".join(drawn[i : i + 12]) for i in range(0, len(drawn), 12))
            written += file.write("\n".join(lines) + "\n")
    recipe = tmp_path / "large.toml"
    recipe.write_text(f'[data]\ncorpus = "{path}"\ncache_dir = "{tmp_path}/cache"\n')
    done = subprocess.run([sys.executable, "-c", PREPARE, recipe], check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024 < 1.5 * 2**30
