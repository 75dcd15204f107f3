"""The scheduler in one process: neighbours, cancelled texts, long prompts, queues; and a server that ends."""

import queue
import signal
import threading
import time

import httpx
import pytest
from texts import words

from configs.schema import ModelConfig, TokenizerConfig
from model.build import build_model
from model.engine import Engine
from model.sample import sample
from model.sampling import Sampling
from serve.scheduler import Batcher, Job, Scheduler
from tokenizer.train import train_tokenizer

SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48, max_seq_len=400)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([words(0, 3000)], TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(SHAPE, tokenizer.vocab_size).init_weights(0).double().eval()


@pytest.fixture
def batcher(model, tokenizer):
    scheduler = Scheduler()
    batcher = scheduler.start(lambda: Batcher(Engine(model, 3, 400), tokenizer))
    scheduler.schedule([batcher])
    yield scheduler, batcher
    scheduler.stop()


def ask(scheduler, batcher, job):
    """The text of a job."""
    events = queue.SimpleQueue()
    job.deliver = events.put
    scheduler.submit(batcher, job)
    text = ""
    while not (event := events.get(timeout=60)).finish:
        text += event.text
    return text + event.text


def ids(tokenizer, text):
    return [tokenizer.separator_id, *tokenizer.encode(text)]


def test_texts_do_not_depend_on_their_neighbours(batcher, model, tokenizer):
    scheduler, own = batcher
    prompts = [words(seed, 4 + 4 * seed) for seed in range(12)]
    expected = []
    for prompt in prompts:
        *_, streams = sample(model, tokenizer, prompt, max_new_tokens=30, temperature=0)
        expected.append(streams[0].text)
    found = {}

    def answer(number):
        found[number] = ask(scheduler, own, Job(ids(tokenizer, prompts[number]), print, Sampling(0), "0", 30))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(12)] == expected


def test_a_cancelled_text_frees_its_row_within_a_step(model, tokenizer):
    batcher = Batcher(Engine(model, 1, 400), tokenizer)
    events, waiting = [], []
    first = Job(ids(tokenizer, "the"), events.append, Sampling(1.0), "0", 300)
    batcher.add(first)
    batcher.add(Job(ids(tokenizer, "a"), waiting.append, Sampling(1.0), "1", 3))
    for _ in range(5):
        batcher.work()
    assert len(events) >= 4
    assert not waiting
    count = len(events)
    first.is_cancelled = True
    batcher.work()
    assert len(events) == count
    assert waiting  # the next one has begun in the same step


def test_a_long_prompt_does_not_stop_the_others(model, tokenizer):
    batcher = Batcher(Engine(model, 2, 400), tokenizer)
    steps, long = [], []
    batcher.add(Job(ids(tokenizer, "the"), steps.append, Sampling(1.0), "0", 300))
    batcher.work()
    batcher.add(Job((ids(tokenizer, words(5, 400)))[:350], long.append, Sampling(1.0), "1", 5))
    before = len(steps)
    while not long:
        batcher.work()
    assert len(steps) - before >= 350 // 64


def test_background_jobs_wait_and_failed_ones_stop_nothing(model, tokenizer):
    batcher = Batcher(Engine(model, 1, 60), tokenizer)
    order, failed = [], []
    batcher.add(Job(ids(tokenizer, "the"), lambda e: order.append("batch"), Sampling(0), "0", 3, is_background=True))
    batcher.add(Job([10**6], failed.append, Sampling(0), "0", 3))
    batcher.add(Job(ids(tokenizer, "the"), lambda e: order.append("now"), Sampling(0), "0", 3))
    for _ in range(12):
        batcher.work()
    assert failed[-1].finish == "error"
    assert order.index("batch") > max(i for i, name in enumerate(order) if name == "now")
    assert batcher.running == {}


def test_texts_fail_with_their_step_and_later_ones_are_answered(batcher, tokenizer, monkeypatch):
    scheduler, own = batcher
    step, calls = own.engine.step, []

    def fail_once():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return step()

    monkeypatch.setattr(own.engine, "step", fail_once)
    events = queue.SimpleQueue()
    scheduler.submit(own, Job(ids(tokenizer, "the"), events.put, Sampling(0), "0", 300))
    while not (event := events.get(timeout=60)).finish:
        pass
    assert (event.finish, event.result) == ("error", "out of memory")
    assert ask(scheduler, own, Job(ids(tokenizer, "the"), print, Sampling(0), "0", 5))
    assert own.running == {}


def test_a_full_queue_is_429_and_a_key_is_needed(trained_run, start_server):
    server = start_server(trained_run, "--rows", "1", "--queue", "2", "--key", "secret", "--key", "other")
    try:
        body = {"model": "words", "prompt": "the", "max_tokens": 1}
        refused = server.post("/v1/completions", body)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        assert server.post("/tokenize", {"prompt": "a"}).status_code == 401
        key = {"Authorization": "Bearer other"}
        assert server.post("/v1/completions", body, headers=key).status_code == 200
        full = server.post("/v1/completions", body | {"n": 3}, headers=key)
        assert full.status_code == 429
        assert full.headers["retry-after"]
        assert httpx.get(server.root + "/health").status_code == 200
    finally:
        server.stop()


def test_sigterm_finishes_what_runs_and_refuses_what_comes(trained_run, start_server):
    server = start_server(trained_run, "--rows", "2")
    body = {"model": "words", "prompt": "the", "max_tokens": 240, "n": 8, "seed": 1}
    found = []
    asking = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body)))
    client = httpx.Client()  # a connection from before
    client.get(server.root + "/health")
    asking.start()
    while not server.metric("homegrown_running_texts"):
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    late = client.post(server.url + "/completions", json=body)
    assert late.status_code == 503
    assert late.headers["retry-after"]
    assert server.process.wait(60) == 0
    asking.join()
    assert found[0].status_code == 200
    assert len(found[0].json()["choices"]) == 8


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_ends_at_its_time_limit(trained_run, start_server, streams):
    server = start_server(trained_run, "--rows", "1", "--seconds", "0.3")
    try:
        body = {"model": "words", "prompt": "the", "max_tokens": 240, "n": 32, "stream": streams}
        found = server.post("/v1/completions", body)
        assert found.status_code == (200 if streams else 503)
        assert "took more than 0.3 s" in found.text
        while server.metric("homegrown_running_texts"):
            time.sleep(0.02)
    finally:
        server.stop()


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_rows(served, streams):
    body = {"model": "smollm2-135m", "prompt": "Once", "max_tokens": 400, "n": 3, "stream": streams}
    with served.begin("/v1/completions", body):
        while served.metric("homegrown_running_texts") < 3:
            time.sleep(0.02)
    left = time.monotonic()
    while served.metric("homegrown_running_texts"):
        assert time.monotonic() - left < 3  # far less than the answers take
        time.sleep(0.02)
