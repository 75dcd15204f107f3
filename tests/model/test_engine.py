"""Rows that join, decode and leave in any order, against one text at a time without a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model.engine
from configs.schema import ModelConfig
from model.build import build_model
from model.cache import KVCache
from model.engine import Engine, Row
from model.generate import generate
from model.graphs import DecodeGraphs
from model.sampling import Sampling, draw_token

SHAPE = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 48, "max_seq_len": 48}
CONFIGS = {
    "llama": ModelConfig(**SHAPE),
    "scratch": ModelConfig(
        **SHAPE, qk_norm=True, key_shift=True, value_embeddings=True, bigram_buckets=50, embedding_norm=True, window=5
    ),
    "gpt2": ModelConfig(**SHAPE, positions="learned", norm="layer", biases="all", activation="gelu"),
    "soft": ModelConfig(**SHAPE, soft_tokens=3),
}
VOCABULARY = 23


@pytest.fixture(scope="module", params=CONFIGS)
def small(request):
    # float64: no two logits are equal within rounding, so texts are equal token for token.
    return build_model(CONFIGS[request.param], VOCABULARY).init_weights(1).double().eval()


def alone(model, prompt, sampling, seed, count):
    steps = generate(model, torch.tensor([prompt]), max_new_tokens=count, use_cache=False, seed=seed, **sampling)
    return [int(ids) for ids in steps]


def finish(engine, row, texts):
    while not engine.rows[row].is_full:
        for number, tokens in engine.step().items():
            texts[number] += tokens


JOINS = st.tuples(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),  # prompt
    st.integers(1, 12),  # new tokens
    st.sampled_from([{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 4, "min_p": 0.05}]),
    st.integers(0, 3),  # steps before the next join
    st.booleans(),  # leaves as soon as another one joins
)


@pytest.mark.parametrize("steps_of", ["drafts", "graphs"])
@settings(max_examples=12, deadline=None)
@given(st.lists(JOINS, min_size=1, max_size=6))
def test_a_text_depends_neither_on_neighbours_nor_on_joins_and_leaves(small, steps_of, joins):
    engine, expected, texts = Engine(small, 3, 24), {}, {}
    if steps_of == "graphs":  # the step of a GPU, not captured
        engine.graphs = DecodeGraphs(small, engine.cache, 3, None)
    for number, (prompt, count, sampling, steps, leaves) in enumerate(joins):
        if all(engine.rows):
            finish(engine, 0, texts)
        for row in [row for row, at in enumerate(engine.rows) if at is not None and at.is_full]:
            assert texts.pop(row) == expected.pop(row)
            engine.leave(row)
        ((row, first),) = engine.join([prompt], [Sampling(**sampling)], [f"{number}:0"], count)
        texts[row], expected[row] = [first], alone(small, prompt, sampling, number, count)
        for _ in range(steps):
            for at, tokens in engine.step().items():
                texts[at] += tokens
        if leaves and not engine.rows[row].is_full:
            engine.leave(row)
            begun = texts.pop(row)
            assert begun == expected.pop(row)[: len(begun)]
    for row in list(texts):
        finish(engine, row, texts)
        assert texts[row] == expected[row]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.4}])
def test_drafts_change_no_token_and_save_steps(small, monkeypatch, sampling):
    # A model that repeats itself: its likeliest token follows from the last one.
    prompt = [1, 2, 3, 4, 5] * 4

    def run(drafting):
        monkeypatch.setattr(model.engine, "MOST_DRAFTING", drafting)
        engine = Engine(small, 1, 44)
        ((row, first),) = engine.join([prompt], [Sampling(**sampling)], [0], 20)
        texts, steps = {row: [first]}, 0
        while not engine.rows[row].is_full:
            texts[row] += engine.step()[row]
            steps += 1
        return texts[row], steps

    plain, drafted = run(0), run(2)
    assert plain[0] == drafted[0]
    assert plain[1] == 19
    assert drafted[1] <= plain[1]


def test_prompt_lookup_proposes_what_followed_before():
    row = Row([7, 1, 2, 3, 4, 5, 9, 1, 2, 3], Sampling(0), 0, 100)
    assert row.draft() == [4, 5, 9]
    row.ids.append(4)
    assert row.draft() == [5, 9, 1]
    row.ids.append(8)
    assert row.draft() == []
    row.drafted, row.accepted = 40, 2
    row.ids += [1, 2, 3]
    assert row.draft() == []  # too few were right


def test_a_right_draft_takes_one_step_for_several_tokens(small, monkeypatch):
    text = alone(small, [1, 2], {"temperature": 0}, 0, 20)
    monkeypatch.setattr(Row, "draft", lambda row: text[len(row.ids) - 2 :][:3])
    engine = Engine(small, 1, 24)
    ((row, first),) = engine.join([[1, 2]], [Sampling(0)], [0], 20)
    got, steps = [first], 0
    while not engine.rows[row].is_full:
        got += engine.step()[row]
        steps += 1
    assert got == text
    assert steps == 5  # 19 tokens, four at a time


def test_long_prompts_are_read_in_parts(small, monkeypatch):
    prompt = torch.arange(20)[None] % VOCABULARY
    whole = [*generate(small, prompt, max_new_tokens=8, temperature=0)]
    monkeypatch.setattr(model.engine, "CHUNK", 3)
    assert [*generate(small, prompt, max_new_tokens=8, temperature=0)] == whole


def test_a_prefix_cache_gives_the_same_text(small):
    head, rest = [1, 2, 3, 4, 5, 6], [7, 8]
    cache = KVCache(6)
    with torch.no_grad():
        small.features(torch.tensor([head]), cache)
    options = {"max_new_tokens": 10, "temperature": 0}
    whole = [*generate(small, torch.tensor([head + rest]), **options)]
    for _ in range(2):  # it is not modified
        assert [*generate(small, torch.tensor([rest]), prefix=cache, **options)] == whole


def test_the_cache_is_allocated_once(small):
    engine = Engine(small, 2, 24)
    before = [layer.data_ptr() for layer in engine.cache.layers]
    for seed in range(3):
        ((row, _),) = engine.join([[1, 2, 3]], [Sampling(1.0)], [seed], 10)
        engine.step()
        engine.leave(row)
    assert [layer.data_ptr() for layer in engine.cache.layers] == before
    engine.join([[1]] * 2, [Sampling(0)] * 2, [0, 1], 5)
    with pytest.raises(ValueError, match="no 1 consecutive rows of 2 are free"):
        engine.join([[1]], [Sampling(0)], [0], 5)


def test_a_large_nucleus_is_found_without_a_sort_of_all(monkeypatch):
    logits = torch.linspace(0, 1, 1000)
    sampling = Sampling(top_p=0.5)
    found = {draw_token(logits, sampling, i / 50) for i in range(50)}
    p, ids = logits.softmax(-1).sort(descending=True)
    nucleus = set(ids[p.cumsum(0) - p < 0.5].tolist())
    assert len(nucleus) > 256
    assert found <= nucleus
    assert len(found) == 50


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_prompt_that_takes_its_start_from_another_row_gives_the_same_text(small, data):
    engine = Engine(small, 2, 44)
    shared = list(range(20))
    for number in range(5):
        tail = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4))
        prompt = [*shared[: data.draw(st.sampled_from([3, 17, 20]))], *tail]
        prefill = engine.begin([prompt], [Sampling(0.5)], [f"{number}:0"], 12, shares=True)
        while not (found := engine.read(prefill, data.draw(st.integers(1, 9)))):
            engine.step()
        ((row, first),) = found
        text = [first]
        for _ in range(data.draw(st.integers(0, 11))):
            text += engine.step().get(row, [])
        assert text == alone(small, prompt, {"temperature": 0.5}, number, 12)[: len(text)]
        if not small.config.soft_tokens and number and len(prompt) > 20:
            assert prefill.at == len(prompt)
        engine.leave(row)


def test_a_shared_start_is_not_read_again(foundation):
    base, tokenizer = foundation
    head = tokenizer.encode("The same instructions stand before every question, and they are long. " * 3)
    engine = Engine(base, 3, 128)
    engine.join([[*head, 5]], [Sampling(0)], [0], 2)
    prefill = engine.begin([[*head, 6, 7]], [Sampling(0)], [0], 2, shares=True)
    assert prefill.at == len(head)
    ((row, _),) = engine.read(prefill, 2)
    assert engine.rows[row].ids[:-1] == [*head, 6, 7]
    assert engine.begin([[*head, 8]], [Sampling(0)], [0], 2, shares=True, adapter="").at == len(head)


def test_scores_are_those_of_a_whole_pass(small):
    engine = Engine(small, 2, 40)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    prefill = engine.begin([prompt], [Sampling(0.9)], [0], 10)
    prefill.likeliest = engine.rows[prefill.rows.start].likeliest = 3
    while not (found := engine.read(prefill, 3)):
        pass
    ((row, _),) = found
    finish(engine, row, {row: []})
    ids = engine.rows[row].ids
    with torch.no_grad():
        logprobs = small(torch.tensor([ids]))[0].log_softmax(-1)
    scores = [*prefill.scores, *engine.rows[row].scores]
    assert [score.id for score in scores] == ids[1:]
    for at, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(logprobs[at, ids[at + 1]]), abs=1e-5)
        best = logprobs[at].topk(3)
        assert [id for id, _ in score.likeliest] == best.indices.tolist()
        assert [value for _, value in score.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)
