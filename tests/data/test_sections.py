"""How text files are divided into documents, and how much of them is held out."""

import io
import json
from itertools import groupby, pairwise
from operator import itemgetter

import pytest
from texts import words

from cli.errors import UserError
from configs.schema import DataConfig
from data.corpora import open_corpus
from data.prepare import prepare
from data.readers import section_target
from data.splits import read_documents


def read(path, **settings):
    return list(open_corpus(DataConfig(corpus=str(path), **settings)).read())


def joined(path, **settings):
    return "".join(document.text for document in read(path, **settings))


def test_document_setting_selects_file_line_or_section(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first line\nsecond line\n\nfourth line")
    assert [d.text for d in read(path, document="file")] == [path.read_text()]
    lines = [d.text for d in read(path, document="line")]
    assert lines == path.read_text().splitlines(keepends=True)
    path.write_text("eleven char\n" * 100)
    assert {len(d.text) for d in read(path, section_chars=30)} == {36, 12}
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"data\.document = \"line\" is for text"):
        read(table, document="line")
    with pytest.raises(UserError, match=r"data\.document = \"file\": folk-tunes has its own documents"):
        read("folk-tunes", document="file")


def test_small_files_of_a_folder_are_not_split(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.md").write_text(f"# Note {number}\n\n{words(number, 100)}\n")
    assert len(read(tmp_path)) == 40  # each is shorter than a section


def test_a_small_corpus_has_twenty_sections(tmp_path):
    path = tmp_path / "a.txt"
    for size, target in ((200, 10), (1000, 50), (40_000, 2000), (400_000, 2000)):
        path.write_text("x" * size)
        assert section_target([path], DataConfig(corpus=str(path))) == target
    assert section_target([], DataConfig()) == 1


def test_a_long_line_is_read_in_pieces(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(words(0, 40_000).split()))
    requested = []
    real = io.TextIOWrapper.readline

    class Watched(io.TextIOWrapper):
        def readline(self, size=-1):
            requested.append(size)
            return real(self, size)

    monkeypatch.setattr("data.readers.io.TextIOWrapper", Watched)
    assert joined(path) == path.read_text()
    assert requested
    assert all(0 < size <= 1 << 20 for size in requested)


def test_held_out_splits_are_limited(tmp_path):
    from data.prepare import prepare

    path = tmp_path / "a.txt"
    path.write_text(words(0, 40_000))
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path / "c"), section_chars=500)
    sizes = {}
    for limit in (2_000_000, 4000):
        folder = prepare(config.model_copy(update={"held_out_chars": limit}))
        splits = json.loads((folder / "manifest.json").read_text())["splits"]
        sizes[limit] = {name: split["characters"] for name, split in splits.items()}
    assert sizes[2_000_000]["test"] > 8000
    for split in ("test", "validation"):
        assert 3000 < sizes[4000][split] < 5000
    assert sizes[4000]["train"] > sizes[2_000_000]["train"]


def test_files_larger_than_the_held_out_limit_are_held_out(tmp_path):
    from data.prepare import prepare

    for number in range(30):
        (tmp_path / f"book-{number}.txt").write_text(words(number, 2000))
    config = DataConfig(corpus=str(tmp_path), document="file", held_out_chars=3000, cache_dir=str(tmp_path / ".cache"))
    splits = json.loads((prepare(config) / "manifest.json").read_text())["splits"]
    assert splits["test"]["documents"] == splits["validation"]["documents"] == 1


def test_documents_are_shuffled_but_the_sections_of_a_file_stay_together(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": words(n, 40)}) + "\n" for n in range(300)))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{words(ord(name) * 1000 + n, 30)}\n" for n in range(200)))
    folder = prepare(DataConfig(corpus=str(tmp_path), section_chars=400, cache_dir=str(tmp_path / "cache")))
    places = [row["id"].split(":") for row in read_documents(folder, "train")]
    rows = [int(number) for name, number in places if name == "rows.jsonl"]
    assert rows != sorted(rows)
    assert sum(abs(after - before) == 1 for before, after in pairwise(rows)) < 10
    runs = [(name, [int(n) for _, n in run]) for name, run in groupby(places, key=itemgetter(0)) if ".txt" in name]
    assert sorted(name for name, _ in runs) == ["a.txt", "b.txt", "c.txt"]  # one run each
    assert all(numbers == sorted(numbers) for _, numbers in runs)
