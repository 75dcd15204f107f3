"""Fault tolerance: full disks, flipped bits, signals, clock jumps, other processes, loss spikes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filesystems import in_small_filesystem
from safetensors.torch import load_file

from cli.errors import UserError
from model.formats.native import checkpoints, latest_checkpoint, read_file, write_checkpoint
from train.checkpoint import Progress
from train.guard import RECENT, Guard
from train.metrics import read_metrics


def losses(run):
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def assert_same_run(a, b):
    first, second = latest_checkpoint(a), latest_checkpoint(b)
    assert first.name == second.name
    assert losses(a) == losses(b)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.fixture(scope="module")
def whole(command, recipe, tmp_path_factory):
    """A run of ten steps without interruption, with all checkpoints."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command("train.pretrain", recipe, "--run-dir", run, "--train.save-every", "2", "--train.keep-last", "9")
    assert done.returncode == 0, done.stderr
    return run


def test_every_flipped_byte_is_detected_and_reported(tmp_path):
    tensors = {"a": torch.randn(5, 3), "b.c": torch.randn(7)}
    state = {"progress": {"step": 3}, "words": ["x", "y"]}
    path = write_checkpoint(tmp_path, 3, {"model.safetensors": tensors, "state.json": state}, {"tokenizer": "t"})
    generator = random.Random(0)
    for file in sorted(path.iterdir()):
        sound = file.read_bytes()
        # Every byte of small files, a sample of large ones.
        places = range(len(sound)) if len(sound) < 400 else generator.sample(range(len(sound)), 300)
        for place in places:
            data = bytearray(sound)
            data[place] ^= 1 << generator.randrange(8)
            file.write_bytes(data)
            with pytest.raises(UserError, match=f"corrupted checkpoint: {file.name}"):
                latest_checkpoint(tmp_path)
        for length in (0, 1, len(sound) // 2, len(sound) - 1):
            file.write_bytes(sound[:length])
            with pytest.raises(UserError, match=f"corrupted checkpoint: {file.name}"):
                latest_checkpoint(tmp_path)
        file.write_bytes(sound)
    assert latest_checkpoint(tmp_path) == path
    assert torch.equal(read_file(path, "model.safetensors")["a"], tensors["a"])


def test_resume_skips_a_corrupted_newest_checkpoint(command, recipe, whole, tmp_path):
    run = tmp_path / "moved" / "run"  # a run directory may be moved
    shutil.copytree(whole, run)
    weights = latest_checkpoint(run) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = command("train.pretrain", recipe, "--run-dir", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert "WARNING: " in done.stderr
    assert "corrupted checkpoint: model.safetensors does not match its checksum" in done.stderr
    assert "trying the previous checkpoint" in done.stderr
    assert_same_run(run, whole)


def test_a_second_process_in_the_run_directory_is_refused(command, recipe, tmp_path):
    run = tmp_path / "run"
    arguments = ("train.pretrain", recipe, "--run-dir", run, "--train.steps", "100000")
    first = command.start(*arguments, "--train.eval-every", "100000")
    wait_for(lambda: len(losses(run)) > 3, first)
    for flag in ("--resume", "--overwrite"):
        second = command(*arguments, flag)
        assert second.returncode == 2
        assert f"{run}: is in use by process {first.pid} on " in second.stderr
    assert first.poll() is None
    first.kill()
    first.wait()
    third = command(*arguments[:4], "--resume", "--train.steps", "3")
    assert third.returncode == 0, third.stderr


def test_sigusr1_saves_and_training_continues(command, recipe, tmp_path):
    run = tmp_path / "run"
    process = command.start(
        "train.pretrain",
        recipe,
        "--run-dir",
        run,
        "--train.steps",
        "100000",
        "--train.save-every",
        "100000",
        "--train.eval-every",
        "100000",
    )
    wait_for(lambda: len(losses(run)) > 3, process)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: checkpoints(run), process)
    before = max(losses(run))
    wait_for(lambda: max(losses(run)) > before + 3, process)
    process.kill()
    process.wait()
    assert latest_checkpoint(run)


def test_a_jumping_clock_changes_nothing(recipe, whole, tmp_path):
    run = tmp_path / "run"
    jump = (
        "import itertools, runpy, sys, time\n"
        "beats = itertools.count()\n"
        "time.time = lambda: 1.7e9 * (next(beats) % 3)\n"
        f"sys.argv = ['pretrain', {str(recipe)!r}, '--run-dir', {str(run)!r}]\n"
        "runpy.run_module('train.pretrain', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", jump], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, whole)
    assert all(0 <= row["seconds"] < 60 for row in read_metrics(run) if "seconds" in row)


def test_a_full_disk_loses_a_checkpoint_but_not_the_run(recipe, whole, tmp_path):
    out = tmp_path / "out"
    train = f"{sys.executable} -m train.pretrain {recipe} --run-dir /mnt/run"
    size = sum(f.stat().st_size for f in latest_checkpoint(whole).iterdir()) // 1024
    ballast = size * 3 // 2
    done = in_small_filesystem(
        # The disk fits one and a half checkpoints: the first one is kept, so the second does not fit.
        f"{train} --train.steps 6 --train.save-every 2 --train.eval-every 100 || echo status $?\n"
        f"ls /mnt/run/checkpoints\ncp -r /mnt/run {out}\n",
        f"{ballast + 64}k",
    )
    assert "the checkpoint of step 4 could not be saved: " in done.stderr
    assert "No space left" in done.stderr
    assert "the newest is step 2; training continues" in done.stderr
    assert re.search(r"the last checkpoint could not be saved: .*No space left", done.stderr)
    assert "Traceback" not in done.stderr
    assert "status 2" in done.stdout
    assert [path.name for path in checkpoints(out)] == ["000002"]
    assert latest_checkpoint(out)


def test_a_read_only_run_directory_is_refused(recipe, tmp_path):
    done = in_small_filesystem(
        f"mount -o remount,ro /mnt\n{sys.executable} -m train.pretrain {recipe} --run-dir /mnt/run", "1m"
    )
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_watchdog_reports_the_rank_that_hangs(command, recipe, tmp_path):
    # The second rank hangs in the loader after a few steps, as with a lost disk.
    script = tmp_path / "hangs.py"
    script.write_text(
        "import os, runpy, sys, time\n"
        "from data.loader import Loader\n"
        "following = Loader.next\n"
        "def stuck_disk(self, rank=0, world_size=1):\n"
        "    while rank == 1 and self.cursor >= 32:\n"
        "        time.sleep(1)\n"
        "    return following(self, rank, world_size)\n"
        "Loader.next = stuck_disk\n"
        "runpy.run_module('train.pretrain', run_name='__main__', alter_sys=True)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            script,
            recipe,
            "--run-dir",
            tmp_path / "run",
            "--train.hang-seconds",
            "12",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode != 0
    assert time.monotonic() - started < 90
    assert "the ranks wait for rank 1, in step 5. The stack of rank 1:" in done.stderr
    assert "in stuck_disk" in done.stderr


def test_a_batch_with_a_non_finite_loss_is_saved(tmp_path):
    progress = Progress(step=7)
    guard = Guard(tmp_path, 0, progress)
    batch = (torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    assert guard.check_finite(8, 1.0, 1.0, [batch])
    for _ in range(9):
        assert not guard.check_finite(8, float("nan"), 1.0, [batch])
    with pytest.raises(UserError, match=r"bad-batch-8-rank-0\.safetensors"):
        guard.check_finite(8, 1.0, float("inf"), [batch])
    kept = load_file(tmp_path / "bad-batch-8-rank-0.safetensors")
    assert torch.equal(kept["inputs.0"], batch[0])
    assert torch.equal(kept["targets.0"], batch[1])
    assert progress.skipped == 10


def test_a_loss_far_above_the_recent_mean_is_a_spike(tmp_path):
    guard = Guard(tmp_path, 0, Progress())
    generator = random.Random(0)
    usual = [3 + generator.gauss(0, 0.1) for _ in range(500)]
    assert not any(guard.is_spike(1, loss) for loss in usual)
    assert guard.is_spike(1, 4.0)
    assert len(guard.progress.recent) == RECENT
    assert not guard.is_spike(1, 3.1)


def test_a_spike_rewinds_the_run_and_continues_with_new_data(recipe, tmp_path):
    run = tmp_path / "run"
    # Noise on the weights in step 66: the next loss is far above the previous ones.
    poison = (
        "import sys, runpy, torch, train.loop as p, train.pretrain\n"
        "clip = p.clip_gradients\n"
        "state = {'calls': 0}\n"
        "def poisoned(parameters, limit):\n"
        "    state['calls'] += 1\n"
        "    norm = clip(parameters, limit)\n"
        "    if state['calls'] == 66:\n"
        "        with torch.no_grad():\n"
        "            for q in parameters.values(): q.add_(torch.randn_like(q), alpha=3.0)\n"
        "    return norm\n"
        "p.clip_gradients = poisoned\n"
        f"sys.argv = ['pretrain', {str(recipe)!r}, '--run-dir', {str(run)!r}, '--train.steps',"
        " '80', '--train.on-spike', 'rewind', '--train.eval-every', '40',"
        " '--train.save-every', '20']\n"
        "sys.exit(train.pretrain.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", poison], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"step 67: loss spike: \d+\.\d+, the recent mean is \d\.\d+", done.stderr)
    steps = [row["step"] for row in read_metrics(run) if "loss" in row]
    assert steps == list(range(1, 81))
    state = json.loads((latest_checkpoint(run) / "state.json").read_text())
    assert state["progress"]["rewound"] == 1
    # Steps 61 to 67 ran twice, the second time on the windows that follow in the data order.
    windows = int(re.search(r"data: ([\d,]+) windows/epoch", done.stderr)[1].replace(",", ""))
    assert state["loader"]["epoch"] * windows + state["loader"]["cursor"] == (80 + 7) * 8
    assert max(losses(run).values()) < 7
