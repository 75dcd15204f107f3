"""What bfloat16 changes in a study: bits per byte and answers of the foundation model in both precisions.

    python -m benchmarks.precision [--documents 100] [--items 150]

On a CPU with AVX512-BF16 a study scores the foundation in bfloat16 (`compare.context.prepare_inference`). Here
held-out documents and items of two corpora are scored in float32 too. Writes
benchmarks/results/DEVICE/precision.json.
"""

import argparse
from itertools import islice

import numpy as np

from benchmarks.record import record
from configs.schema import DataConfig, TaskConfig
from data.prepare import prepare
from data.splits import read_shuffled
from data.tasks import load_task
from model.likelihood import document_bits
from model.load import load_model
from prompting.answers import answer_task
from prompting.shots import fixed_shots

FOUNDATION, SHOTS = "smollm2-135m", 4
CORPORA = {
    "folk-tunes": (DataConfig(corpus="folk-tunes"), "tune-key"),
    "aws-api": (DataConfig(corpus="aws-api", group_field="document"), "api-service"),
}


def score(data: DataConfig, task_name: str, documents: int, items: int, bfloat16: bool) -> tuple[float, np.ndarray]:
    """Bits per byte of held-out documents, and which items are answered correctly after a few shots."""
    model, tokenizer = load_model(FOUNDATION)
    model.eval()
    if bfloat16:
        model.bfloat16()
    texts = [row["text"] for row in islice(read_shuffled(prepare(data), "test"), documents)]
    bits = sum(document_bits(model, tokenizer, texts)) / sum(len(text.encode()) for text in texts)
    task = load_task(TaskConfig(name=task_name, max_chars=160, test_items=items), data)
    found = answer_task(model, tokenizer, task, fixed_shots(task, SHOTS, 0))
    return bits, np.array(found["correct"])


def main() -> None:
    """Entry point of `python -m benchmarks.precision`."""
    parser = argparse.ArgumentParser(description="what bfloat16 changes in a study")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--items", type=int, default=150)
    args = parser.parse_args()
    rows = []
    for name, (data, task) in CORPORA.items():
        (bits, right), (rounded, rounded_right) = (
            score(data, task, args.documents, args.items, bfloat16) for bfloat16 in (False, True)
        )
        rows.append(
            {
                "corpus": name,
                "bits_per_byte": bits,
                "change": rounded / bits - 1,
                "items": len(right),
                "accuracy": float(right.mean()),
                "accuracy_bfloat16": float(rounded_right.mean()),
                "changed_items": int((right != rounded_right).sum()),
            }
        )
        print(
            f"{name}: {bits:.4f} bits/byte in float32, {rounded / bits - 1:+.2%} in bfloat16; accuracy "
            f"{right.mean():.3f} and {rounded_right.mean():.3f}, {rows[-1]['changed_items']} of {len(right)} differ"
        )
    print(f"written: {record('precision', {'rows': rows})}")


if __name__ == "__main__":
    main()
