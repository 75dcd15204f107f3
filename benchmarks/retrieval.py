"""Recall@5 of retrieval by BM25, by embedding vectors, and by both (hybrid).

    python -m benchmarks.retrieval [--encoders wordllama smollm2-135m] [--documents 1000]

Each question is the first sentence of the documentation of an AWS operation. The document to
retrieve is that of the same operation, without this sentence, among documents of other operations
and data types. Intervals are 95 % bootstrap intervals. Writes results/DEVICE/retrieval.json.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import record
from configs.schema import DataConfig
from data.prepare import prepare, read_shuffled
from prompting.store import SEARCH_METHODS, Store

DEPTH = 5
QUESTIONS = 200
SEED = 0


def build_questions(rows: list[dict]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Documents by id, without the sentences used as questions, and (question, document id) pairs."""
    texts, asked = {}, []
    for row in rows:
        name, _, text = row["text"].partition("\n")
        parts = re.split(r"(?<=[.!?])\s", text, maxsplit=1)
        if "/operation/" in row["id"] and len(parts) == 2 and len(parts[0]) > 40:
            asked.append((parts[0], row["id"]))
            text = parts[1]
        texts[row["id"]] = f"{name}\n{text}"
    return texts, asked


def main() -> None:
    """Entry point of `python -m benchmarks.retrieval`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["wordllama", "smollm2-135m"])
    parser.add_argument("--documents", type=int, default=1000)
    args = parser.parse_args()
    rows = read_shuffled(prepare(DataConfig(corpus="aws-api")), "train")
    operations = [row for row in rows if "/operation/" in row["id"]]
    others = [row for row in rows if "/operation/" not in row["id"]]
    half = args.documents // 2
    texts, asked = build_questions([*operations[:half], *others[: args.documents - half]])
    asked = asked[:QUESTIONS]
    rng = np.random.default_rng(SEED)
    results = []
    for encoder in args.encoders:
        with tempfile.TemporaryDirectory() as place:
            store = Store(Path(place), encoder, 600)
            store.update(texts.items())
            for method in SEARCH_METHODS:
                if method == "bm25" and encoder != args.encoders[0]:
                    continue  # BM25 does not depend on the encoder
                hits = np.array(
                    [
                        answer in {p.document for p in store.search(question, DEPTH, method)}
                        for question, answer in asked
                    ],
                    float,
                )
                resamples = rng.choice(hits, (2000, len(hits))).mean(1)
                low, high = np.quantile(resamples, (0.025, 0.975))
                row = {
                    "encoder": encoder,
                    "way": method,
                    "recall": hits.mean(),
                    "low": low,
                    "high": high,
                    "questions": len(asked),
                    "documents": len(texts),
                }
                results.append(row)
                print(
                    f"{encoder:14}{method:8} recall@{DEPTH} {row['recall']:.3f} "
                    f"({low:.3f} to {high:.3f}), {len(asked)} questions, {len(texts)} documents"
                )
    print(f"written: {record('retrieval', {'results': results})}")


if __name__ == "__main__":
    main()
