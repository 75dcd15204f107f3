"""How often the passage that answers is among the first five: by words, by meaning, by both.

    python -m benchmarks.retrieval [--encoders wordllama smollm2-135m] [--documents 1000]

The questions are built in: what an operation of AWS does, in the words of the first sentence of
its documentation; the document to find is that operation's, from which this sentence has been taken
out, among those of other operations and data types. Writes results/DEVICE/retrieval.json.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.record import record
from configs.schema import DataConfig
from data.prepare import prepare, read_shuffled
from prompting.store import WAYS, Store

DEPTH = 5
QUESTIONS = 200
SEED = 0


def questions(rows: list[dict]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Documents without their first sentence, and (question, id of the document) pairs."""
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
    texts, asked = questions([*operations[:half], *others[: args.documents - half]])
    asked = asked[:QUESTIONS]
    draw = np.random.default_rng(SEED)
    results = []
    for encoder in args.encoders:
        with tempfile.TemporaryDirectory() as place:
            store = Store(Path(place), encoder, 600)
            store.update(texts.items())
            for way in WAYS:
                if way == "bm25" and encoder != args.encoders[0]:
                    continue  # it has no vectors
                hits = np.array(
                    [answer in {p.document for p in store.search(question, DEPTH, way)} for question, answer in asked],
                    float,
                )
                drawn = draw.choice(hits, (2000, len(hits))).mean(1)
                low, high = np.quantile(drawn, (0.025, 0.975))
                row = {
                    "encoder": encoder,
                    "way": way,
                    "recall": hits.mean(),
                    "low": low,
                    "high": high,
                    "questions": len(asked),
                    "documents": len(texts),
                }
                results.append(row)
                print(
                    f"{encoder:14}{way:8} recall@{DEPTH} {row['recall']:.3f} "
                    f"({low:.3f} to {high:.3f}), {len(asked)} questions, {len(texts)} documents"
                )
    print(f"written: {record('retrieval', {'results': results})}")


if __name__ == "__main__":
    main()
