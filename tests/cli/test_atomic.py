"""Atomic files and folders under kills and errors, manifests, JSON, and printable text."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cli.atomic import atomic_folder, read_json, safe_join, to_json, valid_manifest, write_atomically, write_manifest
from cli.console import one_line, printable

NEVER = lambda path: False  # noqa: E731


def age(path, seconds=60):
    old = time.time() - seconds
    os.utime(path, (old, old))


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "a [1].json"
    write_atomically(path, "old")
    write_atomically(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OSError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "a", "x")


def test_a_killed_writer_leaves_the_old_file_and_its_leftover_is_removed(tmp_path):
    script = (
        "import os, sys, pathlib\n"
        "from cli import atomic\n"
        "atomic.os.fsync = lambda d: os.kill(os.getpid(), 9)\n"
        "atomic.write_atomically(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    path = tmp_path / "ledger.jsonl"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", script, path])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = [p for p in tmp_path.iterdir() if p != path]
    write_atomically(path, "newer")
    assert left.exists()  # it may belong to another process that has just started
    age(left)
    write_atomically(path, "newest")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_temporary_folder_of_a_killed_process_is_removed(tmp_path):
    script = (
        "import os, sys, pathlib\n"
        "from cli.atomic import atomic_folder\n"
        "with atomic_folder(pathlib.Path(sys.argv[1]), lambda p: False) as aside:\n"
        "    (aside / 'half').write_text('half')\n"
        "    if sys.argv[2] == 'wait':\n"
        "        print('ready', flush=True); sys.stdin.read()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    target = tmp_path / "documents"
    done = subprocess.run([sys.executable, "-c", script, target, "die"])
    assert done.returncode == -signal.SIGKILL
    alive = subprocess.Popen(
        [sys.executable, "-c", script, target, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert alive.stdout.readline() == "ready\n"
    for left in tmp_path.iterdir():
        age(left)
    with atomic_folder(target, NEVER) as aside:
        (aside / "a").write_text("whole")
    assert (target / "a").read_text() == "whole"
    assert [p.name for p in target.iterdir()] == ["a"]
    others = [p for p in tmp_path.iterdir() if p != target]
    assert len(others) == 1  # that of the running process; that of the killed one is removed
    alive.kill()
    alive.wait()


def test_only_abandoned_temporary_folders_are_removed(tmp_path):
    target = tmp_path / "0123456789abcdef"
    ours = tmp_path / ".fedcba9876543210.0a1b2c3d.tmp"  # of another cache entry
    theirs = [tmp_path / name for name in (".notes.backup.tmp", ".a.b.0a1b2c3d.tmp", "x.tmp")]
    for folder in (ours, *theirs):
        folder.mkdir()
        age(folder)
    with atomic_folder(target, NEVER):
        pass
    with atomic_folder(tmp_path / "notes", NEVER), atomic_folder(tmp_path / "a", NEVER):
        pass
    assert not ours.exists()
    assert all(folder.exists() for folder in theirs)


def test_an_existing_folder_is_kept_or_replaced_or_both_are_refused(tmp_path):
    target = tmp_path / "run"

    def fill(text, keep_existing):
        with atomic_folder(target, keep_existing) as aside:
            (aside / "a").write_text(text)
        return (target / "a").read_text()

    def refuse(path):
        raise KeyError(path)

    assert fill("one", NEVER) == "one"
    assert fill("two", lambda path: True) == "one"
    assert fill("three", NEVER) == "three"
    with pytest.raises(KeyError):
        fill("four", refuse)
    with pytest.raises(ZeroDivisionError), atomic_folder(target, NEVER):
        raise ZeroDivisionError
    assert (target / "a").read_text() == "three"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_manifest_detects_missing_truncated_and_empty_files(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"x" * 100)
    write_manifest(folder, {"fingerprint": "abc"})
    assert valid_manifest(folder)["fingerprint"] == "abc"
    write_manifest(folder, {"fingerprint": "a longer one"})
    assert valid_manifest(folder)["fingerprint"] == "a longer one"
    whole = (folder / "manifest.json").read_bytes()
    (folder / "train.bin").write_bytes(b"x" * 99)
    assert valid_manifest(folder) is None
    (folder / "train.bin").unlink()
    assert valid_manifest(folder) is None
    (folder / "train.bin").write_bytes(b"x" * 100)
    assert valid_manifest(folder)
    for damage in (b"", whole[:-9], b"[]", b"null", b'{"files": 3}', b"\xff\xfe", b"[" * 10**5):
        (folder / "manifest.json").write_bytes(damage)
        assert valid_manifest(folder) is None
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps({"files": {"../secret": 1}}))
    assert valid_manifest(folder) is None


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "c:\\x", "a\0b", None, 3])
def test_safe_join_refuses_names_outside_the_folder(tmp_path, name):
    if name in (None, 3):  # their text is a valid file name
        assert safe_join(tmp_path, name).parent == tmp_path
        return
    with pytest.raises(ValueError, match="is not the name of a file in this folder"):
        safe_join(tmp_path, name)


def test_json_never_has_nan(tmp_path):
    value = {"loss": float("nan"), "all": [1.0, float("inf"), {"x": -float("inf")}], "t": (2.5,)}
    refuse = {"parse_constant": lambda word: pytest.fail(word)}
    assert json.loads(to_json(value), **refuse) == {"loss": None, "all": [1.0, None, {"x": None}], "t": [2.5]}
    assert read_json(tmp_path / "none.json") is None


def test_printed_text_has_no_control_characters():
    evil = "a\x1b]0;title\x07b\rc\x9b31md\x08\u2028e\udce9\tf\ng"
    assert printable(evil) == r"a\x1b]0;title\x07b\rc\x9b31md\x08\u2028e\udce9" + "\tf\ng"
    assert "\n" not in one_line(evil)
    printable(evil).encode("utf-8")
