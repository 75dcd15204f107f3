"""Prompt a model with the items of a task and score its answers."""

import math
import time
from collections.abc import Callable, Sequence

from cli.console import track
from data.items import Item, Task
from data.metrics import score_answer
from model.flops import forward_flops
from model.transformer import Transformer
from prompting.likelihood import generate_answer, rank_completions, shared_prefix
from prompting.shots import ShotSelector, fit_prompt
from tokenizer.bpe import Tokenizer

ANSWER_TOKENS = 32, 256  # bounds of an open answer's length; within them it follows the training labels


def build_prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: ShotSelector,
    texts: Sequence[str],
    context: Callable[[str], str] | None = None,
) -> tuple[list[str], int]:
    """The prompt of every text, with room for the answer, and the number of shots that did not fit.

    `context` returns a text to put before the prompt of an input (retrieved passages); it is never
    truncated.
    """
    max_tokens = model.config.context - max_answer_tokens(tokenizer, task)
    prompts, dropped = [], 0
    for text in texts:
        before = context(text) if context else ""
        left = max_tokens - len(tokenizer.encode(before))
        prompt, count = fit_prompt(task, text, shots(text), tokenizer, left)
        prompts.append(before + prompt)
        dropped += count
    return prompts, dropped


def max_answer_tokens(tokenizer: Tokenizer, task: Task) -> int:
    """Longest answer in tokens: the longest label, or for open answers the longest training label."""
    labels = task.labels or sorted({item.label for item in task.train})
    encoded = tokenizer.encode_batch([task.completion(label) for label in labels])
    longest = max(map(len, encoded), default=0)
    return longest if task.labels else min(max(longest, ANSWER_TOKENS[0]), ANSWER_TOKENS[1])


def answer_task(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    shots: ShotSelector,
    items: Sequence[Item] | None = None,
    calibrate: bool = False,
    per_token: bool = False,
    context: Callable[[str], str] | None = None,
) -> dict:
    """Score the answers to `items`, by default the test items; also tokens, FLOPs and seconds per request.

    Labels of a closed set are ranked by log-likelihood (see `rank_completions`), open answers are
    generated. `calibrate` is contextual calibration. Shots that do not fit the
    context are left out and counted. For ranked labels, "confidence" is the normalised likelihood
    of the chosen label.
    """
    items = task.test if items is None else items
    completions = [task.completion(label) for label in task.labels]
    started = time.perf_counter()
    prompts, dropped = build_prompts(model, tokenizer, task, shots, [item.text for item in items], context)
    limit = max_answer_tokens(tokenizer, task)
    prefix, prior = shared_prefix(model, tokenizer, prompts), None
    soft = model.config.soft_tokens
    cached = read = soft + len(prefix.ids) if prefix else 0
    flops = forward_flops(model, read, 0, read)  # prefill of the shared prefix, once for all items
    if completions and calibrate:
        (empty,), _ = build_prompts(model, tokenizer, task, shots, ["N/A"], context)
        answer = rank_completions(model, tokenizer, empty, completions, prefix)
        prior, read, flops = answer.scores, read + answer.read_tokens, flops + answer.flops
    correct, confidence, tokens = [], [], 0
    for item, prompt in track(zip(items, prompts, strict=True), "answering items", len(items)):
        if completions:
            answer = rank_completions(model, tokenizer, prompt, completions, prefix, prior or (), per_token)
            correct.append(float(task.labels[answer.choice] == item.label))
            if not per_token:  # means over tokens are not likelihoods
                best = max(answer.scores)
                confidence.append(1 / sum(math.exp(s - best) for s in answer.scores))
            tokens += answer.prompt_tokens
            read += answer.read_tokens
            flops += answer.flops
        else:
            text = generate_answer(model, tokenizer, prompt, task.stop, limit, prefix)
            correct.append(score_answer(task.kind, text, item.label))
            whole = soft + 1 + len(tokenizer.encode(prompt))
            new = 1 + len(tokenizer.encode(text))
            tokens += whole
            read += whole - cached + new
            flops += forward_flops(model, whole - cached, 1, whole + cached)
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
