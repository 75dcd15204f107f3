"""Speed-up of the prefix cache on four-shot prompts, and a check that scores do not change.

    python -m benchmarks.prefix [--items 50] [--rounds 3]

SmolLM2-135M on `api-service` and `tune-key`, with the same four examples before every item and
labels ranked by log-likelihood. Measures items per second with and without the prefix cache, in
turn. Writes results/DEVICE/prefix.json.
"""

import argparse
import statistics
import time

from benchmarks.record import record
from configs.schema import DataConfig, TaskConfig
from data.tasks import load_task
from model.load import load_model
from prompting.likelihood import rank_completions, shared_prefix
from prompting.shots import fixed_shots
from prompting.templates import few_shot

TASKS = {
    "api-service": DataConfig(corpus="aws-api", group_field="document"),
    "tune-key": DataConfig(corpus="folk-tunes"),
}


def main() -> None:
    """Entry point of `python -m benchmarks.prefix`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    results = []
    for name, data in TASKS.items():
        task = load_task(TaskConfig(name=name), data)
        shots = fixed_shots(task, 4, 0)
        prompts = [few_shot(task, i.text, shots(i.text)) for i in task.test[: args.items]]
        completions = [task.completion(label) for label in task.labels]
        ratios, furthest, sizes = [], 0.0, []
        for _ in range(args.rounds):
            started = time.perf_counter()
            plain = [rank_completions(model, tokenizer, p, completions) for p in prompts]
            without = time.perf_counter() - started
            started = time.perf_counter()
            prefix = shared_prefix(model, tokenizer, prompts)  # the prefill of the prefix is timed too
            fast = [rank_completions(model, tokenizer, p, completions, prefix) for p in prompts]
            ratios.append(without / (time.perf_counter() - started))
            assert prefix is not None
            sizes = [len(prefix.ids), round(statistics.mean(a.prompt_tokens for a in plain))]
            furthest = max(
                [furthest]
                + [
                    abs(x - y)
                    for a, b in zip(plain, fast, strict=True)
                    for x, y in zip(a.scores, b.scores, strict=True)
                ]
            )
            assert [a.choice for a in plain] == [b.choice for b in fast]
        row = {
            "task": name,
            "labels": len(completions),
            "prefix_tokens": sizes[0],
            "prompt_tokens": sizes[1],
            "items": len(prompts),
            "speedups": ratios,
            "largest_difference_nats": furthest,
        }
        results.append(row)
        print(
            f"{name:12} prefix {sizes[0]} of {sizes[1]} tokens: {statistics.median(ratios):.2f} "
            f"times the items/s ({min(ratios):.2f} to {max(ratios):.2f}); scores differ by "
            f"{furthest:.1g} nats at most"
        )
    print(f"written: {record('prefix', {'results': results})}")


if __name__ == "__main__":
    main()
