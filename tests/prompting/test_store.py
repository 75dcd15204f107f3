"""The passage store: adding, changing and removing documents, and search."""

import json

import pytest

from cli.errors import UserError
from data.prepare import prepare
from data.splits import read_documents
from prompting.ask import build_prompt
from prompting.store import SEARCH_METHODS, Passage, Store, split_passages

DOCUMENTS = {
    "pets": "Cats purr when they are content. Dogs bark at strangers.",
    "sea": "Whales sing under water. Sharks never sleep for long.",
    "food": "Bread is baked from flour, water and yeast in a hot oven.",
    "sky": "The moon circles the earth once in about twenty-seven days.",
}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store", 300)
    assert made.update(DOCUMENTS.items())["added"] == 4
    return made


@pytest.mark.parametrize("method", SEARCH_METHODS)
def test_relevant_passage_is_found(store, method):
    for question, document in (
        ("Which animal barks at strangers? dogs bark", "pets"),
        ("How is bread baked in an oven?", "food"),
        ("How long does the moon circle the earth?", "sky"),
    ):
        best = store.search(question, 2, method)
        assert best[0].document == document
        assert [p.score for p in best] == sorted((p.score for p in best), reverse=True)
        assert best[0].text == DOCUMENTS[document]


@pytest.mark.parametrize("method", SEARCH_METHODS)
def test_updates_are_visible_to_the_next_search(store, tmp_path, method):
    def found():
        return [(p.document, p.text) for p in store.search("volcano lava eruption", 5, method)]

    lava = "A volcano throws out lava in an eruption."
    assert "new" not in dict(found())
    store.update((DOCUMENTS | {"new": lava}).items())
    assert found()[0] == ("new", lava)
    store.update((DOCUMENTS | {"new": "The volcano is extinct: no lava, no eruption for ages."}).items())
    assert found()[0] == ("new", "The volcano is extinct: no lava, no eruption for ages.")
    assert lava not in dict(found()).values()
    store.update(DOCUMENTS.items())
    assert "new" not in dict(found())
    done = store.update((DOCUMENTS | {"sea": "It's dry.", "it's": lava}).items())
    assert done == {"added": 1, "changed": 1, "removed": 0, "kept": 3}
    assert found()[0] == ("it's", lava)
    again = Store(tmp_path / "store")  # as opened by another process
    assert [p.document for p in again.search("volcano lava eruption", 1, method)] == ["it's"]
    assert again.update(DOCUMENTS.items())["removed"] == 1
    assert "it's" not in [p.document for p in again.search("volcano lava eruption", 5, method)]


def test_questions_may_contain_any_characters(store):
    for question in ('"quoted" AND (odd:', "'; DROP --", "?!", "моя кошка"):
        for method in SEARCH_METHODS:
            assert len(store.search(question, 2, method)) <= 2


def test_passages_end_at_sentences():
    text = "One sentence here. " * 40
    pieces = split_passages(text, 100)
    assert all(len(piece) <= 100 and piece.endswith(".") for piece in pieces)
    assert " ".join(pieces) == text.strip()
    assert [len(piece) for piece in split_passages("x" * 250, 100)] == [100, 100, 50]
    assert split_passages("  ", 100) == []


def test_held_out_documents_are_never_retrieved(command, recipe, corpus, cache, tmp_path):
    from cli.recipes import load
    from configs.schema import Recipe

    config = tmp_path / "store.toml"
    config.write_text(f"""
chunk_chars = 200
[data]
corpus = "{corpus}"
section_chars = 500
cache_dir = "{cache}"
""")
    done = command("prompting.store", config, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    folder = prepare(load(Recipe, recipe).data)
    ids = {split: {d["id"] for d in read_documents(folder, split)} for split in ("train", "test")}
    store = Store(tmp_path / "store")
    assert set(store._stored_hashes()) == ids["train"]
    for document in read_documents(folder, "test"):  # searched by its own words
        for method in SEARCH_METHODS:
            found = store.search(document["text"][:300], 20, method)
            assert not {p.document for p in found} & ids["test"]
    again = command("prompting.store", config, "--store", tmp_path / "store")
    assert "added 0, changed 0, removed 0" in again.stderr


def test_interrupted_update_is_completed_by_the_next_one(tmp_path, monkeypatch):
    made = Store(tmp_path / "store", 300)

    def killed(*_, **__):
        raise KeyboardInterrupt

    made.update({"pets": DOCUMENTS["pets"]}.items())
    made.table.drop_index("text_idx")
    monkeypatch.setattr(made, "_insert", killed)
    with pytest.raises(KeyboardInterrupt):
        made.update(DOCUMENTS.items())
    again = Store(tmp_path / "store")
    again.update({"pets": DOCUMENTS["pets"]}.items())  # no document to add, but an index to build
    assert again.search("dogs bark", 1, "bm25")[0].document == "pets"
    assert again.update(DOCUMENTS.items())["added"] == 3


def test_mismatched_or_empty_store_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="was created with chunk_chars = 300, not 200"):
        Store(tmp_path / "store", 200)
    other = tmp_path / "other" / "store.json"
    other.parent.mkdir()
    other.write_text('{"encoder": "smollm2-135m", "chunk_chars": 300}')
    with pytest.raises(UserError, match="was created with encoder = 'smollm2-135m'"):
        Store(other.parent)
    other.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Store(other.parent)
    with pytest.raises(UserError, match="no store; create one with"):
        Store(tmp_path / "nowhere")
    empty = Store(tmp_path / "empty", 300)
    with pytest.raises(UserError, match="the store is empty"):
        empty.search("anything", 1)
    empty.update([("a", "text")])
    empty.update([])
    with pytest.raises(UserError, match="the store is empty"):
        empty.search("anything", 1)


def test_passages_above_the_context_are_left_out_worst_first(foundation):
    _, tokenizer = foundation
    passages = [Passage(name, f"{name} " * 20, 1.0) for name in ("best", "middle", "worst")]
    prompt, kept = build_prompt("Why?", passages, tokenizer, 1000)
    assert kept == passages
    assert prompt.index("worst") < prompt.index("middle") < prompt.index("best")
    room = len(tokenizer.encode(prompt))
    prompt, kept = build_prompt("Why?", passages, tokenizer, room)
    assert [p.document for p in kept] == ["best", "middle"]
    assert 1 + len(tokenizer.encode(prompt)) <= room
    with pytest.raises(UserError, match="does not fit the 5"):
        build_prompt("Why?", passages, tokenizer, 5)


def test_answer_lists_its_sources(command, store, tmp_path):
    asked = (
        "prompting.ask",
        "smollm2-135m",
        "--store",
        tmp_path / "store",
        "--question",
        "What do dogs bark at?",
        "--max-new-tokens",
        "12",
    )
    done = command(*asked, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["answer"]
    assert row["sources"][0]["document"] == "pets"
    shown = command(asked[0], *asked[2:])  # the default model
    assert "[1] pets" in shown.stdout
    missing = command(*asked[:3], tmp_path / "nowhere", *asked[4:])
    assert missing.returncode == 2
    assert "no store; create one with" in missing.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("option", ["--passages", "--max-new-tokens"])
def test_a_number_below_one_is_named(command, tmp_path, option):
    done = command("prompting.ask", "--store", tmp_path, "--question", "which?", option, "0")
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {option}: 0 is not 1 or more"
