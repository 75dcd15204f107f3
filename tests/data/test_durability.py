"""Damaged caches are rebuilt, and leftovers of a killed process do not stop the next run."""

import json
import os

import pytest

from train.metrics import read_metrics


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


@pytest.fixture(scope="module")
def first(command, recipe, tmp_path_factory):
    """A private cache, the arguments that use it, and the losses of a run."""
    cache = tmp_path_factory.mktemp("own") / "cache"
    args = ("train.pretrain", recipe, "--data.cache-dir", cache, "--train.steps", "2")
    run = cache.parent / "run"
    done = command(*args, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return cache, args, losses(run)


DAMAGE = {
    "documents/*/manifest.json": "documents: .* is damaged and is rebuilt",
    "documents/*/train.jsonl": "documents: .* is damaged and is rebuilt",
    "tokenizers/*.json": "not a tokenizer: .*; training it again",
    "tokens/*/manifest.json": "tokens: .* is damaged and is rebuilt",
    "tokens/*/train-00000.bin": "tokens: .* is damaged and is rebuilt",
}


@pytest.mark.parametrize("pattern", DAMAGE)
@pytest.mark.parametrize("fraction", [0.0, 0.7])
def test_a_truncated_cache_file_is_rebuilt(command, first, tmp_path, pattern, fraction):
    import re

    cache, args, expected = first
    (path,) = cache.glob(pattern)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    done = command(*args, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert re.search(DAMAGE[pattern], done.stderr)
    assert path.read_bytes() == whole
    assert losses(tmp_path / "run") == expected


def test_overwrite_refuses_a_folder_that_is_not_a_run(command, recipe, tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "config.toml").write_text("[data]\n")  # a name that other programs use too
    (precious / "thesis.tex").write_text("years of work")
    done = command("train.pretrain", recipe, "--run-dir", precious, "--overwrite")
    assert done.returncode == 2
    assert "has no file .homegrown" in done.stderr
    assert (precious / "thesis.tex").read_text() == "years of work"
    run = tmp_path / "run"
    for _ in range(2):
        done = command("train.pretrain", recipe, "--run-dir", run, "--overwrite", "--train.steps", "1")
        assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"thesis", "run"}


def test_a_run_removes_the_leftover_of_a_killed_one(command, recipe, tmp_path):
    run = tmp_path / "run"
    old = tmp_path / ".run.0123abcd.tmp"  # the state after a kill between two renames
    (old / "checkpoints").mkdir(parents=True)
    os.utime(old, (1, 1))
    done = command("train.pretrain", recipe, "--run-dir", run, "--train.steps", "1")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_manifest_lists_the_size_of_every_file(first):
    cache, _, _ = first
    for path in (*cache.glob("documents/*/manifest.json"), *cache.glob("tokens/*/manifest.json")):
        sizes = json.loads(path.read_text())["files"]
        others = {p.name: p.stat().st_size for p in path.parent.iterdir() if p != path}
        assert sizes == others
