"""Files with any name and content give the right text, or a one-line error."""

import gzip
import json
import os
import re

import pytest
import zstandard
from texts import words

from cli.errors import UserError
from configs.schema import DataConfig
from data import readers
from data.cleaning import clean
from data.corpora import open_corpus
from data.prepare import prepare
from data.readers import list_files
from data.splits import SPLITS, read_documents

NAMES = (
    "notes [1].txt",
    "q[ab].txt",
    "a*b.txt",
    "what?.txt",
    "{x,y}.txt",
    "!important.txt",
    "two words.txt",
    "a::b.txt",
    "https:.txt",
    "line\nbreak.txt",
    "tab\there.txt",
    "#1 100%.txt",
    "café 北京.txt",
    "-rf.txt",
)


def read(path, **settings):
    return list(open_corpus(DataConfig(corpus=str(path), **settings)).read())


def joined(path, **settings):
    return "".join(document.text for document in read(path, **settings))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_file_with_any_name_is_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(f"the text of {name!r}\n" * 30)
    # The files that a glob pattern would match instead.
    for other in ("qa.txt", "qb.txt", "aXb.txt", "whatX.txt", "x.txt", "y.txt", "notes 1.txt"):
        (tmp_path / other).write_text("another file\n" * 30)
    assert joined(path) == path.read_text()
    assert {d.id.rpartition(":")[0] for d in read(path)} == {name}
    from_folder = [d for d in read(tmp_path) if d.id.startswith(f"{name}:")]
    assert "".join(d.text for d in from_folder) == path.read_text()


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_table_with_any_name_is_read(tmp_path, name):
    rows = [{"text": f"row {n}"} for n in range(3)]
    path = tmp_path / name.replace(".txt", ".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [d.text for d in read(path)] == ["row 0", "row 1", "row 2"]


def test_a_file_whose_name_is_not_utf8_is_read_in_a_folder(tmp_path):
    folder = os.fsencode(tmp_path)
    with open(folder + b"/caf\xe9.txt", "w") as file:
        file.write("latin name\n" * 40)
    (document, *_) = read(tmp_path)
    assert "latin name" in document.text
    json.loads(json.dumps(document.id))


def test_files_with_the_same_name_have_different_ids(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text(f"in {folder}\n" * 20)
    found = read(tmp_path, group_field="file", document="file")
    assert [(d.id, d.group) for d in found] == [("a/notes.txt:0", "a/notes.txt"), ("b/notes.txt:0", "b/notes.txt")]


def test_links_are_followed_once_and_broken_links_are_errors(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (tmp_path / "away.txt").write_text("from far away\n" * 30)
    (folder / "link.txt").symlink_to(tmp_path / "away.txt")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").write_text("in a linked folder\n" * 30)
    (folder / "more").symlink_to(tmp_path / "more")
    (folder / "loop").symlink_to(folder)
    names = [p.relative_to(folder).as_posix() for p in list_files(folder)]
    assert names == ["link.txt", "more/b.txt"]
    assert joined(folder / "link.txt") == "from far away\n" * 30
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"gone\.txt: is a link to a file that does not exist; remove the link"):
        read(folder)


def test_an_unreadable_file_is_an_error_that_names_it(command, recipe, tmp_path):
    (tmp_path / "good.txt").write_text(words(0, 3000))
    bad = tmp_path / "bad.txt"
    if os.geteuid() == 0:  # root ignores permissions: use a file whose read fails
        bad.symlink_to("/proc/self/mem")
    else:
        bad.write_text("secret")
        bad.chmod(0)
    done = command("data.prepare", recipe, "--data.corpus", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.match(r"error: .*bad\.txt: cannot be read: .+; check it, or move it out of the corpus", done.stderr)


def test_an_empty_file_gives_no_document(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "full.txt").write_text("some text\n" * 30)
    assert {d.id.partition(":")[0] for d in read(tmp_path)} == {"full.txt"}


def test_error_for_a_name_with_a_line_break_is_one_line(command, recipe, tmp_path):
    path = tmp_path / "evil\n\x1b[31mred.txt"
    path.write_bytes(b"\0" * 99)
    done = command("data.prepare", recipe, "--data.corpus", path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "evil\\n\\x1b[31mred.txt: is a binary file" in done.stderr


ROWS = [{"text": 'with "quotes",\ncommas, and lines', "who": "ann"}, {"text": "two", "who": "bob"}]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_and_tsv_rows_are_read(tmp_path, suffix, ending):
    import csv

    path = tmp_path / f"a{suffix}"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        separator = "," if suffix == ".csv" else "\t"
        writer = csv.DictWriter(file, ["text", "who"], delimiter=separator, lineterminator=ending)
        writer.writeheader()
        writer.writerows(ROWS)
    found = read(path, group_field="who")
    assert [(d.text, d.group) for d in found] == [(row["text"], row["who"]) for row in ROWS]


def test_error_names_the_line_of_a_malformed_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,who\n"fine",1\n"never closed,2\nmore,3\n')
    with pytest.raises(UserError, match=r"a\.csv: line \d: malformed CSV"):
        read(path)
    path.write_text("review,stars\ngood,5\n")
    with pytest.raises(UserError, match=r'no column "text"; known: review, stars; set data\.text_field'):
        read(path)
    (tmp_path / "deep.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"line 1: not JSON"):
        read(tmp_path / "deep.jsonl")


COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a"])
def test_compressed_files_give_the_same_text(tmp_path, suffix, name):
    text = {"a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS), "a.csv": "text,who\none,1\n"}.get(
        name, words(0, 900)
    )
    plain = tmp_path / (name if "." in name else "a.txt")
    plain.write_text(text)
    path = tmp_path / f"packed-{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    assert [d.text for d in read(path)] == [d.text for d in read(plain)]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged or truncated"):
        read(path)


def test_all_frames_of_a_compressed_file_are_read(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(compress(b"first line\n" * 50) + compress(b"second line\n" * 50))
        assert joined(path) == "first line\n" * 50 + "second line\n" * 50


def test_a_source_tree_gives_its_text_files(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.rs").write_text("fn main() {}\n" * 20)
    (tmp_path / "Makefile").write_text("all:\n\ttrue\n" * 20)
    (tmp_path / "package.json").write_text('{"name": "x"}\n' * 20)
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "q.bin").write_bytes(b"\0")
    (tmp_path / "r.bin").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n" * 20)
    found = {d.id.partition(":")[0] for d in read(tmp_path)}
    assert found == {"src/main.rs", "Makefile", "package.json"}
    output = " ".join(capsys.readouterr().err.split())
    assert "4 files are not text and are skipped: logo.png, paper.pdf, q.bin, …" in output
    (tmp_path / "r.bin").unlink()
    read(tmp_path)
    output = " ".join(capsys.readouterr().err.split())
    assert output.endswith("3 files are not text and are skipped: logo.png, paper.pdf, q.bin")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("paper.txt", b"%PDF-1.7\n" + b"text without a zero byte\n" * 40, "is a PDF; convert it"),
        ("paper.pdf", b"%PDF-1.7\n", r"is a PDF; convert it"),
        ("wide.txt", "some text\n".encode("utf-16") * 40, "is UTF-16; convert it: iconv"),
        ("cyrillic.txt", ("привет мир\n" * 40).encode("cp1251"), "is not UTF-8; convert it: iconv"),
        ("letter.docx", b"PK\x03\x04\x14\0\6\0", "is a binary file .*; convert it to text, or unpack it"),
        ("rows.json", b'[{"text": "a"}]', r"cannot read \.json: .* write one object per line"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "Parquet is already compressed; decompress it"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(path)


def test_windows_line_ends_become_newlines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r\n" * 200)
    assert joined(path) == "one\ntwo\n" * 200


def test_text_without_spaces_is_split_and_deduplicated(tmp_path):
    import random

    from data.prepare import prepare
    from data.splits import read_documents

    draw = random.Random(0)
    characters = [chr(c) for c in range(0x4E00, 0x4E00 + 900)]
    rows = ["".join(draw.choices(characters, k=200)) for _ in range(60)]
    near = rows[0][:100] + "变" + rows[0][101:]
    path = tmp_path / "a.txt"
    path.write_text("\n".join([*rows, near]))
    config = DataConfig(corpus=str(path), document="line", cache_dir=str(tmp_path / "cache"))
    folder = prepare(config)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["dropped_near_duplicate"] == 1
    kept = {d["text"] for split in ("train", "validation", "test") for d in read_documents(folder, split)}
    assert kept == set(rows)
    path.write_text("".join(rows))  # one line
    assert max(len(text.text) for text in read(path)) <= 2 * len("".join(rows)) // 20


def test_error_names_the_missing_column_of_a_parquet_file(tmp_path):
    import pyarrow
    from pyarrow.parquet import write_table

    path = tmp_path / "a.parquet"
    write_table(pyarrow.table({"body": ["one", "two"], "who": ["x", "y"], "n": [1, 2]}), path)
    with pytest.raises(UserError, match=r'a\.parquet: no column "text"; known: body, who, n; set data\.text_field'):
        read(path)
    with pytest.raises(UserError, match=r'no column "whom"; did you mean "who"\?; set data\.group_field'):
        read(path, text_field="body", group_field="whom")
    found = read(path, text_field="body", group_field="n")
    assert [(d.text, d.group) for d in found] == [("one", "1"), ("two", "2")]


def test_latin_1_text_gives_a_warning(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(("ein größeres Stück Text, das länger ist\n" * 40).encode("latin-1"))
    read(path)
    output = " ".join(capsys.readouterr().err.split())
    assert "are not UTF-8 and are dropped; if it has another encoding, convert it: iconv" in output


def test_rows_without_a_group_have_an_empty_group(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a", "who": None}, {"text": "b", "who": 0}, {"text": "c", "who": "\ud83d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [d.group for d in read(path, group_field="who")] == ["", "0", "\\ud83d"]


def test_renaming_a_file_changes_the_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("text,who\nx,y\n" * 30)
    before = open_corpus(DataConfig(corpus=str(tmp_path))).fingerprint
    (tmp_path / "a.txt").rename(tmp_path / "a.csv")
    assert open_corpus(DataConfig(corpus=str(tmp_path))).fingerprint != before


def test_clean_removes_escape_characters():
    assert clean("a\x1b[31mred\x9b0m") == "a[31mred0m"


def test_html_gives_its_main_text(tmp_path):
    pytest.importorskip("resiliparse")
    body = "".join(f"<p>{words(seed, 60)} caf&eacute; &lt;{seed}&gt;</p>" for seed in range(40))
    page = f"<html><head><title>t</title><script>var hidden</script></head><body><nav>menu</nav>{body}</body></html>"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.html").write_text(page)
    (tmp_path / "in" / "note.txt").write_text(words(99, 2000))
    folder = prepare(DataConfig(corpus=str(tmp_path / "in"), cache_dir=str(tmp_path)))
    texts = [row["text"] for split in SPLITS for row in read_documents(folder, split) if "page" in row["id"]]
    joined = "".join(texts)
    assert all(f"café <{seed}>" in joined for seed in range(40))
    assert not any(hidden in joined for hidden in ("<p>", "var hidden", "menu", "&lt;"))


def test_an_endless_line_is_no_document(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_LINE", 1000)
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "x" * 1000)
    with pytest.raises(UserError, match=r"a\.txt: line 2 has 1,000 characters or more; use data\.document"):
        prepare(DataConfig(corpus=str(path), document="line", cache_dir=str(tmp_path)))
