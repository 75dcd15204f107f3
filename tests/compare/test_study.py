"""A whole study with the real foundation model, cut down to minutes."""

import json
from pathlib import Path

import pytest

from compare.arms import ARMS
from compare.report import read_ledger, verdict

ROOT = Path(__file__).parent.parent.parent


PARTS = ("text", "task")


@pytest.mark.slow
def test_a_small_study_runs_and_resumes(command, cache, tmp_path):
    folder = tmp_path / "study"
    args = (
        "configs/study/demo.toml", "--run-dir", folder, "--data.cache-dir", cache,
        "--budget-seconds", "10", "--test-documents", "8", "--task.test-items", "8",
        "--task.train-items", "200", "--data.validation-fraction", "0.005",
    )  # fmt: skip
    done = command("compare.run", *args, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == list(ARMS)
    for row in rows:
        assert {"config_hash", "seed", "commit", "device", "versions", "command"} <= row.keys()
        if "correct" in row:
            assert len(row["correct"]) == 8
        if "document_bits" in row:
            assert len(row["document_bits"]) == len(row["document_bytes"]) == 8
    trained = {row["arm"]: row for row in rows if row["arm"] in ("scratch", "lora")}
    for arm, row in trained.items():
        logs = [(folder / f"{arm}-{part}-0" / "metrics.jsonl").read_text() for part in PARTS]
        phases = [[x for x in map(json.loads, log.splitlines()) if "loss" in x] for log in logs]
        # A step is not cut off: a phase may go over its time by less than one step.
        before = sum(step["seconds"] for steps in phases for step in steps[-2:-1])
        assert before < 10 <= row["training_seconds"]
        assert row["training_flops"] > 0
        assert row["trained_parameters"] > 100_000
    for name in ("table.md", "verdict.md", "plots/study.png"):
        assert (folder / name).stat().st_size > 50
    written = (folder / "sample.txt").read_text(encoding="utf-8").strip()
    assert written
    assert written in done.stdout.partition("A new document")[2]
    assert "| lora |" in (folder / "table.md").read_text()
    assert "before 3 seeds" in (folder / "verdict.md").read_text()

    (folder / "arms" / "majority-class-0.json").unlink()
    again = command("compare.run", *args, "--resume", timeout=120)
    assert again.returncode == 0, again.stderr
    assert "=== majority-class" in again.stderr
    assert "=== lora" not in again.stderr
    refused = command("compare.run", *args)
    assert refused.returncode == 2


def row(arm, seed=0, bits=None, correct=None, **more):
    made = {"arm": arm, "seed": seed, "corpus": "c", "task": "t", "budget_seconds": 5.0,
            "device": "d", "commit": "0", "command": "x", "peak_bytes": 1,
            "document_bytes": [100] * 50, **more}  # fmt: skip
    made |= {"document_bits": [100.0 * bits] * 50} if bits else {}
    made |= {"correct": [1] * correct + [0] * (50 - correct)} if correct is not None else {}
    return made


def test_the_verdict_says_only_what_the_intervals_allow(tmp_path):
    rows = [
        row("compressors", compressors={"xz": 2.0, "zstd": 2.1}),
        row("majority-class", correct=20),
        row("zero-shot", bits=3.0, correct=2, seconds_per_request=0.2),
        row("scratch", bits=1.5, correct=25, seconds_per_request=0.01),
        row("lora", bits=1.8, correct=26, seconds_per_request=0.2),
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = verdict(read_ledger(tmp_path))
    assert "scratch predicts the text with the fewest bits per byte" in text
    assert "zero-shot does not beat it" in text
    assert "no difference measured" in text
    assert "1 seed(s)" in text
