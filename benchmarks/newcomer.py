"""What a newcomer's files do: each trains, or ends in one clear line.

    python -m benchmarks.newcomer [--megabytes 300] [--only NAME …]

Makes a folder of corpora of every kind and name, trains a small model on each with
`configs/own-text.toml` cut down to two steps, and prints a table: the exit status, what was read,
and the last line that was said. Exits with status 1 if one ends in a traceback, in more than one
line, or otherwise than is expected of it. `--megabytes` is the size of the one long line.
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
    """A corpus, and what is expected of it."""

    make: Callable[[Path], Path]
    """Writes it into a folder; returns what data.corpus is to be."""
    more: tuple[str, ...] = ()
    refused: str = ""
    """What the one line says; empty: it trains."""
    said: str = ""
    """What is said on the way."""


def text(seed: int, count: int = 9000) -> str:
    """Words of a made-up language."""
    draw = random.Random(seed)
    stock = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]
    words = draw.choices(stock, [1 / (rank + 1) for rank in range(400)], k=count)
    return "".join(w + ("\n" if n % 9 == 8 else " ") for n, w in enumerate(words))


def chinese(count: int = 40_000) -> str:
    """Signs without spaces or line ends."""
    draw = random.Random(0)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
    return "".join(draw.choices(signs, [1 / (rank + 1) for rank in range(800)], k=count))


def molecules(count: int = 4000) -> str:
    """Lines of few different signs, as SMILES strings are."""
    draw = random.Random(0)
    parts = ["C", "CC", "O", "N", "C(=O)", "c1ccccc1", "Cl", "F", "C#N", "S"]
    return "".join("".join(draw.choices(parts, k=draw.randint(5, 14))) + "\n" for _ in range(count))


def file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """A case's corpus: one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def beside(name: str, content: str, other: str) -> Callable[[Path], Path]:
    """A file beside another one that a pattern of its name would match."""

    def make(folder: Path) -> Path:
        (folder / other).write_text("the wrong file\n" * 400)
        return file(name, content)(folder)

    return make


def tree(folder: Path) -> Path:
    """A source tree: code, documents, what is not text, and what is hidden."""
    root = folder / "project"
    for name, content in {
        "src/main.rs": text(1, 3000),
        "src/lib.py": text(2, 3000),
        "README.md": text(3, 3000),
        "Makefile": text(4, 3000),
        ".git/HEAD": "ref: refs/heads/main",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return root


def foreign_name(folder: Path) -> Path:
    """A folder with a file whose name is not UTF-8."""
    root = folder / "corpus"
    root.mkdir()
    with open(os.fsencode(root) + b"/caf\xe9.txt", "w") as out:
        out.write(text(1))
    return root


def link(to: str) -> Callable[[Path], Path]:
    """A folder with a text, and a link to a file beside the folder or to none."""

    def make(folder: Path) -> Path:
        root = folder / "corpus"
        root.mkdir()
        (folder / "away.txt").write_text(text(1))
        (root / "here.txt").write_text(text(2))
        (root / "link.txt").symlink_to(folder / to)
        return root

    return make


def unreadable(folder: Path) -> Path:
    """A file that cannot be read."""
    path = folder / "secret.txt"
    if os.geteuid() == 0:  # whom no permission stops: reading this one fails
        path.symlink_to("/proc/self/mem")
    else:
        path.write_text("secret")
        path.chmod(0)
    return path


def twins(folder: Path) -> Path:
    """Two files of one name in two folders."""
    for number in (1, 2):
        (folder / f"corpus/{number}").mkdir(parents=True)
        (folder / f"corpus/{number}/notes.txt").write_text(text(number))
    return folder / "corpus"


def long_line(megabytes: int) -> Callable[[Path], Path]:
    """One line of so many megabytes."""

    def make(folder: Path) -> Path:
        path = folder / "one-line.txt"
        with open(path, "w", encoding="utf-8") as out:
            for seed in range(megabytes):
                out.write(text(seed, 190_000).replace("\n", " ")[:1_000_000])
        return path

    return make


def cases(megabytes: int) -> dict[str, Case]:
    """All corpora by name."""
    import zstandard

    rows = [{"text": text(n, 60), "label": n % 2} for n in range(300)]
    table = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    fits = "is reduced to"
    return {
        "notes [1].txt": Case(beside("notes [1].txt", text(1), "notes 1.txt")),
        "q[ab].txt beside qa.txt": Case(beside("q[ab].txt", text(1), "qa.txt")),
        "a name with * ? { }": Case(beside("a*b?{c}.txt", text(1), "aXbYc.txt")),
        "a name with a line break": Case(file("a\nb.txt", text(1))),
        "a name that is not UTF-8": Case(foreign_name),
        "a link to a file": Case(link("away.txt")),
        "a link to nothing": Case(link("gone.txt"), refused="is a link to a file that does not"),
        "a file that cannot be read": Case(unreadable, refused="secret.txt: cannot be read"),
        "two files of one name": Case(twins),
        "Markdown": Case(file("notes.md", text(1))),
        "CSV": Case(file("reviews.csv", table)),
        "TSV": Case(file("reviews.tsv", table.replace(",", "\t"))),
        "CSV without that column": Case(
            file("a.csv", table.replace("text,", "review,", 1)), refused='no column "text"'
        ),
        "JSON lines": Case(file("rows.jsonl", lines)),
        "JSON lines, cut off": Case(file("rows.jsonl", lines[:-9]), refused="malformed JSON"),
        "gzip": Case(file("a.txt.gz", gzip.compress(text(1).encode()))),
        "gzip, truncated": Case(
            file("a.txt.gz", gzip.compress(text(1).encode())[:-99]), refused="is damaged or truncated"
        ),
        "zstd of JSON lines": Case(file("a.jsonl.zst", zstandard.compress(lines.encode()))),
        "source tree": Case(tree, said="1 files are not text and are skipped: logo.png"),
        "Windows line ends": Case(file("a.txt", text(1).replace("\n", "\r\n"))),
        "Chinese without spaces": Case(file("a.txt", chinese())),
        f"one line of {megabytes} MB": Case(long_line(megabytes)),
        "PDF named .txt": Case(file("paper.txt", b"%PDF-1.7\n" + text(1).encode()), refused="is a PDF"),
        "UTF-16": Case(file("a.txt", text(1).encode("utf-16")), refused="is UTF-16; convert it"),
        "empty file": Case(file("a.txt", ""), refused="empty corpus"),
        "no such file": Case(lambda folder: folder / "none.txt", refused="no such file or folder"),
        "lines as documents": Case(file("a.txt", text(1, 40_000)), ("--data.document", "line")),
        "files as documents": Case(tree, ("--data.document", "file"), refused="too small"),
        "4,096 tokens of molecules": Case(file("molecules.smi", molecules()), said=fits),
        "the same, strict": Case(
            file("molecules.smi", molecules()), ("--tokenizer.strict", "true"), refused="more than the corpus"
        ),
    }


def attempt(name: str, case: Case, folder: Path) -> tuple[bool, list[str]]:
    """Train on a corpus in a process of its own; whether it went as expected, and a table's row."""
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
        *case.more,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if case.refused:
        good = done.returncode == 2 and len(errors) == 1 and lines[-1] == errors[0]
        good = good and case.refused in errors[0]
    else:
        good = done.returncode == 0 and case.said in done.stderr
        good = good and "wrong file" not in done.stdout and (folder / "run/sample.txt").exists()
    good = good and "Traceback" not in done.stderr
    read = re.search(r"reading .*?: ([\d,]+) in", done.stderr)
    shown = (errors[-1] if errors else lines[-1]).replace(str(folder), "…")
    seconds = f"{time.perf_counter() - started:.1f}"
    return good, [name, str(done.returncode), read[1] if read else "–", seconds, shown[:110]]


def main() -> None:
    """Entry point of `python -m benchmarks.newcomer`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300, help="of the one long line")
    parser.add_argument("--only", nargs="+", help="these cases")
    args = parser.parse_args()
    table = Table("corpus", "exit", "documents", "s", "last line", "as expected")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases(args.megabytes).items()):
            if args.only and name not in args.only:
                continue
            good, row = attempt(name, case, Path(folder) / str(number))
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
