"""One process, DDP and FSDP: the same losses, and interchangeable checkpoints."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.formats.native import latest_checkpoint, load_run, read_file
from train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
FSDP = ("--train.parallel", "fsdp")


def losses(run):
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def evaluations(run):
    return [row["bits_per_byte"] for row in read_metrics(run) if "bits_per_byte" in row]


def assert_close(run, whole):
    expected, got = losses(whole), losses(run)
    assert got.keys() == expected.keys()
    for step, loss in expected.items():
        assert got[step] == pytest.approx(loss, rel=1e-5), step
    assert evaluations(run) == pytest.approx(evaluations(whole), rel=1e-5)


# Prompts and completions of very different lengths, so that ranks have unequal numbers of target
# tokens; three validation examples, so that a fourth rank has none.
EXAMPLES = """
import sys
from pathlib import Path
from cli.recipes import load
from configs.schema import Recipe
from data.examples import Examples, encode_completions
from model.build import build_model
from train.distributed import Ranks
from train.loop import Trainer
from train.pretrain import load_data
from train.run_directory import start_run

path, run, parallel, micro = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
recipe = load(Recipe, path)
config = recipe.train.model_copy(
    update={"steps": 30, "parallel": parallel, "micro_batch_size": micro, "eval_every": 10}
)
with Ranks("cpu") as ranks:
    tokenizer, *_ = load_data(recipe)
    pairs = [("a b c d " * n, " e" * (1 + 3 * (n % 4))) for n in range(1, 9)]
    texts = encode_completions(pairs, tokenizer)
    sets = Examples(texts, 64, tokenizer), Examples(texts[:3], 64, tokenizer)
    model = build_model(recipe.model, tokenizer.vocab_size).init_weights(0)
    if ranks.is_main:
        lock = start_run(run, recipe, tokenizer)
    ranks.sum(0)
    Trainer(model, *sets, tokenizer, config, run, ranks).train()
"""


def fit_examples(recipe, tmp_path, processes, parallel, micro):
    script, run = tmp_path / "examples.py", tmp_path / f"{parallel}-{processes}-{micro}"
    script.write_text(EXAMPLES)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            script,
            recipe,
            run,
            parallel,
            str(micro),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
def test_ddp_and_fsdp_give_the_losses_of_one_process(recipe, tmp_path):
    whole = fit_examples(recipe, tmp_path, 1, "ddp", 8)
    assert len(losses(whole)) == 30
    for processes, parallel, micro in [(2, "ddp", 4), (2, "ddp", 1), (2, "fsdp", 4), (2, "fsdp", 1), (4, "fsdp", 2)]:
        assert_close(fit_examples(recipe, tmp_path, processes, parallel, micro), whole)


@pytest.fixture(scope="module")
def four(command, recipe, tmp_path_factory):
    """A run sharded over four ranks, and a run of ten steps in one process."""
    folder = tmp_path_factory.mktemp("four")
    done = command("train.pretrain", recipe, "--run-dir", folder / "one")
    assert done.returncode == 0, done.stderr
    first = command.torchrun(
        4,
        "train.pretrain",
        recipe,
        "--run-dir",
        folder / "four",
        *FSDP,
        "--train.micro-batch-size",
        "1",
        "--train.steps",
        "6",
        "--train.eval-every",
        "5",
        "--train.save-every",
        "3",
        "--train.schedule",
        "wsd",
        "--train.cooldown",
        "0",
    )
    assert first.returncode == 0, first.stderr
    return folder


@pytest.mark.slow
def test_a_sharded_checkpoint_loads_as_the_whole_model(four):
    checkpoint = latest_checkpoint(four / "four")
    shards = sorted(path.name for path in checkpoint.glob("model-*"))
    assert shards == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    sizes = [(checkpoint / name).stat().st_size for name in shards]
    assert max(sizes) < 1.5 * min(sizes)
    model, _ = load_run(four / "four")
    other, _ = load_run(four / "one")
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    assert (four / "four" / "sample.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "parallel"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_a_run_of_four_ranks_resumes_on_fewer(command, recipe, four, tmp_path, processes, parallel):
    run, same = tmp_path / "run", tmp_path / "same"
    settings = ("--resume", "--train.steps", "12", "--train.schedule", "wsd", "--train.cooldown", "0")
    shutil.copytree(four / "four", run)
    shutil.copytree(four / "four", same)
    arguments = ("train.pretrain", recipe, "--run-dir", run, *settings)
    arguments = (*arguments, "--train.parallel", parallel)
    done = command.torchrun(processes, *arguments) if processes > 1 else command(*arguments)
    assert done.returncode == 0, done.stderr
    done = command.torchrun(
        4, "train.pretrain", recipe, "--run-dir", same, *settings, *FSDP, "--train.micro-batch-size", "1"
    )
    assert done.returncode == 0, done.stderr
    assert_close(run, same)
    moments = [read_file(latest_checkpoint(r), "optimizer.safetensors") for r in (run, same)]
    assert moments[0].keys() == moments[1].keys()
    for key, value in moments[1].items():
        torch.testing.assert_close(moments[0][key], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_muon_activation_checkpointing_and_ema_match_on_two_ranks(command, recipe, tmp_path, parallel):
    settings = (
        "--train.optimizer",
        "muon",
        "--train.activation-checkpointing",
        "true",
        "--train.ema",
        "0.9",
        "--train.learning-rate",
        "1e-3",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    done = command("train.pretrain", recipe, "--run-dir", one, *settings)
    assert done.returncode == 0, done.stderr
    done = command.torchrun(2, "train.pretrain", recipe, "--run-dir", two, *settings, "--train.parallel", parallel)
    assert done.returncode == 0, done.stderr
    assert_close(two, one)
    for name in ("model", "ema", "optimizer"):
        first, second = (read_file(latest_checkpoint(r), f"{name}.safetensors") for r in (one, two))
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-5)


def test_ranks_share_the_cores(tmp_path):
    script = tmp_path / "cores.py"
    script.write_text(
        "import os, torch\nfrom train.distributed import Ranks\nwith Ranks('cpu') as ranks:\n"
        "    mine = sorted(os.sched_getaffinity(0)), torch.get_num_threads()\n"
        "    found = ranks.gather(mine)\n    print(found if ranks.is_main else '', flush=True)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    (mine, threads), (other, same) = ast.literal_eval(done.stdout.strip())
    here = sorted(os.sched_getaffinity(0))
    if len(here) == 1:
        assert mine == other == here
    else:
        assert mine + other == here[: 2 * (len(here) // 2)]
    assert threads == same == max(1, len(here) // 2)
