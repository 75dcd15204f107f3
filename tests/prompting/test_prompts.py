import json
import re

import pytest
import torch
from texts import words

from cli.errors import UserError
from data.items import Item, Task
from prompting.answers import answer_task
from prompting.likelihood import generate_answer, rank_completions, shared_prefix
from prompting.shots import few_shot, fit_prompt, fixed_shots, neighbour_shots, zero_shot

ITEMS = [Item(str(n), words(n, 12).strip(), "odd" if n % 2 else "even") for n in range(40)]
TASK = Task("Text", "Kind", ["even", "odd"], ITEMS[:30], ITEMS[30:35], ITEMS[35:])


def test_few_shot_prompt_has_labelled_examples_then_the_input():
    shots = [Item("a", "one", "odd"), Item("b", "two", "even")]
    assert few_shot(TASK, "three", shots) == ("Text: one\nKind: odd\n\nText: two\nKind: even\n\nText: three\nKind:")
    assert few_shot(TASK, "three", zero_shot("three")) == "Text: three\nKind:"


def test_fixed_shots_are_the_same_for_every_input_and_come_from_training():
    choose = fixed_shots(TASK, 4, seed=0)
    assert choose("a") == choose("b")
    assert set(choose("a")) <= set(TASK.train)
    assert len(choose("a")) == 4
    assert choose("a") != fixed_shots(TASK, 4, seed=1)("a")


def test_neighbours_are_training_items_nearest_last():
    choose = neighbour_shots(TASK, 3)
    for item in TASK.train[:5]:
        found = choose(item.text)
        assert found[-1] == item
        assert len(found) == 3
    for item in TASK.test:
        assert item not in choose(item.text)


def test_ranking_equals_scoring_each_whole_text(foundation):
    model, tokenizer = foundation
    prompt = few_shot(TASK, "three", TASK.train[:2])
    completions = [" odd\n", " even\n", " something quite different\n"]

    def score(completion):
        head = [tokenizer.separator_id, *tokenizer.encode(prompt)]
        ids = torch.tensor([head + tokenizer.encode(completion)])
        with torch.no_grad():
            logp = model(ids[:, :-1])[0].double().log_softmax(-1)
        picked = logp.gather(1, ids[0, 1:, None])[len(head) - 1 :]
        return picked.sum().item()

    answer = rank_completions(model, tokenizer, prompt, completions)
    scores = [score(completion) for completion in completions]
    assert answer.choice == scores.index(max(scores))
    assert answer.prompt_tokens == 1 + len(tokenizer.encode(prompt))
    assert answer.scores == pytest.approx(scores, abs=1e-3)


def test_prompt_above_the_context_is_refused_not_truncated(foundation):
    model, tokenizer = foundation
    with pytest.raises(UserError, match="do not fit the model's context of 8192"):
        rank_completions(model, tokenizer, "word " * 9000, [" yes\n"])


LABELS = [" odd\n", " even\n", " something quite different\n"]


def test_prefix_cache_does_not_change_scores(foundation):
    model, tokenizer = foundation
    prompts = [few_shot(TASK, item.text, TASK.train[:4]) for item in TASK.test]
    prefix = shared_prefix(model, tokenizer, prompts)
    assert len(prefix.ids) > 0.7 * len(tokenizer.encode(prompts[0]))
    for prompt in [*prompts, "Another prompt that does not begin so:"]:
        with_it = rank_completions(model, tokenizer, prompt, LABELS, prefix)
        without = rank_completions(model, tokenizer, prompt, LABELS)
        assert with_it.scores == pytest.approx(without.scores, abs=1e-3)
        assert with_it.prompt_tokens == without.prompt_tokens
    assert shared_prefix(model, tokenizer, ["one thing", "another"]) is None
    (same,) = {shared_prefix(model, tokenizer, ["the same text"] * 2).ids.__len__()}
    assert same == len(tokenizer.encode("the same text"))  # one token remains for the logits


def test_calibration_subtracts_the_content_free_scores(foundation):
    model, tokenizer = foundation
    empty = rank_completions(model, tokenizer, few_shot(TASK, "N/A", TASK.train[:2]), LABELS)
    prompt = few_shot(TASK, "three", TASK.train[:2])
    plain = rank_completions(model, tokenizer, prompt, LABELS)
    calibrated = rank_completions(model, tokenizer, prompt, LABELS, prior=empty.scores)
    expected = [a - b for a, b in zip(plain.scores, empty.scores, strict=True)]
    assert calibrated.scores == pytest.approx(expected, abs=1e-4)
    assert calibrated.choice == expected.index(max(expected))
    mean = rank_completions(model, tokenizer, prompt, LABELS, per_token=True)
    lengths = [len(tokenizer.encode(label)) for label in LABELS]
    shares = [score / n for score, n in zip(plain.scores, lengths, strict=True)]
    assert mean.scores == pytest.approx(shares, abs=1e-4)


def test_shots_are_left_out_until_the_prompt_fits(foundation):
    _, tokenizer = foundation
    whole = few_shot(TASK, "three", TASK.train[:5])
    size = 1 + len(tokenizer.encode(whole))
    assert fit_prompt(TASK, "three", TASK.train[:5], tokenizer, size) == (whole, 0)
    prompt, dropped = fit_prompt(TASK, "three", TASK.train[:5], tokenizer, size - 1)
    assert (prompt, dropped) == (few_shot(TASK, "three", TASK.train[1:5]), 1)
    with pytest.raises(UserError, match="does not fit the 5"):
        fit_prompt(TASK, "three", TASK.train[:5], tokenizer, 5)


def test_an_instruction_comes_first():
    task = TASK._replace(instruction="Odd or even?")
    prompt = few_shot(task, "three", TASK.train[:1])
    assert prompt.startswith("Odd or even?\n\nText: ")
    assert prompt.count("Odd or even?") == 1


def test_generated_answer_stops_at_the_stop_string(foundation):
    model, tokenizer = foundation
    prompt = "Number: 1\nWord: one\n\nNumber: 2\nWord: two\n\nNumber: 3\nWord:"
    assert generate_answer(model, tokenizer, prompt, "\n") == "three"


def test_prefix_cache_does_not_change_generated_answers(foundation):
    model, tokenizer = foundation
    prompts = [few_shot(TASK, item.text, TASK.train[:3]) for item in TASK.test[:2]]
    prefix = shared_prefix(model, tokenizer, prompts)
    length = prefix.cache.length
    for prompt in [*prompts, "Number: 1\nWord:"]:
        written = generate_answer(model, tokenizer, prompt, "\n", 8, prefix)
        assert written == generate_answer(model, tokenizer, prompt, "\n", 8)
    assert prefix.cache.length == length


def test_labels_are_ranked_and_calibrated(foundation):
    model, tokenizer = foundation
    chosen = TASK.train[:4]
    task = TASK._replace(test=TASK.test[:3])
    prompts = [few_shot(task, item.text, chosen) for item in task.test]
    completions = [task.completion(label) for label in task.labels]
    empty = few_shot(task, "N/A", chosen)
    prior = rank_completions(model, tokenizer, empty, completions).scores

    def right(choices):
        return [float(c == i.label) for c, i in zip(choices, task.test, strict=True)]

    def ranked(**options):
        return [task.labels[rank_completions(model, tokenizer, p, completions, **options).choice] for p in prompts]

    for options, expected in (
        ({}, ranked()),
        ({"calibrate": True}, ranked(prior=prior)),
        ({"per_token": True}, ranked(per_token=True)),
    ):
        found = answer_task(model, tokenizer, task, lambda text: chosen, **options)
        assert found["correct"] == right(expected), options


def test_open_answers_are_generated_and_scored(foundation):
    model, tokenizer = foundation
    words_of = {"1": "one", "2": "two", "3": "three", "4": "four"}
    items = [Item(n, n, word) for n, word in words_of.items()]
    task = Task("Number", "Word", [], items[:2], [], items[2:], "naming")
    result = answer_task(model, tokenizer, task, lambda text: items[:2])
    assert result["correct"] == [1.0, 1.0]
    free = task._replace(kind="completion", test=[Item("x", "3", "three and more")])
    (share,) = answer_task(model, tokenizer, free, lambda text: items[:2])["correct"]
    assert 0 < share < 1


def test_evaluate_command_scores_a_task(command, recipe, cache, tmp_path):
    run, path = tmp_path / "run", tmp_path / "rows.jsonl"
    done = command("train.pretrain", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    path.write_text(
        "".join(
            json.dumps(
                {
                    "text": f"{'red' if n % 2 else 'blue'} {n}",
                    "label": "ab"[n % 2],
                    "split": "train" if n < 40 else "validation" if n < 50 else "test",
                }
            )
            + "\n"
            for n in range(70)
        )
    )
    args = (
        "configs/prompt/tune-key.toml",
        "--model",
        run,
        "--task.name",
        path,
        "--shots",
        "2",
        "--data.cache-dir",
        cache,
    )
    done = command("prompting.evaluate", *args, "--chosen", "rows.jsonl:2", "rows.jsonl:1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["low"] <= found["score"] <= found["high"]
    assert found["score"] == sum(found["correct"]) / 20
    shown = re.findall(r"(?:red|blue) (\d+)", done.stderr)
    assert shown[:2] == ["1", "0"]  # the shots in the given order, then the input
    assert int(shown[2]) >= 50
    ranked = command("prompting.evaluate", *args, "--choose", "nearest", "--calibrate", "true")
    assert ranked.returncode == 0, ranked.stderr
    assert "accuracy, 20 test items" in ranked.stdout
