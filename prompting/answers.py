"""Asks a model a task's items by prompt, and scores what it answers."""

import math
import time
from collections.abc import Callable, Sequence

from cli.console import track
from data.items import Task
from data.metrics import score_answer
from model.flops import forward_flops
from model.transformer import Transformer
from prompting.likelihood import rank_completions, shared_prefix, write_answer
from prompting.shots import Choose
from prompting.templates import fitting
from tokenizer.bpe import Tokenizer

WRITTEN = 32, 256  # tokens that an open answer may have: as training labels, within these bounds


def write_prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: Choose,
    texts: Sequence[str],
    context: Callable[[str], str] | None = None,
) -> tuple[list[str], int]:
    """The prompt of every input, each with room for the answer, and how many shots did not fit.

    `context` gives what stands before the rest of an input's prompt; it is never cut either.
    """
    room = model.config.context - answer_room(tokenizer, task)
    prompts, dropped = [], 0
    for text in texts:
        before = context(text) if context else ""
        left = room - len(tokenizer.encode(before))
        prompt, count = fitting(task, text, shots(text), tokenizer, left)
        prompts.append(before + prompt)
        dropped += count
    return prompts, dropped


def answer_room(tokenizer: Tokenizer, task: Task) -> int:
    """Tokens that an answer may have: the longest label's, of open ones that of training items."""
    known = task.labels or sorted({item.label for item in task.train})
    encoded = tokenizer.encode_batch([task.completion(label) for label in known])
    longest = max(map(len, encoded), default=0)
    return longest if task.labels else min(max(longest, WRITTEN[0]), WRITTEN[1])


def task_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: Choose,
    split: str = "test",
    calibrate: bool = False,
    per_token: bool = False,
    write: bool = False,
    context: Callable[[str], str] | None = None,
) -> dict:
    """How right each item of a split was answered, and per request tokens, FLOPs and seconds.

    A label of a closed set is chosen by its likelihood (see `rank_completions`), unless `write`;
    anything else is written. Shots that do not fit the context are left out and counted. Where
    labels are ranked, "confidence" is the share of the chosen one's likelihood.
    """
    items = getattr(task, split)
    completions = [task.completion(label) for label in task.labels]
    started = time.perf_counter()
    prompts, dropped = write_prompts(model, tokenizer, task, shots, [item.text for item in items], context)
    ranked = bool(task.labels) and not write
    prefix, prior = shared_prefix(model, tokenizer, prompts), None
    soft = model.config.soft_tokens
    read = soft + len(prefix.ids) if prefix else 0
    flops = forward_flops(model, read, 0, read)  # once for all items
    if ranked and calibrate:
        (empty,), _ = write_prompts(model, tokenizer, task, shots, ["N/A"], context)
        answer = rank_completions(model, tokenizer, empty, completions, prefix)
        prior, read, flops = answer.scores, read + answer.read_tokens, flops + answer.flops
    correct, confidence, tokens = [], [], 0
    for item, prompt in track(zip(items, prompts, strict=True), "answering", len(items)):
        if ranked:
            answer = rank_completions(model, tokenizer, prompt, completions, prefix, prior or (), per_token)
            correct.append(float(task.labels[answer.choice] == item.label))
            if not per_token:  # means over tokens are no likelihoods
                best = max(answer.scores)
                confidence.append(1 / sum(math.exp(s - best) for s in answer.scores))
            tokens += answer.prompt_tokens
            read += answer.read_tokens
            flops += answer.flops
        else:
            room = answer_room(tokenizer, task)
            text = write_answer(model, tokenizer, prompt, task.stop, room, prefix)
            correct.append(score_answer(task.kind, text, item.label))
            whole = 1 + len(tokenizer.encode(prompt))
            known = soft + len(prefix.ids) if prefix else 0
            whole += soft
            new = 1 + len(tokenizer.encode(text))
            tokens += whole
            read += whole - known + new
            flops += forward_flops(model, whole - known, 1, whole + known)
            flops += forward_flops(model, new, new, 2 * whole)
    count = len(items)
    return {
        "correct": correct,
        **({"confidence": confidence} if confidence else {}),
        "shots_left_out": dropped,
        "prompt_tokens": tokens / count,
        "read_tokens": read / count,
        "flops_per_request": flops / count,
        "seconds_per_request": (time.perf_counter() - started) / count,
    }
