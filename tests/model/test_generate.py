import json
import random

import pytest
import torch

from configs.schema import ModelConfig
from model.build import build_model
from model.cache import KVCache
from model.generate import generate
from model.sample import Stream, sample
from model.sampling import Sampling, draw_token

MODEL = build_model(
    ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=64, max_seq_len=64), 50
).init_weights(3)


def run(model, prompt, **options):
    steps = list(generate(model, torch.tensor([prompt]), **options))
    return torch.stack(steps, 1).tolist()


def test_greedy_is_the_same_with_and_without_cache_for_a_scratch_model():
    options = {"max_new_tokens": 50, "temperature": 0, "num_samples": 2}
    assert run(MODEL, [1, 2, 3], **options) == run(MODEL, [1, 2, 3], use_cache=False, **options)


def test_greedy_is_the_same_with_and_without_cache_for_the_foundation(foundation):
    model, tokenizer = foundation
    prompt = tokenizer.encode("The three primary colours are")
    options = {"max_new_tokens": 16, "temperature": 0}
    assert run(model, prompt, **options) == run(model, prompt, use_cache=False, **options)


def test_seeds_repeat_and_samples_differ():
    options = {"max_new_tokens": 20, "num_samples": 3, "temperature": 1.0}
    first = run(MODEL, [1], seed=5, **options)
    assert first == run(MODEL, [1], seed=5, **options)
    assert first != run(MODEL, [1], seed=6, **options)
    assert first[0] != first[1]


def test_batched_prompts_equal_single_prompts():
    prompts = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 20, "temperature": 0}
    together = torch.stack([*generate(MODEL, prompts, num_samples=2, **options)], 1).tolist()
    alone = [run(MODEL, prompt.tolist(), **options)[0] for prompt in prompts]
    assert together == [row for row in alone for _ in range(2)]


def test_generation_stops_at_the_end_of_the_context():
    assert len(run(MODEL, [1] * 60, max_new_tokens=100, temperature=0)[0]) == 4


LOGITS = torch.tensor([[4.0, 3.0, 3.0, 1.0, -2.0]]).log_softmax(-1)


def drawn(**options):
    draw = random.Random(0).random
    ids = [draw_token(LOGITS[0], Sampling(**options), draw()) for _ in range(4000)]
    return torch.bincount(torch.tensor(ids), minlength=5) / 4000


def test_plain_sampling_follows_the_distribution():
    assert (drawn() - LOGITS.exp()[0]).abs().max() < 0.03
    sharp = (LOGITS[0] / 0.5).softmax(-1)
    assert (drawn(temperature=0.5) - sharp).abs().max() < 0.03


def test_top_k_keeps_exactly_k_with_ties():
    assert (drawn(top_k=2) > 0).sum() == 2


def test_top_p_keeps_the_smallest_set_with_the_mass():
    p = LOGITS.exp()[0]
    assert (drawn(top_p=p[0].item() - 0.01) > 0).tolist() == [True] + [False] * 4
    kept = drawn(top_p=(p[0] + p[1]).item() + 0.01) > 0
    assert kept.tolist() == [True, True, True, False, False]


def test_min_p_is_relative_to_the_likeliest():
    assert (drawn(min_p=0.3) > 0).tolist() == [True, True, True, False, False]
    assert (drawn(min_p=1.0) > 0).sum() == 1


def test_a_stream_shows_whole_characters_and_stops_before_the_stop_string(foundation):
    _, tokenizer = foundation
    stream, shown = Stream(tokenizer, ["END"]), []
    for token in tokenizer.encode("naïve 👩‍👩‍👧 text, E, then END and more"):
        stream.push(token)
        shown.append(stream.new_text())
    assert "".join(shown) == stream.text == "naïve 👩‍👩‍👧 text, E, then "
    assert "\ufffd" not in "".join(shown)
    assert stream.stopped == "stop string 'END'"


def test_a_special_token_ends_a_sample(foundation):
    _, tokenizer = foundation
    stream = Stream(tokenizer, [])
    for token in [*tokenizer.encode("one"), tokenizer.separator_id, *tokenizer.encode("two")]:
        stream.push(token)
    assert (stream.text, stream.stopped) == ("one", "end of document")


def test_stopped_samples_do_not_stop_the_others(foundation):
    model, tokenizer = foundation
    *_, streams = sample(
        model, tokenizer, "Once upon a time", max_new_tokens=12, num_samples=3, stop=["a"], temperature=1.0, seed=2
    )
    assert all(s.stopped for s in streams)
    assert all("a" not in s.text for s in streams)


def test_the_command_prints_json_and_greedy_text(command):
    args = ("smollm2-135m", "--prompt", "The capital of France is", "--max-new-tokens", "3")
    done = command("model.sample", *args, "--temperature", "0", "--json", "--num-samples", "2")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == [" Paris.\n"] * 2
    assert {row["stopped"] for row in rows} == {"length"}
    streamed = command("model.sample", *args, "--temperature", "0")
    assert streamed.stdout == "The capital of France is Paris.\n\n"


@pytest.mark.parametrize("flag", [("--top-p", "1.5"), ("--temperature", "-1"), ("--stop", "")])
def test_bad_settings_give_a_one_line_error(command, flag):
    done = command("model.sample", "smollm2-135m", *flag)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("scratch_options", [False, True])
def test_forked_caches_attend_to_the_shared_prefix(scratch_options, window):
    config = ModelConfig(
        dim=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        hidden_dim=48,
        qk_norm=scratch_options,
        key_shift=scratch_options,
        value_embeddings=scratch_options,
        bigram_buckets=50 * scratch_options,
        window=window,
    )
    model = build_model(config, 61).init_weights(0).double()
    draw = torch.Generator().manual_seed(0)
    head, item = (torch.randint(61, (1, n), generator=draw) for n in (11, 5))
    ends = torch.randint(61, (4, 3), generator=draw)
    with torch.no_grad():
        whole = torch.cat([head.expand(4, -1), item.expand(4, -1), ends], 1)
        expected = model(whole)[:, -3:]
        prefix = KVCache(11)
        model(head, cache=prefix)
        for _ in range(2):  # a fork does not change the shared prefix
            one = prefix.fork(1, 5)
            model(item, cache=one)
            several = one.fork(4, 3)
            got = torch.cat([model(ends[:, :2], cache=several), model(ends[:, 2:], cache=several)], 1)
            torch.testing.assert_close(got, expected)
            assert several.length == 19
