"""The stages of data/prepare.py: the answer of one pass in memory, for any workers, kills and damage."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filesystems import in_small_filesystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare_oracle import fingerprint, prepare_in_memory
from texts import words

import data.prepare as stages
from cli.errors import UserError
from configs.schema import DataConfig
from data import cleaning, dedup, external_sort
from data.external_sort import ExternalSort
from data.prepare import prepare
from data.splits import load_manifest


@pytest.fixture
def small(monkeypatch):
    """Many pieces and parts from a small corpus, and no work in the main process."""
    monkeypatch.setattr(cleaning, "PIECE_CHARS", 3000)
    monkeypatch.setattr(external_sort, "PART_BYTES", 600)
    monkeypatch.setattr(dedup, "FEW", 0)
    monkeypatch.setattr(stages, "FEW_PIECES", 0)
    monkeypatch.setattr(stages, "PART_BYTES", 900)


def write_corpus(path, draw, count):
    """Texts, a third of them copies or near copies of earlier ones, some in groups."""
    texts = []
    for _ in range(count):
        kind = draw.random()
        text = words(draw.randrange(10**6), draw.randrange(1, 120))
        if texts and kind < 0.1:
            text = draw.choice(texts)
        elif texts and kind < 0.35:
            parts = draw.choice(texts).split()
            for _ in range(draw.randrange(1, 8)):
                parts[draw.randrange(len(parts))] = "changed"
            text = " ".join(parts)
        texts.append(text)
    rows = [{"text": text, "author": f"a{draw.randrange(count // 3)}"} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def outcome(folder):
    manifest = load_manifest(folder)
    counts = {name: count for name, count in manifest["counts"].items() if name.startswith("dropped_") and count}
    return manifest["fingerprint"], counts


def expected(config):
    splits, counts = prepare_in_memory(config)
    return fingerprint(splits), {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("name", ["folk-tunes", "python-stdlib", pytest.param("aws-api", marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", [{}, {"drop_similarity": 0.5}, {"group_field": "document"}])
def test_shipped_corpora_are_prepared_as_in_one_pass(tmp_path, name, change):
    config = DataConfig(corpus=name, cache_dir=str(tmp_path), **change)
    assert outcome(prepare(config)) == expected(config)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from(["", "author", "document"]))
def test_random_corpora_are_prepared_as_in_one_pass(small, tmp_path_factory, seed, threshold, group):
    folder = tmp_path_factory.mktemp("corpus")
    path = folder / "a.jsonl"
    write_corpus(path, random.Random(seed), 120)
    settings = {"drop_similarity": threshold, "group_field": group, "test_fraction": 0.2, "validation_fraction": 0.2}
    config = DataConfig(corpus=str(path), cache_dir=str(folder), **settings)
    if all(prepare_in_memory(config)[0].values()):
        assert outcome(prepare(config, workers=1)) == expected(config)
    else:
        with pytest.raises(UserError, match="document is similar to one of another split"):
            prepare(config, workers=1)
    assert not list((folder / "documents").glob(".*"))


@pytest.mark.parametrize("engine", [{"workers": 2}, pytest.param({"ray": True}, marks=pytest.mark.slow)])
def test_the_result_does_not_depend_on_the_workers(small, tmp_path, engine):
    if "ray" in engine:
        pytest.importorskip("ray")
    write_corpus(tmp_path / "a.jsonl", random.Random(0), 300)
    config = DataConfig(corpus=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path))
    assert outcome(prepare(config, **engine)) == expected(config)


def test_an_external_sort_is_stable_and_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(external_sort, "PART_BYTES", 1000)
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 1 << 63, 5000).astype(np.uint64) * np.uint64(2)
    keys[::7] = keys[3]
    with ExternalSort(tmp_path / "sort", [("key", "u8"), ("row", "i8")], 5000, 1 << 64) as records:
        for rows in np.array_split(np.arange(5000), 9):
            records.add(keys[rows], rows)
        found = np.concatenate(list(records.sorted_parts()))
    assert (found["row"] == np.argsort(keys, kind="stable")).all()
    assert not (tmp_path / "sort").exists()


# Small pieces, real worker processes, and pauses, so that a kill comes in the middle of any stage.
SCRIPT = """
import sys, time
from cli.errors import run_command
from data import cleaning, dedup, external_sort, prepare
if __name__ == "__main__":
    cleaning.PIECE_CHARS, external_sort.PART_BYTES, dedup.FEW, prepare.FEW_PIECES = 3000, 600, 0, 0
    prepare.PART_BYTES = 900
    pause, track = float(sys.argv.pop()), prepare.track
    slow = lambda *a: (time.sleep(pause / (1 + 9 * (len(a) > 3))) or item for item in track(*a))
    prepare.track = dedup.track = slow
    run_command(prepare.main)
"""


@pytest.fixture
def slow_corpus(tmp_path):
    write_corpus(tmp_path / "a.jsonl", random.Random(1), 400)
    script = tmp_path / "slow.py"
    script.write_text(SCRIPT)
    (tmp_path / "small.toml").write_text(f'[data]\ncorpus = "{tmp_path}/a.jsonl"\ncache_dir = "{tmp_path}/cache"\n')
    config = DataConfig(corpus=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    return config, [sys.executable, script, tmp_path / "small.toml", "--workers", "2"]


def start(command, pause):
    environment = {"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    return subprocess.Popen([*command, str(pause)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(slow_corpus, tmp_path):
    config, command = slow_corpus
    draw, documents = random.Random(0), tmp_path / "cache" / "documents"
    stopped_in = set()
    for _ in range(20):
        process = start(command, draw.choice([0.01, 0.05]))
        time.sleep(draw.uniform(0.7, 3))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:  # it had ended
            shutil.rmtree(documents)
        for work in documents.glob(".*.work"):
            stopped_in.add(tuple(sorted(path.name for path in work.glob("*.npy"))))
    done = start(command, 0)
    _, said = done.communicate()
    assert done.returncode == 0, said
    assert len(stopped_in) > 1  # in several stages
    assert outcome(prepare(config)) == expected(config)
    assert [path for path in documents.iterdir() if not path.name.endswith(".tmp")] == [prepare(config)]


def test_a_killed_preparation_continues_where_it_stopped(slow_corpus, tmp_path):
    config, command = slow_corpus
    process = start(command, 0.02)
    documents = tmp_path / "cache" / "documents"
    while len(list(documents.glob(".*.work/pieces/*.npz"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (work,) = documents.glob(".*.work")
    kept = sorted(work.glob("pieces/*.npz"))[:2]
    times = [path.stat().st_mtime_ns for path in kept]
    damaged = work / "pieces" / "00002.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    (work / "pieces" / "00003.npz").write_bytes(b"PK damaged")
    process = start(command, 0.02)
    while not (work / "near.npy").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert [path.stat().st_mtime_ns for path in kept] == times  # not cleaned again
    (work / "near.npy").write_bytes(b"damaged")
    assert outcome(prepare(config)) == expected(config)


def test_two_processes_prepare_the_same_corpus_at_once(slow_corpus):
    config, command = slow_corpus
    both = [start(command, 0.01) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("another process prepares" in text for text in said) == 1
    assert outcome(prepare(config)) == expected(config)


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_a_changed_byte_in_the_cache_is_found(slow_corpus, name, capsys):
    config, _ = slow_corpus
    folder = prepare(config)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:40] + b"X" + whole[41:])
    assert prepare(config) == folder
    assert (folder / name).read_bytes() == whole


def test_the_manifest_shows_near_duplicates(tmp_path):
    texts = [words(seed, 80) for seed in range(80)]
    near = [text.replace(text.split()[40], "changed", 1) for text in texts[:15]]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *near]))
    shown = load_manifest(prepare(DataConfig(corpus=str(path), cache_dir=str(tmp_path))))["near_duplicates"]
    assert len(shown) == 10
    for pair in shown:
        number = int(pair["dropped"]["id"].split(":")[1])
        assert pair["kept"]["id"] == f"a.jsonl:{number - 80}"
        assert pair["dropped"]["text"] == near[number - 80].strip()[:300]
        assert 0.8 <= pair["similarity"] < 1


def test_one_line_is_said_of_a_corrupt_file_and_nothing_is_left(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(30):
        rows = [json.dumps({"text": words(number * 100 + i, 50)}) for i in range(5)]
        (tmp_path / "in" / f"{number:02}.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "in" / "17.jsonl").write_text('{"text": "this one is whole enough"}\n{"text": "cut o')
    config = DataConfig(corpus=str(tmp_path / "in"), cache_dir=str(tmp_path))
    with pytest.raises(UserError, match=r'17\.jsonl: line 2: not JSON: .*data\.on_error = "skip"'):
        prepare(config)
    assert not list((tmp_path / "documents").iterdir())
    manifest = load_manifest(prepare(config.model_copy(update={"on_error": "skip"})))
    assert manifest["counts"]["documents_kept"] == 29 * 5 + 1
    assert len(manifest["skipped_files"]) == 1
    assert "17.jsonl: line 2" in manifest["skipped_files"][0]


def test_a_full_disk_stops_with_one_line_and_the_next_run_continues(slow_corpus, tmp_path):
    config, command = slow_corpus
    command = " ".join(map(str, (*command, "--data.cache-dir", "/mnt/cache", "0")))
    done = in_small_filesystem(
        f"PYTHONPATH=. {command} || echo status $?\nls -A /mnt/cache/documents\n"
        f"mount -o remount,size=60m /mnt\nPYTHONPATH=. {command}\ncp -r /mnt/cache {tmp_path}/out\n",
        "300k",
    )
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "status 2" in done.stdout
    (folder,) = (tmp_path / "out" / "documents").iterdir()
    assert outcome(folder) == expected(config)


def test_a_read_only_cache_is_used_or_refused(slow_corpus):
    config, command = slow_corpus
    command = " ".join(map(str, (*command, "--data.cache-dir", "/mnt/cache", "0")))
    read_only = f"mount -o remount,ro /mnt\nPYTHONPATH=. {command}"
    refused = in_small_filesystem(read_only, "10m")
    assert refused.returncode == 2
    assert "Read-only file system" in refused.stderr
    assert "Traceback" not in refused.stderr
    prepare(config)
    used = in_small_filesystem(f"cp -r {config.cache_dir} /mnt/cache\n{read_only}", "10m")
    assert used.returncode == 0, used.stderr
    assert "cached in" in used.stderr
