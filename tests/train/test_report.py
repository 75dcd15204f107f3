"""Reports, profiles, preflight messages and TensorBoard."""

import json
import re

import pytest
import torch

from cli.errors import UserError
from train.metrics import format_duration
from train.plot import load_curves
from train.preflight import free_memory
from train.profiler import lookup_peak_flops, parse_window, peak_flops


@pytest.fixture(scope="module")
def run(command, recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("report") / "first & best"
    done = command(
        "train.pretrain",
        recipe,
        "--run-dir",
        run,
        "--profile",
        "3:5",
        "--train.price-per-hour",
        "3600",
        "--train.tensorboard",
        "true",
    )
    assert done.returncode == 0, done.stderr
    run.with_suffix(".err").write_text(done.stderr)
    return run


def test_a_plot_is_a_figure_and_a_summary_of_every_run(command, run, tmp_path):
    path = tmp_path / "curves.png"
    done = command("train.plot", run, run, "--out", path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
    assert done.stdout.count("run first & best ") == 2
    assert done.stdout.count("best bits/byte") == 2


def test_a_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no metrics"):
        load_curves(tmp_path)


def test_a_profile_covers_the_requested_steps(run):
    trace = json.loads((run / "profile" / "rank-0.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum("homegrown::attention_backward" in name for name in names) >= 2 * 2 * 2
    assert "homegrown::attention" in (run / "profile" / "rank-0.txt").read_text()


def test_preflight_prints_memory_and_compute_optimal_size(run):
    said = run.with_suffix(".err").read_text()
    found = re.search(r"memory: weights .* activations .* \(4 windows\) = .* of (.*) GiB free", said)
    assert float(found[1]) > 0.5
    assert re.search(r"the model is [\d.,]+ times the compute-optimal size for 5,120 tokens", said)
    assert re.search(r"step 10  10/10 steps .* total price \d+\.\d\d", said)


def test_invalid_profile_windows_are_refused():
    assert parse_window("10:13") == (10, 13)
    for wrong in ("10", "13:10", "0:3", "a:b"):
        with pytest.raises(UserError, match=f"--profile {wrong}: must be FIRST:LAST"):
            parse_window(wrong)


def test_peak_flops_match_the_data_sheets_or_are_unknown():
    assert lookup_peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert lookup_peak_flops("NVIDIA H100 PCIe") == 756e12
    assert lookup_peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert lookup_peak_flops("Tesla K80") is None
    assert peak_flops(torch.device("cpu"), True) is None


def test_free_memory_and_durations_are_readable():
    assert 2**28 < free_memory(torch.device("cpu")) < 2**44
    assert [format_duration(s) for s in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


def test_tensorboard_has_every_step(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"loss", "lr", "grad_norm", "bits_per_byte"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))
