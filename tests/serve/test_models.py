"""What adapt.finetune writes, served: adapters of one model in one batch, classifiers, what a study has kept."""

import asyncio
import json
import shutil

import openai
import pytest
from texts import words

from adapt.adapter import load_adapter
from adapt.features import Classifier, extract_features
from adapt.methods import merge_model
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import TaskConfig
from configs.study_recipe import StudyRecipe
from model.load import load_model
from model.sample import sample
from train.run_directory import write_config


@pytest.fixture(scope="module")
def tune(command, trained_run, corpus, cache, tmp_path_factory):
    """Run adapt.finetune on the run "words"; returns the run directory."""
    folder = tmp_path_factory.mktemp("tuned")

    def run(name, *arguments):
        config = folder / "tune.toml"
        config.write_text(f"""
base = "{trained_run}"
seq_len = 32
general = "{corpus}"
[data]
corpus = "folk-tunes"
section_chars = 500
cache_dir = "{cache}"
[lora]
rank = 2
[train]
steps = 30
batch_size = 8
micro_batch_size = 8
learning_rate = 3e-2
precision = "float32"
[sample]
max_new_tokens = 5
""")
        done = command("adapt.finetune", config, "--run-dir", folder / name, *arguments)
        assert done.returncode == 0, done.stderr
        return folder / name

    return run


@pytest.fixture(scope="module")
def labelled(tune, tmp_path_factory):
    """A classifier of the first word, as method = "features" writes it."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"text": f"{('red', 'blue')[n % 2]} {words(n, 4)}", "label": ("warm", "cold")[n % 2]} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tune("colours", "--method", "features", "--task.name", str(path))


def test_adapters_of_one_batch_answer_as_each_merged(tune, trained_run, start_server):
    folders = {
        "first": tune("first", "--method", "lora", "--train.seed", "1"),
        "second": tune("second", "--method", "lora", "--train.seed", "2", "--lora.rank", "5"),
    }
    prompts = ["The stone", "X:1\nT:", "a river of the"]
    expected = {"words": [], "first": [], "second": []}
    for name, texts in expected.items():
        model, tokenizer = load_model(str(trained_run))
        if name in folders:
            merge_model(load_adapter(model, folders[name] / "adapter"))
        for prompt in prompts:
            *_, streams = sample(model, tokenizer, prompt, max_new_tokens=40, temperature=0)
            texts.append(streams[0].text)
    assert len({tuple(texts) for texts in expected.values()}) == 3  # the adapters change the texts
    adapters = [each for name, folder in folders.items() for each in ("--adapter", f"{name}={folder / 'adapter'}")]
    server = start_server(trained_run, *adapters, "--rows", "9", "--context", "128", "--precision", "float32")

    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            options = {"max_tokens": 40, "temperature": 0}
            asked = [
                client.completions.create(model=name, prompt=prompt, **options)
                for prompt in prompts
                for name in expected
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    try:
        found = asyncio.run(ask())
    finally:
        server.stop()
    assert found == [expected[name][at] for at in range(len(prompts)) for name in expected]


def test_a_classifier_answers_with_its_label_and_probabilities(labelled, trained_run, start_server):
    texts = ["red stone", "blue river of the north", "red red"]
    model, tokenizer = load_model(str(trained_run))
    head = Classifier.load(labelled)
    expected = head.probabilities(extract_features(model, tokenizer, texts, head.pooling))
    server = start_server(labelled, "--context", "64", "--precision", "float32")
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        assert [each.id for each in client.models.list()] == ["words", "colours"]
        answer = client.completions.create(model="colours", prompt=texts, logprobs=2)
        for choice, row in zip(answer.choices, expected, strict=True):
            by_label = dict(zip(head.labels, row, strict=True))
            assert choice.text == max(by_label, key=by_label.get)
            assert choice.probabilities == pytest.approx(by_label, abs=1e-4)
            assert choice.logprobs.tokens == [choice.text]
            assert set(choice.logprobs.top_logprobs[0]) == {"warm", "cold"}
        streamed = list(client.completions.create(model="colours", prompt=texts, stream=True))
        assert [piece.choices[0].text for piece in streamed] == [choice.text for choice in answer.choices]
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
        line["body"] = {"model": "colours", "prompt": texts[0]}
        source = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=source.id, endpoint="/v1/completions", completion_window="24h")
        while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
            pass
        body = json.loads(client.files.content(batch.output_file_id).text)["response"]["body"]
        assert body["choices"][0]["text"] == answer.choices[0].text
        for change, message in (
            ({"n": 2}, "answers with one label"),
            ({"echo": True}, "answers with one label"),
            ({"prompt": [5, 6]}, "labels texts, not ids"),
            ({"prompt": "stone " * 200}, "exceed the context"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                client.completions.create(**({"model": "colours", "prompt": "red"} | change))
        with pytest.raises(openai.BadRequestError, match="is a classifier"):
            client.chat.completions.create(model="colours", messages=[{"role": "user", "content": "red"}])
    finally:
        server.stop()


def test_a_kept_classifier_is_a_model_id(labelled, trained_run, start_server, tmp_path):
    kept = tmp_path / "kept" / "task-64-features"
    kept.mkdir(parents=True)
    for name in ("classifier.json", "classifier.safetensors"):
        shutil.copy(labelled / name, kept)
    write_config(kept, FinetuneRecipe(base=str(trained_run), method="features", task=TaskConfig()))
    (kept / "about.json").write_text("{}")
    write_config(tmp_path, StudyRecipe(task=TaskConfig(name="")))
    server = start_server("--study", tmp_path, "--context", "64")
    try:
        answer = server.post("/v1/completions", {"model": "task-64-features", "prompt": "blue stone"}).json()
        assert answer["choices"][0]["text"] == "cold"
    finally:
        server.stop()
