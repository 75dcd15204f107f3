import json
import os

import pytest
from texts import words

from cli.errors import UserError
from configs.schema import DataConfig
from data.corpora import open_corpus


def texts(path, **settings):
    return [d.text for d in open_corpus(DataConfig(corpus=str(path), **settings)).read()]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path):
    import datasets

    rows = [{"body": words(n, 30), "who": n % 3} for n in range(20)]
    table = datasets.Dataset.from_list(rows)
    table.to_json(tmp_path / "a.jsonl")
    table.to_parquet(tmp_path / "a.parquet")
    expected = [row["body"] for row in rows]
    assert texts(tmp_path / "a.jsonl", text_field="body") == expected
    assert texts(tmp_path / "a.parquet", text_field="body") == expected
    corpus = open_corpus(DataConfig(corpus=str(tmp_path / "a.jsonl"), text_field="body", group_field="who"))
    assert [d.group for d in corpus.read()] == [str(row["who"]) for row in rows]


def test_sections_of_a_text_file_contain_the_whole_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 4000), newline="")
    sections = texts(path, section_chars=300)
    assert "".join(sections) == path.read_text()
    assert len(sections) > 50
    assert max(map(len, sections)) < 450


def test_a_folder_groups_documents_by_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text(words(1, 50))
    (tmp_path / "deep" / "b.jsonl").write_text(json.dumps({"text": "from b"}) + "\n")
    (tmp_path / "ignored.pdf").write_bytes(b"%PDF-1.7")
    corpus = open_corpus(DataConfig(corpus=str(tmp_path), group_field="file"))
    assert {d.group for d in corpus.read()} == {"a.txt", "deep/b.jsonl"}


def test_invalid_utf8_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 au lait\n" * 30)
    assert "".join(texts(path)) == "caf\ufffd au lait\n" * 30


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "a"}\n{"text": broken\n', "line 2: not JSON"),
        ('{"text": "a"}\n["list"]\n', "line 2: not a JSON object; write one object per line"),
        ('{"txet": "a"}\n', 'no column "text"; did you mean "txet"?'),
        ('{"text": 5}\n', "is 5, not text; set data.text_field"),
    ],
)
def test_error_names_the_bad_jsonl_row(tmp_path, rows, message):
    path = tmp_path / "a.jsonl"
    path.write_text(rows)
    with pytest.raises(UserError) as caught:
        texts(path)
    assert message in str(caught.value)


def test_error_suggests_the_nearest_built_in_corpus():
    with pytest.raises(UserError, match='did you mean "folk-tunes"'):
        open_corpus(DataConfig(corpus="folktunes"))


@pytest.mark.parametrize("offline", ["0", "1"])
def test_unreachable_hub_gives_a_one_line_error(command, recipe, offline):
    # Port 9 (discard) has no listener on this machine.
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = command("data.prepare", recipe, "--data.corpus", "some/dataset", env=os.environ | settings)
    assert done.returncode == 2
    assert done.stderr.startswith('error: data.corpus = "some/dataset" is not a file, folder or built-in corpus')
    assert done.stderr.count("\n") == 1


def test_a_file_without_line_breaks_is_split_at_spaces(tmp_path):
    path = tmp_path / "one-line.txt"
    path.write_text(" ".join(words(0, 4000).split()) + " " + "x" * 9000)
    sections = texts(path, section_chars=500)
    assert "".join(sections) == path.read_text()
    assert max(map(len, sections)) <= 1500
    assert all(text.endswith(" ") for text in sections if "x" * 9 not in text)
