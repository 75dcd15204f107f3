"""Asks a model a task's items by prompt, and scores what it answers."""

import time

from configs.console import track
from data.metrics import score_answer
from data.tasks import Task
from model.transformer import Transformer
from prompting.score import rank_completions, shared_prefix, write_answer
from prompting.shots import Choose
from prompting.templates import fitting
from tokenizer.bpe import Tokenizer

WRITTEN = 32, 256  # tokens that an open answer may have: as training labels, within these bounds


def task_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: Choose,
    split: str = "test",
    calibrate: bool = False,
    per_token: bool = False,
    write: bool = False,
) -> dict:
    """How right each item of a split was answered, mean prompt tokens, seconds per request.

    A label of a closed set is chosen by its likelihood (see `rank_completions`), unless `write`;
    anything else is written. Shots that do not fit the context are left out and counted.
    """
    items = getattr(task, split)
    known = task.labels or sorted({item.label for item in task.train})
    completions = [task.completion(label) for label in known]
    longest = max((len(ids) for ids in tokenizer.encode_batch(completions)), default=0)
    if not task.labels:
        longest = min(max(longest, WRITTEN[0]), WRITTEN[1])
    room = model.config.context - longest
    started = time.perf_counter()
    made = [fitting(task, item.text, shots(item.text), tokenizer, room) for item in items]
    prompts = [prompt for prompt, _ in made]
    ranked = bool(task.labels) and not write
    prefix, prior = shared_prefix(model, tokenizer, prompts), None
    if ranked and calibrate:
        empty, _ = fitting(task, "N/A", shots("N/A"), tokenizer, room)
        prior = rank_completions(model, tokenizer, empty, completions, prefix).scores
    correct: list[float] = []
    tokens = 0
    for item, prompt in track(zip(items, prompts, strict=True), "answering", len(items)):
        if ranked:
            answer = rank_completions(
                model, tokenizer, prompt, completions, prefix, prior or (), per_token
            )
            correct.append(float(task.labels[answer.choice] == item.label))
            tokens += answer.prompt_tokens
        else:
            text = write_answer(model, tokenizer, prompt, task.stop, longest, prefix)
            correct.append(score_answer(task.kind, text, item.label))
            tokens += 1 + len(tokenizer.encode(prompt))
    return {
        "correct": correct,
        "shots_left_out": sum(dropped for _, dropped in made),
        "prompt_tokens": tokens / len(items),
        "seconds_per_request": (time.perf_counter() - started) / len(items),
    }
