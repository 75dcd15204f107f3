"""Runs that are interrupted, resumed, and moved to another number of ranks, as real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from model.formats.native import checkpoints, latest_checkpoint
from train.metrics import read_metrics


def losses(run):
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def tensors(run, name="model.safetensors"):
    return load_file(latest_checkpoint(run) / name)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def whole(command, recipe, tmp_path_factory):
    """A run of ten steps without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command("train.pretrain", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_run_resumes_bit_for_bit(command, recipe, whole, tmp_path, step):
    run = tmp_path / "run"
    # The script blocks after a step, where the run is killed: steps after the last checkpoint are
    # lost, but their metrics are on disk. It first waits for the thread that writes the checkpoint.
    script = tmp_path / "waits.py"
    script.write_text(
        "import runpy, time\n"
        "from train.loop import Trainer\n"
        "following = Trainer.step\n"
        "def waiting(self, end):\n"
        f"    if self.progress.step == {step + 1}:\n"
        "        self.saver.wait()\n"
        "        time.sleep(1000)\n"
        "    return following(self, end)\n"
        "Trainer.step = waiting\n"
        "runpy.run_module('train.pretrain', run_name='__main__', alter_sys=True)\n"
    )
    first = subprocess.Popen(
        [sys.executable, script, recipe, "--run-dir", run, "--train.save-every", str(step), "--train.eval-every", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    deadline = time.time() + 120
    while not (run / "checkpoints" / f"{step:06d}").exists() or max(losses(run)) <= step:
        assert time.time() < deadline
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert max(losses(run)) == step + 1
    assert [path.name for path in checkpoints(run)][-1] == f"{step:06d}"
    later = command("train.pretrain", recipe, "--run-dir", run, "--resume")
    assert later.returncode == 0, later.stderr
    assert_same(tensors(run), tensors(whole))
    assert_same(tensors(run, "optimizer.safetensors"), tensors(whole, "optimizer.safetensors"))
    generators = [latest_checkpoint(r) / "generators-00000.json" for r in (run, whole)]
    assert generators[0].read_bytes() == generators[1].read_bytes()
    assert losses(run) == losses(whole)
    evaluated = [row["step"] for row in read_metrics(run) if "bits_per_byte" in row]
    assert len(evaluated) == len(set(evaluated))


def test_a_run_of_one_rank_resumes_on_two(command, recipe, whole, tmp_path):
    run = tmp_path / "run"
    first = command(
        "train.pretrain",
        recipe,
        "--run-dir",
        run,
        "--train.steps",
        "10",
        "--train.save-every",
        "1",
        "--train.keep-last",
        "20",
    )
    assert first.returncode == 0, first.stderr
    for checkpoint in sorted((run / "checkpoints").iterdir())[5:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    later = command.torchrun(2, "train.pretrain", recipe, "--run-dir", run, "--resume")
    assert later.returncode == 0, later.stderr
    expected, got = losses(whole), losses(run)
    assert got.keys() == expected.keys()
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5)


def test_two_ranks_match_one_with_twice_the_gradient_accumulation(command, recipe, whole, tmp_path):
    run = tmp_path / "run"
    done = command.torchrun(2, "train.pretrain", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert "2 ranks x 1 x 4" in done.stderr
    expected, got = losses(whole), losses(run)
    assert got.keys() == expected.keys()
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5)
    assert tensors(run).keys() == tensors(whole).keys()
    for key, value in tensors(whole).items():
        torch.testing.assert_close(tensors(run)[key], value, rtol=1e-4, atol=1e-5)
    evaluations = [
        [
            r["bits_per_byte"]
            for r in map(json.loads, (r / "metrics.jsonl").read_text().splitlines())
            if "bits_per_byte" in r
        ]
        for r in (run, whole)
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_the_resume_command(command, recipe, tmp_path, number):
    run = tmp_path / "run"
    process = command.start(
        "train.pretrain",
        recipe,
        "--run-dir",
        run,
        "--train.steps",
        "100000",
        "--train.eval-every",
        "100000",
        "--train.save-every",
        "100000",
    )
    deadline = time.time() + 120
    while len(losses(run)) < 20:
        assert time.time() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    saved = int(latest_checkpoint(run).name)
    assert f"saved step {saved}; resume with:" in said
    assert said.strip().endswith("--resume")
    assert max(losses(run)) == saved
    later = command("train.pretrain", recipe, "--run-dir", run, "--resume", "--train.steps", saved + 3)
    assert later.returncode == 0, later.stderr
    assert max(losses(run)) == saved + 3


def test_a_run_directory_is_overwritten_only_on_request(command, recipe, whole, tmp_path):
    before = tensors(whole)
    refused = command("train.pretrain", recipe, "--run-dir", whole)
    assert refused.returncode == 2
    assert (
        refused.stderr.strip()
        .splitlines()[-1]
        .endswith("exists; continue it with --resume, or replace it with --overwrite")
    )
    assert_same(tensors(whole), before)
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    refused = command("train.pretrain", recipe, "--run-dir", precious, "--overwrite")
    assert refused.returncode == 2
    assert (precious / "thesis.tex").exists()


def test_a_run_directory_is_complete(whole):
    names = {p.name for p in whole.iterdir()}
    assert {"config.toml", "tokenizer.json", "metrics.jsonl", "sample.txt", "checkpoints"} <= names
    assert (whole / "plots" / "loss.png").stat().st_size > 5000
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "bits_per_byte" in row] == [0, 5, 10]
    step = next(row for row in rows if "loss" in row)
    assert step.keys() >= {"lr", "grad_norm", "tokens", "tokens_per_second", "loader_seconds", "memory_bytes", "epoch"}


def test_torchrun_stopped_by_a_signal_saves_on_all_ranks(command, recipe, tmp_path):
    run = tmp_path / "run"
    process = command.start(
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "train.pretrain",
        recipe,
        "--run-dir",
        run,
        "--train.steps",
        "100000",
        "--train.eval-every",
        "100000",
        "--train.save-every",
        "100000",
    )
    deadline = time.time() + 120
    while len(losses(run)) < 5:
        assert time.time() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert "torchrun --standalone --nproc-per-node 2 -m train.pretrain" in said
    assert int(latest_checkpoint(run).name) == max(losses(run)) >= 5


def test_a_user_error_stops_all_ranks_with_one_message(command, recipe, tmp_path):
    done = command.torchrun(
        2,
        "train.pretrain",
        recipe,
        "--run-dir",
        tmp_path / "run",
        "--data.corpus",
        tmp_path / "missing.txt",
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: data.corpus: ") == 1
