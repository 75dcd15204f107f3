"""Every fine-tuning method as a command on a small run: trained weights, written files, errors."""

import json

import numpy as np
import pytest
import torch
from texts import words

from adapt.adapter import load_adapter
from adapt.datasets import task_sets
from adapt.features import extract_features
from adapt.methods import prepare_model
from cli.errors import UserError
from cli.recipes import load
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import DataConfig, TaskConfig
from data.examples import read_examples
from data.items import Item, Task
from data.tasks import load_task
from model.formats.native import checkpoints, load_run, read_file
from model.likelihood import document_bits
from model.load import load_model
from prompting.answers import answer_task
from prompting.shots import fixed_shots
from train.metrics import read_metrics
from train.optim import build_optimizers

METHODS = ("full", "top_layers", "lora", "soft_prompt")


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_get_no_gradient_and_no_optimiser_state(method, base):
    model, tokenizer = load_model(base)
    settings = FinetuneRecipe(method=method, top_layers={"layers": 1}, lora={"rank": 2})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepare_model(model, tokenizer, settings.method, settings, 0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        "full": lambda name: True,
        "top_layers": lambda name: name.startswith(("layers.1.", "norm.", "output.")),
        "lora": lambda name: ".lora_" in name,
        "soft_prompt": lambda name: name.startswith("soft_prompt."),
    }[method]
    assert set(trained) == {name for name, _ in model.named_parameters() if expected(name)}
    x = torch.arange(20)[None]
    chosen = build_optimizers(trained, settings.train)
    model(x, targets=x).backward()
    for optimizer in chosen:
        optimizer.step()
    state = {id(p) for optimizer in chosen for p in optimizer.state}
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name in trained)
        assert (id(p) in state) == (name in trained)
        if name not in trained and name in before:
            assert torch.equal(p, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_task_and_writes_a_merged_model(method, tune, rows):
    done, run = tune("--method", method, "--task.name", rows)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["trained_parameters"] > 0
    assert {"general_bits_per_byte_before", "sample_before", "sample_after"} <= summary.keys()
    assert "--- before ---" in done.stdout
    assert (run / "adapter").exists() == (method in ("lora", "soft_prompt"))
    model, tokenizer = load_run(run / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())
    # The merged model has the loss that was measured before the merge.
    task = load_task(TaskConfig(name=str(rows)), DataConfig())
    _, held_out = task_sets(task, model, tokenizer)
    x, y = held_out.batch(np.arange(len(held_out)))
    with torch.no_grad():
        loss = model(x, targets=y).item() / (y >= 0).sum().item()
    assert loss == pytest.approx(summary["loss_after"], rel=1e-3)


def test_model_card_of_a_tuned_model_names_its_data(command, tune, rows, base, tmp_path):
    from transformers import AutoModelForCausalLM

    done, run = tune("--method", "lora", "--task.name", rows)
    assert done.returncode == 0, done.stderr
    done = command("model.export", run / "merged", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained on the task of `rows.jsonl`" in card
    assert f"| Base model | {base} |" in card
    summary = json.loads((run / "summary.json").read_text())
    assert f"| Training tokens | {summary['training_tokens']:.4g} |" in card
    assert f"| Training flops | {summary['training_flops']:.4g} |" in card
    assert f"| Loss after | {summary['loss_after']:.4g} |" in card
    assert "No licence was given." in card
    assert "It was not tuned to follow instructions" in card
    ours, _ = load_run(run / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    x = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, ours(x), atol=1e-5, rtol=1e-4)


def test_early_stopping_keeps_the_best_checkpoint(tune, rows):
    done, run = tune(
        "--method",
        "full",
        "--task.name",
        rows,
        "--train.learning-rate",
        "0.3",
        "--train.patience",
        "2",
        "--train.eval-every",
        "1",
        "--train.steps",
        "50",
        "--train.save-every",
        "100",
        "--train.keep-last",
        "1",
    )
    assert done.returncode == 0, done.stderr
    scored = {r["step"]: r["bits_per_byte"] for r in read_metrics(run) if "bits_per_byte" in r}
    best = min(scored, key=scored.__getitem__)
    assert max(scored) == best + 2 < 50
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == best
    kept = next(path for path in checkpoints(run) if int(path.name) == best)
    wanted = read_file(kept, "model.safetensors")
    merged, _ = load_run(run / "merged")
    for name, p in merged.named_parameters():
        assert torch.equal(p, wanted[name])


@pytest.mark.parametrize("rate", ["30", "1e-3"])
def test_best_checkpoint_is_kept_without_patience(tune, rows, rate):
    done, run = tune(
        "--method",
        "full",
        "--task.name",
        rows,
        "--train.learning-rate",
        rate,
        "--train.eval-every",
        "1",
        "--train.steps",
        "5",
        "--train.save-every",
        "100",
    )
    assert done.returncode == 0, done.stderr
    scored = {r["step"]: r["bits_per_byte"] for r in read_metrics(run) if "bits_per_byte" in r}
    best = min(scored, key=scored.__getitem__)
    assert (best == 0) == (rate == "30")
    assert json.loads((run / "summary.json").read_text())["best_step"] == best


def test_own_examples_are_learned(tune, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"word {n}:", "completion": " yes"}) + "\n" for n in range(80)))
    done, run = tune("--examples", path, "--pack", "true", "--seq-len", "60")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["loss_after"] < summary["loss_before"] - 0.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 41: not JSON"),
        ('{"prompt": "x"}', 'line 41: no "completion"'),
        ('{"messages": []}', '"messages" is not a list of messages'),
        ('{"messages": [{"role": "user", "content": "x"}]}', "the last message is not"),
        ('{"messages": [{"role": "user"}]}', 'message 1 has no "role" and "content"'),
    ],
)
def test_malformed_example_is_named_by_its_line(line, message, foundation, tmp_path):
    from configs.schema import DataConfig

    path = tmp_path / "mine.jsonl"
    good = [json.dumps({"prompt": f"{n}", "completion": "x"}) for n in range(40)]
    path.write_text("\n".join([*good, line]) + "\n")
    with pytest.raises(UserError, match=message):
        read_examples(path, DataConfig(), foundation[1])


def test_invalid_settings_are_refused_in_one_line(tune, tmp_path, rows):
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": f"{n}", "completion": "words " * 200}) + "\n" for n in range(200)))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(long.read_text() + "{\n")
    for arguments, message in (
        (("--examples", long), "long.jsonl: line "),
        (("--examples", bad), "bad.jsonl: line 201: not JSON"),
        (("--task.name", bad), 'bad.jsonl: line 1: no "text"'),
        (("--method", "features"), 'method = "features" classifies: it needs a [task]'),
        (("--method", "top_layers", "--top-layers.layers", "9"), "this model has 2 layers"),
        (("--lora.targets", "w_q"), 'no layer "w_q"; did you mean "wq"'),
        (("--lora.rank", "99"), "lora.rank = 99 is above 32, the smaller dimension of wq"),
        (("--general", "folk-tunes"), "is the training corpus: name another corpus"),
        (("--examples", long, "--task.name", rows), "give examples or a [task], not both"),
    ):
        done, run = tune(*arguments, name="refused")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr.strip().splitlines()[-1]
        assert not (run / "merged").exists()


def test_merge_command_accepts_only_the_base_of_the_adapter(command, base, tune, rows, recipe, tmp_path):
    for method in ("lora", "soft_prompt"):
        done, run = tune("--method", method, "--task.name", rows, name=method)
        assert done.returncode == 0, done.stderr
        done = command("adapt.merge", base, run / "adapter", tmp_path / f"merged-{method}")
        assert done.returncode == 0, done.stderr
        again, _ = load_run(tmp_path / f"merged-{method}")
        wanted, _ = load_run(run / "merged")
        x = torch.arange(20)[None]
        with torch.no_grad():
            torch.testing.assert_close(again(x), wanted(x))
        greedy = ("--temperature", "0", "--max-new-tokens", "12")
        merged = command("model.sample", run / "merged", *greedy)
        unmerged = command("model.sample", base, "--adapter", run / "adapter", *greedy)
        assert merged.returncode == 0, merged.stderr
        if method == "lora":
            assert unmerged.stdout == merged.stdout, unmerged.stderr
        else:
            assert "peft_type PROMPT_TUNING cannot stay unmerged" in unmerged.stderr
    there = command("adapt.merge", base, run / "adapter", tmp_path / "merged-lora")
    assert there.returncode == 2
    other = tmp_path / "other"
    assert (
        command("train.pretrain", recipe, "--run-dir", other, "--train.seed", "1", "--train.steps", "1").returncode == 0
    )
    refused = command("adapt.merge", other, run / "adapter", tmp_path / "wrong")
    assert refused.returncode == 2
    assert "was trained on another base model" in refused.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "wrong").exists()


def test_methods_combine_text_then_task_then_prompts(tune, rows, tmp_path):
    done, text = tune("--method", "full", "--data.corpus", tmp_path / "tunes.txt", name="text")
    assert done.returncode == 2  # the file does not exist
    (tmp_path / "tunes.txt").write_text(words(3, 8000))
    done, text = tune("--method", "full", "--data.corpus", tmp_path / "tunes.txt", name="text")
    assert done.returncode == 0, done.stderr
    assert "0 frozen" in done.stderr
    told = done.stderr.index("before: validation loss")
    assert told < done.stderr.index("step 4 ")
    prompt = ("--method", "soft_prompt", "--task.name", rows, "--base", text / "merged")
    done, soft = tune(*prompt, name="soft")
    assert done.returncode == 0, done.stderr
    # An adapter on a model with a soft prompt: the merged model has both.
    done, both = tune("--method", "lora", "--task.name", rows, "--base", soft / "merged", name="both")
    assert done.returncode == 0, done.stderr
    saved = json.loads((both / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    merged, tokenizer = load_run(both / "merged")
    assert merged.config.soft_tokens == 3
    again = load_adapter(load_run(soft / "merged")[0], both / "adapter")
    x = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(x), again(x))
    items = [Item(str(n), f"{c} x", {"red": "warm", "blue": "cold"}[c]) for n, c in enumerate(["red", "blue"] * 3)]
    task = Task("Text", "Label", ["cold", "warm"], items, [], items)
    answers = answer_task(merged, tokenizer, task, fixed_shots(task, 2, 0))
    assert len(answers["correct"]) == 6
    texts = [words(5, 60)]  # longer than the context without the soft prompt
    assert document_bits(merged, tokenizer, texts)[0] > 0
    shapes = extract_features(merged, tokenizer, ["red a b"], "mean").shape
    assert shapes == (1, 3, 32)
    refused, _ = tune(*prompt[:4], "--base", soft / "merged", name="twice")
    assert refused.returncode == 2
    assert "already has a soft prompt of 3 vectors" in refused.stderr


def test_the_shipped_recipes_name_every_method():
    from pathlib import Path

    paths = sorted(Path("configs/finetune").glob("service-*.toml"))
    assert {load(FinetuneRecipe, path).method for path in paths} == {*METHODS, "features"}
