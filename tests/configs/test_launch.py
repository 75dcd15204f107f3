"""The launch files for torchrun, SLURM and SkyPilot."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "configs" / "launch"


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_launch_scripts_are_valid_bash(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def test_the_skypilot_file_has_the_required_keys():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"name", "resources", "num_nodes", "setup", "run", "workdir"} <= task.keys()
    assert (ROOT / task["envs"]["RECIPE"]).exists()
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-nc", script], check=True)


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch", "skypilot.yaml"])
def test_paths_in_launch_files_exist(name):
    text = (LAUNCH / name).read_text()
    for path in re.findall(r"configs/[\w/.-]+", text):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_torchrun_recipe_trains(recipe, tmp_path):
    run = tmp_path / "run"
    done = subprocess.run(
        ["bash", LAUNCH / "torchrun.sh", recipe, "--run-dir", run],
        env=os.environ | {"HEAD": "localhost", "NODES": "1", "GPUS": "2", "PORT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints" / "000010").exists()


@pytest.mark.slow
def test_the_slurm_recipe_trains(recipe, tmp_path):
    """With two tasks, and stubs for the two SLURM commands that the script calls."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    (tmp_path / "srun").write_text(
        '#!/bin/sh\nfor task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done\nwait\n'
    )
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    run = tmp_path / "run"
    slurm = {
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", recipe, "--run-dir", run],
        cwd=ROOT,
        env=os.environ | slurm,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks x 1 x 4" in done.stderr
    assert (run / "checkpoints" / "000010").exists()
