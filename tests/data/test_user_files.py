"""Every kind of user corpus trains with configs/own-text.toml, or fails with one clear line."""

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

SMALL = [
    "--train.steps=2",
    "--model.dim=32",
    "--model.n-layers=2",
    "--model.hidden-dim=64",
    "--model.max-seq-len=64",
    "--model.head-dim=8",
    "--model.bigram-buckets=256",
    "--sample.max-new-tokens=8",
    "--train.precision=float32",
]


class Case(NamedTuple):
    """A corpus and the expected result."""

    make: Callable[[Path], Path]
    """Writes the corpus into a folder; returns the value of data.corpus."""
    arguments: tuple[str, ...] = ()
    expected_error: str = ""
    """Part of the error line; empty if the corpus trains."""
    expected_message: str = ""
    """Part of the messages of a successful run."""


def make_text(seed, count=9000):
    """Random words with Zipf-like frequencies."""
    draw = random.Random(seed)
    stock = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]
    words = draw.choices(stock, [1 / (rank + 1) for rank in range(400)], k=count)
    return "".join(w + ("\n" if n % 9 == 8 else " ") for n, w in enumerate(words))


def make_chinese():
    """Chinese characters without spaces or line ends."""
    draw = random.Random(0)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
    return "".join(draw.choices(characters, [1 / (rank + 1) for rank in range(800)], k=40_000))


def make_smiles():
    """Lines with few distinct characters, like SMILES strings."""
    draw = random.Random(0)
    parts = ["C", "CC", "O", "N", "C(=O)", "c1ccccc1", "Cl", "F", "C#N", "S"]
    return "".join("".join(draw.choices(parts, k=draw.randint(5, 14))) + "\n" for _ in range(4000))


def write_file(name, content, lookalike=None):
    """A corpus of one file, perhaps beside another one that its name would match as a glob pattern."""

    def make(folder):
        if lookalike:
            (folder / lookalike).write_text("the wrong file\n" * 400)
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def write_source_tree(folder):
    """A source tree: code, documents, a binary file and a hidden folder."""
    root = folder / "project"
    (root / "src").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git/HEAD").write_text("ref: refs/heads/main")
    for seed, name in enumerate(("src/main.rs", "src/lib.py", "README.md", "Makefile"), 1):
        (root / name).write_text(make_text(seed, 3000))
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return root


def write_non_utf8_name(folder):
    """A folder with a file whose name is not UTF-8."""
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "w") as out:
        out.write(make_text(1))
    return folder


def write_symlink(to):
    """A folder with a text and a symbolic link to `to`, which may not exist."""

    def make(folder):
        root = folder / "corpus"
        root.mkdir()
        (folder / "away.txt").write_text(make_text(1))
        (root / "here.txt").write_text(make_text(2))
        (root / "link.txt").symlink_to(folder / to)
        return root

    return make


def write_unreadable(folder):
    """A file that cannot be read."""
    path = folder / "secret.txt"
    if os.geteuid() == 0:  # root ignores permissions, but cannot read this file
        path.symlink_to("/proc/self/mem")
    else:
        path.write_text("secret")
        path.chmod(0)
    return path


def write_same_names(folder):
    """Two files with the same name in two folders."""
    for number in (1, 2):
        (folder / f"{number}").mkdir()
        (folder / f"{number}/notes.txt").write_text(make_text(number))
    return folder


ROWS = [{"text": make_text(n, 60), "label": n % 2} for n in range(300)]
TABLE = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXT = make_text(1)
LONG_LINE = "".join(make_text(seed, 190_000).replace("\n", " ")[:1_000_000] for seed in range(2))
CASES = {
    "notes [1].txt": Case(write_file("notes [1].txt", TEXT, "notes 1.txt")),
    "q[ab].txt beside qa.txt": Case(write_file("q[ab].txt", TEXT, "qa.txt")),
    "a name with * ? { }": Case(write_file("a*b?{c}.txt", TEXT, "aXbYc.txt")),
    "a name with a line break": Case(write_file("a\nb.txt", TEXT)),
    "a name that is not UTF-8": Case(write_non_utf8_name),
    "a link to a file": Case(write_symlink("away.txt")),
    "a link to nothing": Case(write_symlink("gone.txt"), expected_error="is a link to a file that does not"),
    "a file that cannot be read": Case(write_unreadable, expected_error="secret.txt: cannot be read"),
    "two files of one name": Case(write_same_names),
    "Markdown": Case(write_file("notes.md", TEXT)),
    "CSV": Case(write_file("reviews.csv", TABLE)),
    "TSV": Case(write_file("reviews.tsv", TABLE.replace(",", "\t"))),
    "CSV without that column": Case(
        write_file("a.csv", TABLE.replace("text,", "review,", 1)), expected_error='no column "text"'
    ),
    "JSON lines": Case(write_file("rows.jsonl", LINES)),
    "JSON lines, cut off": Case(write_file("rows.jsonl", LINES[:-9]), expected_error="not JSON"),
    "gzip": Case(write_file("a.txt.gz", gzip.compress(TEXT.encode()))),
    "gzip, truncated": Case(
        write_file("a.txt.gz", gzip.compress(TEXT.encode())[:-99]), expected_error="is damaged or truncated"
    ),
    "zstd of JSON lines": Case(write_file("a.jsonl.zst", zstandard.compress(LINES.encode()))),
    "source tree": Case(write_source_tree, expected_message="1 files are not text and are skipped: logo.png"),
    "Windows line ends": Case(write_file("a.txt", TEXT.replace("\n", "\r\n"))),
    "Chinese without spaces": Case(write_file("a.txt", make_chinese())),
    "one line of 2 MB": Case(write_file("one-line.txt", LONG_LINE)),
    "PDF named .txt": Case(write_file("paper.txt", b"%PDF-1.7\n" + TEXT.encode()), expected_error="is a PDF"),
    "UTF-16": Case(write_file("a.txt", TEXT.encode("utf-16")), expected_error="is UTF-16; convert it"),
    "empty file": Case(write_file("a.txt", ""), expected_error="empty corpus"),
    "no such file": Case(lambda folder: folder / "none.txt", expected_error="no such file or folder"),
    "lines as documents": Case(write_file("a.txt", make_text(1, 40_000)), ("--data.document", "line")),
    "files as documents": Case(write_source_tree, ("--data.document", "file"), expected_error="too small"),
    "4,096 tokens of molecules": Case(write_file("molecules.smi", make_smiles()), expected_message="is reduced to"),
    "the same, strict": Case(
        write_file("molecules.smi", make_smiles()),
        ("--tokenizer.strict", "true"),
        expected_error="more than the corpus",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_corpus_trains_or_fails_clearly(command, name, tmp_path):
    make, arguments, expected_error, expected_message = CASES[name]
    folder, run = tmp_path / "corpus", tmp_path / "run"
    folder.mkdir()
    own = ("--data.corpus", make(folder), "--data.cache-dir", tmp_path / "cache", "--run-dir", run)
    done = command("train.pretrain", "configs/own-text.toml", *SMALL, *own, *arguments)
    assert "Traceback" not in done.stderr
    if expected_error:
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert errors == done.stderr.splitlines()[-1:]
        assert expected_error in errors[0]
    else:
        assert done.returncode == 0, done.stderr
        assert expected_message in done.stderr
        assert "wrong file" not in done.stdout
        assert (run / "sample.txt").exists()
