"""Memory, time and recall of data preparation against the number of documents.

    python -m benchmarks.prepare [--documents 200000 500000 1000000] [--folder cache/prepare-bench]

The corpus is text of this machine (Python packages, the standard library, /usr, the built-in corpora),
cut into documents of about 2,000 characters. When that is used up, it is used again with other
words: every word stands for another one of its length, so that nothing repeats. 5 % of the documents
are copies of earlier ones, 5 % are copies with one word changed, of documents with a hundred words or
more: a similarity of 0.9 or more. Memory is the summed
PSS of all processes, sampled every 0.2 s. Also times reading, cleaning and signatures alone, with one
worker bound to one core and with two; and prepares two unusual corpora: 1.58 million documents of
one short line each, and 1 GB of text in a single line. Writes results/DEVICE/prepare.json.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.record import record
from cli.console import say
from configs.schema import DataConfig
from data.corpora import open_corpus
from data.splits import SPLITS, load_manifest, read_documents

SUFFIXES = {".py", ".pyi", ".txt", ".md", ".rst", ".h", ".hpp", ".js", ".ts", ".pm", ".pod", ".html", ".xml"}
CHARACTERS = 2000  # of a document
COPIES = {"exact": 0.05, "near": 0.05}
LINES = 1_580_000
RECENT = 50_000  # a copy is of one of the last so many documents
WORD = re.compile(r"[A-Za-z]{3,}")


def base_texts() -> Iterator[str]:
    """Documents of about CHARACTERS, cut at line ends."""
    roots = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib")] + [Path("/usr")]
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
                yield from _cut(path.read_text(encoding="utf-8", errors="ignore"))
    for name in ("aws-api", "folk-tunes"):
        yield from (document.text for document in open_corpus(DataConfig(corpus=name)).read())


def _cut(text: str) -> Iterator[str]:
    part: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        part.append(line[:CHARACTERS])
        size += len(part[-1])
        if size >= CHARACTERS:
            yield "".join(part)
            part, size = [], 0
    if size > CHARACTERS / 4:
        yield "".join(part)


def varied_texts() -> Iterator[str]:
    """The base texts, then the same with other words, without end."""
    draw, turn = random.Random(0), 0
    while True:
        other: dict[str, str] = {}

        def change(match: re.Match, other: dict[str, str] = other) -> str:
            word = match[0]
            if word not in other:
                other[word] = "".join(draw.choices("etaoinshrdlucmfwypvbgk", k=len(word)))
            return other[word]

        for text in base_texts():
            yield WORD.sub(change, text) if turn else text
        turn += 1


def write_corpus(path: Path, count: int) -> dict[int, str]:
    """Write `count` documents, one per line; returns the kinds of the planted copies by line number."""
    draw, texts, planted, recent = random.Random(1), varied_texts(), {}, []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            kind = draw.random()
            if recent and kind < COPIES["exact"]:
                text, planted[number] = draw.choice(recent), "exact"
            elif recent and kind < sum(COPIES.values()):
                words = list(re.finditer(r"\S+", text := draw.choice(recent)))
                planted[number] = "exact"
                if len(words) >= 100:
                    start, end = words[draw.randrange(len(words))].span()
                    text, planted[number] = f"{text[:start]}changed{text[end:]}", "near"
            else:
                text = next(texts)
                if len(recent) < RECENT:
                    recent.append(text)
                else:
                    recent[draw.randrange(RECENT)] = text
            file.write(json.dumps({"text": text}) + "\n")
    return planted


def write_lines(path: Path, count: int) -> None:
    """Write `count` lines of 16 to 59 characters."""
    with open(path, "w", encoding="utf-8") as file:
        for text in varied_texts():
            for line in text.splitlines():
                if len(line := line.strip()[:59]) >= 16:
                    file.write(line + "\n")
                    count -= 1
                    if not count:
                        return


def write_one_line(path: Path, size: int) -> None:
    """Write `size` characters of text without a line end."""
    with open(path, "w", encoding="utf-8") as file:
        for text in varied_texts():
            size -= file.write(" ".join(text.split()) + " ")
            if size < 0:
                return


def run_prepare(path: Path, cache: Path, document: str = "section") -> tuple[float, int, Path]:
    """Seconds, peak PSS in bytes and prepared folder of `python -m data.prepare`."""
    recipe = path.with_suffix(".toml")
    recipe.write_text(f'[data]\ncorpus = "{path}"\ncache_dir = "{cache}"\ndocument = "{document}"\n')
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "data.prepare", recipe], stdout=subprocess.PIPE, text=True) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for each in (parent, *parent.children(recursive=True)):
                try:
                    total += each.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(0.2)
        assert process.stdout
        folder = Path(process.stdout.read().split()[-1])
    return time.perf_counter() - started, peak, folder


CLEAN = """
import sys, time
from pathlib import Path
from cli.workers import Workers
from configs.schema import DataConfig
from data.corpora import open_corpus
from data.prepare import Stages
if __name__ == "__main__":
    config, stages = DataConfig(corpus=sys.argv[1]), Stages.__new__(Stages)
    work = Path(sys.argv[2])
    work.mkdir(parents=True)
    with Workers(int(sys.argv[3])) as pool:
        stages.corpus, stages.config, stages.work, stages.workers = open_corpus(config), config, work, pool
        started = time.perf_counter()
        stages.clean()
        print(time.perf_counter() - started)
"""


def time_cleaning(path: Path, work: Path, workers: int) -> float:
    """Seconds of stage 1 with `workers` processes on as many cores."""
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-c", CLEAN, path, work, str(workers)]
    cores = sorted(os.sched_getaffinity(0))[:workers]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    shutil.rmtree(work)
    return float(done.stdout.split()[-1])


def measure(folder: Path, documents: int) -> dict:
    """Prepare a corpus of `documents` documents; returns time, memory, and recall of the planted copies."""
    path, cache = folder / f"{documents}.jsonl", folder / "cache"
    say(f"writing {documents:,} documents")
    planted = write_corpus(path, documents)
    seconds, peak, prepared = run_prepare(path, cache)
    manifest = load_manifest(prepared)
    kept = {int(row["id"].split(":")[1]) for split in SPLITS for row in read_documents(prepared, split)}
    dropped = {kind: [number not in kept for number, its in planted.items() if its == kind] for kind in COPIES}
    row = {
        "documents": documents,
        "megabytes": path.stat().st_size / 1e6,
        "seconds": seconds,
        "peak_pss_bytes": peak,
        "planted": {kind: len(found) for kind, found in dropped.items()},
        "recall": {kind: sum(found) / len(found) for kind, found in dropped.items()},
        "lowest_similarity": manifest["lowest_similarity"],
        "counts": manifest["counts"],
    }
    say(json.dumps(row))
    shutil.rmtree(cache)
    return row


def measure_unusual(folder: Path, name: str, document: str) -> dict:
    """Time and memory of a corpus of short lines, or of one long line."""
    path, cache = folder / f"{name}.txt", folder / "cache"
    say(f"writing {path.name}")
    if document == "line":
        write_lines(path, LINES)
    else:
        write_one_line(path, 10**9)
    seconds, peak, prepared = run_prepare(path, cache, document)
    megabytes, counts = path.stat().st_size / 1e6, load_manifest(prepared)["counts"]
    row = {"case": name, "megabytes": megabytes, "seconds": seconds, "peak_pss_bytes": peak, "counts": counts}
    say(json.dumps(row))
    shutil.rmtree(cache)
    path.unlink()
    return row


def main() -> None:
    """Entry point of `python -m benchmarks.prepare`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[200_000, 500_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("cache/prepare-bench"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [measure(args.folder, documents) for documents in args.documents]
    first, last = rows[0], rows[-1]
    slope = (last["peak_pss_bytes"] - first["peak_pss_bytes"]) / (last["documents"] - first["documents"])
    exponent = math.log(last["seconds"] / first["seconds"]) / math.log(last["documents"] / first["documents"])
    unusual = [measure_unusual(args.folder, "short-lines", "line"), measure_unusual(args.folder, "one-line", "section")]
    path = args.folder / f"{args.documents[0]}.jsonl"
    cleaning = {"1": [], "2": []}
    for _ in range(3):
        for workers, times in cleaning.items():
            times.append(time_cleaning(path, args.folder / "work", int(workers)))
    ratios = sorted(a / b for a, b in zip(cleaning["1"], cleaning["2"], strict=True))
    print(f"memory grows by {slope:.0f} bytes per document, time with the documents to the power {exponent:.2f}")
    print(
        f"cleaning with two workers is {ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f}) times as fast as with one"
    )
    result = {"rows": rows, "unusual": unusual, "bytes_per_document": slope, "exponent": exponent}
    print(f"written: {record('prepare', result | {'cleaning_seconds': cleaning, 'cleaning_ratios': ratios})}")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
