import pytest
import torch
from texts import words

from configs.cli import UserError
from data.tasks import Item, Task
from prompting.score import rank_completions
from prompting.shots import fixed_shots, neighbour_shots, no_shots
from prompting.templates import few_shot

ITEMS = [Item(str(n), words(n, 12).strip(), "odd" if n % 2 else "even") for n in range(40)]
TASK = Task("Text", "Kind", ["even", "odd"], ITEMS[:30], ITEMS[30:35], ITEMS[35:])


def test_a_few_shot_prompt_is_solved_examples_then_the_question():
    shots = [Item("a", "one", "odd"), Item("b", "two", "even")]
    assert few_shot(TASK, "three", shots) == (
        "Text: one\nKind: odd\n\nText: two\nKind: even\n\nText: three\nKind:"
    )
    assert few_shot(TASK, "three", no_shots("three")) == "Text: three\nKind:"


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


def test_a_prompt_that_does_not_fit_is_refused_not_cut(foundation):
    model, tokenizer = foundation
    with pytest.raises(UserError, match="do not fit the model's context of 8192"):
        rank_completions(model, tokenizer, "word " * 9000, [" yes\n"])
