"""Models with something around the text: passages of a store, and prompts that a study has kept."""

import openai
import pytest

from prompting.store import Store

DOCUMENTS = {
    "pets": "Cats purr when they are content. Dogs bark at strangers.",
    "food": "Bread is baked from flour, water and yeast in a hot oven.",
    "sky": "The moon circles the earth once in about twenty-seven days.",
}


def test_an_answer_from_a_store_carries_its_sources(start_server, tmp_path):
    Store(tmp_path / "facts", 300).update(DOCUMENTS.items())
    server = start_server("smollm2-135m", "--rows", "2", "--context", "512", "--store", tmp_path / "facts")
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        name = "smollm2-135m+facts"
        assert name in [each.id for each in client.models.list()]
        options = {"model": name, "prompt": "How is bread baked in an oven?", "max_tokens": 12, "temperature": 0}
        answer = client.completions.create(**options)
        assert answer.sources[0][0]["document"] == "food"
        assert answer.prompts_sent[0].endswith("Question: How is bread baked in an oven?\nAnswer:")
        assert DOCUMENTS["food"] in answer.prompts_sent[0]
        assert "\n" not in answer.choices[0].text
        *_, last = client.completions.create(**options, stream=True)
        assert last.sources == answer.sources
        with pytest.raises(openai.BadRequestError, match="from text, not from ids"):
            client.completions.create(**(options | {"prompt": [5, 6]}))
        with pytest.raises(openai.BadRequestError, match="does not fit"):
            client.completions.create(**(options | {"prompt": "why " * 600}))
    finally:
        server.stop()
