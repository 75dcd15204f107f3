"""Run directories of version 0.1 still load and resume: former keys in config.toml, average.safetensors."""

import re

import torch

from model.formats.native import latest_checkpoint, load_run, read_file, read_manifest, write_checkpoint
from train.metrics import read_metrics

FORMER = {"ema": "average", "activation_checkpointing": "recompute", "nope_every": "unrotated_every"}


def as_version_0_1(run):
    """Rewrite a run directory in the layout of version 0.1."""
    text = (run / "config.toml").read_text()
    for name, former in FORMER.items():
        text, count = re.subn(rf"(?m)^{name} = ", f"{former} = ", text)
        assert count
    (run / "config.toml").write_text(text)
    checkpoint = latest_checkpoint(run)
    manifest = read_manifest(checkpoint)
    files = {name.replace("ema.", "average."): read_file(checkpoint, name) for name in manifest["files"]}
    assert "average.safetensors" in files
    info = {name: manifest[name] for name in manifest.keys() - {"step", "files"}}
    write_checkpoint(run, manifest["step"], files, info)


def test_a_run_of_version_0_1_loads_and_resumes(command, recipe, tmp_path):
    runs = [tmp_path / name for name in ("now", "former")]
    for run in runs:
        done = command("train.pretrain", recipe, "--run-dir", run, "--train.ema", "0.9", "--train.steps", "6")
        assert done.returncode == 0, done.stderr
    as_version_0_1(runs[1])
    weights = [load_run(run)[0].state_dict() for run in runs]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
    for run in runs:
        done = command(
            "train.pretrain", recipe, "--run-dir", run, "--train.ema", "0.9", "--train.steps", "9", "--resume"
        )
        assert done.returncode == 0, done.stderr
    losses = [[row.get("loss") for row in read_metrics(run)] for run in runs]
    assert losses[0] == losses[1]
    assert read_manifest(latest_checkpoint(runs[1]))["files"].keys() >= {"ema.safetensors"}
