"""First contact with user files: every kind of corpus either trains or fails with one clear line.

    python -m benchmarks.newcomer [--megabytes 300] [--only NAME …]

Creates corpora with many formats and file names, trains a small model on each with
`configs/own-text.toml` reduced to two steps, and prints a table: exit status, number of documents
read, last line of output. Exits with status 1 if a case prints a traceback, more than one error line
or an unexpected result. `--megabytes` is the size of the corpus that is one long line.
"""

import argparse
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.console import printable

SMALL = (
    "--train.steps",
    "2",
    "--model.dim",
    "32",
    "--model.n-layers",
    "2",
    "--model.hidden-dim",
    "64",
    "--model.max-seq-len",
    "64",
    "--model.head-dim",
    "8",
    "--model.bigram-buckets",
    "256",
    "--sample.max-new-tokens",
    "8",
    "--train.precision",
    "float32",
)


class Case(NamedTuple):
    """A corpus and the expected result."""

    make: Callable[[Path], Path]
    """Writes the corpus into a folder; returns the value of data.corpus."""
    arguments: tuple[str, ...] = ()
    expected_error: str = ""
    """Part of the error line; empty if the corpus trains."""
    expected_message: str = ""
    """Part of the messages of a successful run."""


def make_text(seed: int, count: int = 9000) -> str:
    """Random words with Zipf-like frequencies."""
    draw = random.Random(seed)
    stock = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]
    words = draw.choices(stock, [1 / (rank + 1) for rank in range(400)], k=count)
    return "".join(w + ("\n" if n % 9 == 8 else " ") for n, w in enumerate(words))


def make_chinese(count: int = 40_000) -> str:
    """Chinese characters without spaces or line ends."""
    draw = random.Random(0)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
    return "".join(draw.choices(characters, [1 / (rank + 1) for rank in range(800)], k=count))


def make_smiles(count: int = 4000) -> str:
    """Lines with few distinct characters, like SMILES strings."""
    draw = random.Random(0)
    parts = ["C", "CC", "O", "N", "C(=O)", "c1ccccc1", "Cl", "F", "C#N", "S"]
    return "".join("".join(draw.choices(parts, k=draw.randint(5, 14))) + "\n" for _ in range(count))


def write_file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """A corpus of one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def write_with_lookalike(name: str, content: str, other: str) -> Callable[[Path], Path]:
    """A file next to another one that its name would match as a glob pattern."""

    def make(folder: Path) -> Path:
        (folder / other).write_text("the wrong file\n" * 400)
        return write_file(name, content)(folder)

    return make


def write_source_tree(folder: Path) -> Path:
    """A source tree: code, documents, a binary file and a hidden folder."""
    root = folder / "project"
    for name, content in {
        "src/main.rs": make_text(1, 3000),
        "src/lib.py": make_text(2, 3000),
        "README.md": make_text(3, 3000),
        "Makefile": make_text(4, 3000),
        ".git/HEAD": "ref: refs/heads/main",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return root


def write_non_utf8_name(folder: Path) -> Path:
    """A folder with a file whose name is not UTF-8."""
    root = folder / "corpus"
    root.mkdir()
    with open(os.fsencode(root) + b"/caf\xe9.txt", "w") as out:
        out.write(make_text(1))
    return root


def write_symlink(to: str) -> Callable[[Path], Path]:
    """A folder with a text and a symbolic link to `to`, which may not exist."""

    def make(folder: Path) -> Path:
        root = folder / "corpus"
        root.mkdir()
        (folder / "away.txt").write_text(make_text(1))
        (root / "here.txt").write_text(make_text(2))
        (root / "link.txt").symlink_to(folder / to)
        return root

    return make


def write_unreadable(folder: Path) -> Path:
    """A file that cannot be read."""
    path = folder / "secret.txt"
    if os.geteuid() == 0:  # root ignores permissions, but cannot read this file
        path.symlink_to("/proc/self/mem")
    else:
        path.write_text("secret")
        path.chmod(0)
    return path


def write_same_names(folder: Path) -> Path:
    """Two files with the same name in two folders."""
    for number in (1, 2):
        (folder / f"corpus/{number}").mkdir(parents=True)
        (folder / f"corpus/{number}/notes.txt").write_text(make_text(number))
    return folder / "corpus"


def write_long_line(megabytes: int) -> Callable[[Path], Path]:
    """A file with a single line of `megabytes` MB."""

    def make(folder: Path) -> Path:
        path = folder / "one-line.txt"
        with open(path, "w", encoding="utf-8") as out:
            for seed in range(megabytes):
                out.write(make_text(seed, 190_000).replace("\n", " ")[:1_000_000])
        return path

    return make


def cases(megabytes: int) -> dict[str, Case]:
    """All cases by name."""
    import zstandard

    rows = [{"text": make_text(n, 60), "label": n % 2} for n in range(300)]
    table = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    fits = "is reduced to"
    return {
        "notes [1].txt": Case(write_with_lookalike("notes [1].txt", make_text(1), "notes 1.txt")),
        "q[ab].txt beside qa.txt": Case(write_with_lookalike("q[ab].txt", make_text(1), "qa.txt")),
        "a name with * ? { }": Case(write_with_lookalike("a*b?{c}.txt", make_text(1), "aXbYc.txt")),
        "a name with a line break": Case(write_file("a\nb.txt", make_text(1))),
        "a name that is not UTF-8": Case(write_non_utf8_name),
        "a link to a file": Case(write_symlink("away.txt")),
        "a link to nothing": Case(write_symlink("gone.txt"), expected_error="is a link to a file that does not"),
        "a file that cannot be read": Case(write_unreadable, expected_error="secret.txt: cannot be read"),
        "two files of one name": Case(write_same_names),
        "Markdown": Case(write_file("notes.md", make_text(1))),
        "CSV": Case(write_file("reviews.csv", table)),
        "TSV": Case(write_file("reviews.tsv", table.replace(",", "\t"))),
        "CSV without that column": Case(
            write_file("a.csv", table.replace("text,", "review,", 1)), expected_error='no column "text"'
        ),
        "JSON lines": Case(write_file("rows.jsonl", lines)),
        "JSON lines, cut off": Case(write_file("rows.jsonl", lines[:-9]), expected_error="malformed JSON"),
        "gzip": Case(write_file("a.txt.gz", gzip.compress(make_text(1).encode()))),
        "gzip, truncated": Case(
            write_file("a.txt.gz", gzip.compress(make_text(1).encode())[:-99]), expected_error="is damaged or truncated"
        ),
        "zstd of JSON lines": Case(write_file("a.jsonl.zst", zstandard.compress(lines.encode()))),
        "source tree": Case(write_source_tree, expected_message="1 files are not text and are skipped: logo.png"),
        "Windows line ends": Case(write_file("a.txt", make_text(1).replace("\n", "\r\n"))),
        "Chinese without spaces": Case(write_file("a.txt", make_chinese())),
        f"one line of {megabytes} MB": Case(write_long_line(megabytes)),
        "PDF named .txt": Case(
            write_file("paper.txt", b"%PDF-1.7\n" + make_text(1).encode()), expected_error="is a PDF"
        ),
        "UTF-16": Case(write_file("a.txt", make_text(1).encode("utf-16")), expected_error="is UTF-16; convert it"),
        "empty file": Case(write_file("a.txt", ""), expected_error="empty corpus"),
        "no such file": Case(lambda folder: folder / "none.txt", expected_error="no such file or folder"),
        "lines as documents": Case(write_file("a.txt", make_text(1, 40_000)), ("--data.document", "line")),
        "files as documents": Case(write_source_tree, ("--data.document", "file"), expected_error="too small"),
        "4,096 tokens of molecules": Case(write_file("molecules.smi", make_smiles()), expected_message=fits),
        "the same, strict": Case(
            write_file("molecules.smi", make_smiles()),
            ("--tokenizer.strict", "true"),
            expected_error="more than the corpus",
        ),
    }


def run_case(name: str, case: Case, folder: Path) -> tuple[bool, list[str]]:
    """Train on a corpus in a separate process; whether the result is as expected, and a table row."""
    folder.mkdir()
    corpus, started = case.make(folder), time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "train.pretrain",
        "configs/own-text.toml",
        *SMALL,
        "--data.corpus",
        str(corpus),
        "--data.cache-dir",
        str(folder / "cache"),
        "--run-dir",
        str(folder / "run"),
        *case.arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if case.expected_error:
        good = done.returncode == 2 and len(errors) == 1 and lines[-1] == errors[0]
        good = good and case.expected_error in errors[0]
    else:
        good = done.returncode == 0 and case.expected_message in done.stderr
        good = good and "wrong file" not in done.stdout and (folder / "run/sample.txt").exists()
    good = good and "Traceback" not in done.stderr
    read = re.search(r"reading .*?: ([\d,]+) in", done.stderr)
    shown = (errors[-1] if errors else lines[-1]).replace(str(folder), "…")
    seconds = f"{time.perf_counter() - started:.1f}"
    return good, [name, str(done.returncode), read[1] if read else "–", seconds, shown[:110]]


def main() -> None:
    """Entry point of `python -m benchmarks.newcomer`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300, help="size of the one-line corpus")
    parser.add_argument("--only", nargs="+", help="names of the cases to run")
    args = parser.parse_args()
    table = Table("corpus", "exit", "documents", "s", "last line", "as expected")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases(args.megabytes).items()):
            if args.only and name not in args.only:
                continue
            good, row = run_case(name, case, Path(folder) / str(number))
            table.add_row(*(escape(printable(cell)) for cell in row), "yes" if good else "NO")
            failed += [] if good else [name]
    screen = Console()
    if not screen.is_terminal:
        screen = Console(width=200)
    screen.print(table)
    if failed:
        sys.exit(f"not as expected: {', '.join(failed)}")


if __name__ == "__main__":
    main()
