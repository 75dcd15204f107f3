"""A two-process run killed at random moments ends exactly as an uninterrupted run."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from model.formats.native import checkpoints, latest_checkpoint, read_file
from train.metrics import read_metrics

KILLS = 20
STEPS = 600  # more than a fast machine completes before the last kill
SETTINGS = ("--train.steps", STEPS, "--train.save-every", "1", "--train.eval-every", STEPS, "--train.ema", "0.9")


def losses(run):
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def steps(run):
    return max(losses(run), default=0)


def torchrun(*options):
    return ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, "-m", "train.pretrain")


def kill_group(process, run):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    # Workers have their own sessions; one that has just started may outlive torchrun.
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_worker_of(path, run)]:
        for path in left:
            with contextlib.suppress(ProcessLookupError):  # it has exited meanwhile
                os.kill(int(path.parent.name), signal.SIGKILL)
        time.sleep(0.02)


def is_worker_of(path, run):
    try:
        return str(run).encode() in path.read_bytes().split(b"\0")
    except OSError:  # the process has exited
        return False


def workers(process):
    """The processes that torchrun started."""
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture(scope="module")
def whole(command, recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command(*torchrun(), recipe, "--run-dir", run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return run


def assert_same_run(run, whole):
    first, second = latest_checkpoint(run), latest_checkpoint(whole)
    assert first.name == second.name == f"{STEPS:06}"
    for name in ("model", "optimizer", "ema"):
        one, other = (read_file(path, f"{name}.safetensors") for path in (first, second))
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key
    assert losses(run) == losses(whole)


@pytest.mark.slow
def test_a_run_killed_twenty_times_equals_an_unbroken_run(command, recipe, whole, tmp_path):
    run = tmp_path / "run"
    generator = random.Random(0)
    reached, saving = [], 0
    for kill in range(KILLS):
        resume = ["--resume"] if (run / "config.toml").exists() else []
        process = command.start(*torchrun(), recipe, "--run-dir", run, *SETTINGS, *resume, start_new_session=True)
        metrics = run / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        if kill % 5 == 4:  # kill during start-up
            time.sleep(generator.uniform(0, 6))
        else:  # kill after a few steps; every step saves a checkpoint
            deadline = time.monotonic() + 120
            goal = (reached[-1] if reached else 0) + 2
            while not metrics.exists() or metrics.stat().st_mtime_ns == before or steps(run) < goal:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.6))
        kill_group(process, run)
        saving += any((run / "checkpoints").glob("*.tmp"))
        reached.append(max((int(p.name) for p in checkpoints(run)), default=0))
    assert len(set(reached)) >= 8, reached
    assert reached[-1] < STEPS, reached
    assert saving  # at least one kill came while a checkpoint was written
    done = command(*torchrun(), recipe, "--run-dir", run, *SETTINGS, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(run, whole)


@pytest.mark.slow
def test_torchrun_restarts_a_lost_worker(command, recipe, whole, tmp_path):
    run = tmp_path / "run"
    process = command.start(*torchrun("--max-restarts", "3"), recipe, "--run-dir", run, *SETTINGS)
    for at in (40, 150):
        deadline = time.monotonic() + 120
        while max((int(p.name) for p in checkpoints(run)), default=0) < at:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.kill(random.Random(at).choice(workers(process)), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert_same_run(run, whole)
