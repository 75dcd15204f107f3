"""lm-eval on our models gives the scores of the same weights in transformers."""

import json

import pytest
import torch
from texts import words

from cli.errors import UserError
from compare.lm_eval import as_lm
from configs.schema import ModelConfig
from model.build import build_model
from model.export import model_card
from model.formats.huggingface import save_huggingface
from model.load import load_model

TASK = """
task: local_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/items.jsonl}}
test_split: test
{rest}
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: [" a"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""
WHOLE = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recipe):
    from cli.recipes import load
    from configs.schema import Recipe
    from train.pretrain import load_data

    made = tmp_path_factory.mktemp("lm-eval")
    tokenizer, *_ = load_data(load(Recipe, recipe))
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)
    model = build_model(config, tokenizer.vocab_size).init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    save_huggingface(model, tokenizer, made / "model", model_card("x", model, "mit"))
    rows = [{"text": words(n, 6), "choices": [words(90 + n, 1), words(50 + n, 3)], "label": n % 2} for n in range(12)]
    (made / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def requests(rows):
    from lm_eval.api.instance import Instance

    return [Instance("x", {}, args, 0) for args in rows]


def test_scores_and_text_equal_those_of_lm_evals_own_model(folder):
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_model(folder / "model")
    ours = as_lm(model, tokenizer)
    # lm-eval puts a prefix token before a whole text itself; the tokenizer would add a second one.
    theirs = HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=1, add_bos_token=False)
    start = tokenizer.backend.id_to_token(tokenizer.separator_id)
    pairs = [(words(n, 5).strip(), " " + words(n + 9, 1 + n % 4).strip()) for n in range(10)]
    begun = [(start + context, continuation) for context, continuation in pairs]
    expected = theirs.loglikelihood(requests(begun), disable_tqdm=True)
    found = ours.loglikelihood(requests(pairs))
    for (nats, best), (their_nats, their_best) in zip(found, expected, strict=True):
        assert nats == pytest.approx(their_nats, rel=1e-4)
        assert best == their_best
    texts = [(words(n, 40),) for n in range(3)]
    whole = theirs.loglikelihood_rolling(requests(texts), disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests(texts)) == pytest.approx(whole, rel=1e-4)
    how = {"until": [" a"], "max_gen_toks": 8, "do_sample": False}
    asked = [(start + context, how) for context, _ in pairs]
    written = theirs.generate_until(requests(asked), disable_tqdm=True)
    assert ours.generate_until(requests([(context, how) for context, _ in pairs])) == written


def test_a_long_request_is_refused_and_not_truncated(folder):
    model, tokenizer = load_model(folder / "model")
    with pytest.raises(UserError, match="does not fit the context of 512"):
        as_lm(model, tokenizer).loglikelihood(requests([("word " * 900, "x")]))


@pytest.mark.parametrize(("rest", "metric"), [(CHOICE, "acc"), (WRITE, "exact_match"), (WHOLE, "bits_per_byte")])
def test_a_local_task_runs(command, folder, tmp_path, rest, metric):
    (tmp_path / "task.yaml").write_text(TASK.format(folder=folder, rest=rest))
    done = command(
        "compare.lm_eval",
        folder / "model",
        "--tasks",
        "local_words",
        "--include",
        tmp_path,
        "--limit",
        "6",
        "--out",
        tmp_path / "out.json",
    )
    assert done.returncode == 0, done.stderr
    assert "local_words" in done.stdout
    (values,) = json.loads((tmp_path / "out.json").read_text())["results"].values()
    value = next(value for key, value in values.items() if key.startswith(f"{metric},"))
    assert value >= 0
    unknown = command("compare.lm_eval", folder / "model", "--tasks", "no_such_task")
    assert unknown.returncode == 2
    assert 'lm-eval has no task "no_such_task"' in unknown.stderr.strip().splitlines()[-1]
