"""Every mistake a user is likely to make: one line on stderr, exit status 2, nothing lost."""

import json
import re
import shutil

import pytest
from texts import words

from model.formats.native import checkpoints, latest_checkpoint


@pytest.fixture(scope="module")
def run(command, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert command("train.pretrain", recipe, "--run-dir", folder).returncode == 0
    return folder


@pytest.fixture
def refused(command):
    """Run a command and return its one-line error."""

    def check(module, *args):
        done = command(module, *args)
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert done.stderr.splitlines()[-1] == errors[0]
        assert "Traceback" not in done.stderr
        return errors[0]

    return check


def prepare(refused, recipe, tmp_path, name, data, *more):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return refused("data.prepare", recipe, "--data.corpus", path, *more)


def test_missing_files(refused, recipe, tmp_path):
    assert "no such recipe" in refused("train.pretrain", tmp_path / "missing.toml")
    assert "no such file or folder" in prepare(refused, recipe, tmp_path, "missing.txt", None)
    said = refused("model.sample", tmp_path / "missing")
    assert "no such run, folder, .gguf file or foundation model" in said
    assert "no recipe given" in refused("train.pretrain")


def test_empty_corpus(refused, recipe, tmp_path):
    assert "empty corpus" in prepare(refused, recipe, tmp_path, "empty.txt", "")
    assert "empty corpus" in prepare(refused, recipe, tmp_path, "blank.jsonl", '{"text": ""}\n')
    (tmp_path / "folder").mkdir()
    said = refused("data.prepare", recipe, "--data.corpus", tmp_path / "folder")
    assert "no .txt, .jsonl, .parquet file" in said


def test_binary_file(refused, recipe, tmp_path):
    assert "binary file" in prepare(refused, recipe, tmp_path, "a.txt", b"MZ\x00\x01" * 99)
    assert "binary file" in prepare(refused, recipe, tmp_path, "a.exe", b"MZ\x90\x00" * 99)
    assert "not readable as Parquet" in prepare(refused, recipe, tmp_path, "a.parquet", b"no" * 99)


def test_malformed_jsonl_line(refused, recipe, tmp_path):
    rows = [json.dumps({"text": words(n, 50)}) for n in range(50)]
    rows[36] = rows[36][:-5]
    said = prepare(refused, recipe, tmp_path, "a.jsonl", "\n".join(rows))
    assert "a.jsonl: line 37: not JSON" in said


def test_unknown_key_and_wrong_type(refused, recipe, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("[train]\nstpes = 5\n")
    assert 'unknown key "train.stpes"; did you mean "steps"?' in refused("train.pretrain", bad)
    said = refused("train.pretrain", recipe, "--train.stpes", "5")
    assert 'unknown option "--train.stpes"; did you mean "--train.steps"?' in said
    bad.write_text('[train]\nsteps = "many"\n')
    assert "train.steps = 'many': Input should be a valid integer" in refused("train.pretrain", bad)
    assert "train.steps = 'many'" in refused("train.pretrain", recipe, "--train.steps", "many")


def test_vocabulary_larger_than_the_corpus_supports(refused, recipe, tmp_path):
    folder = tmp_path / "run"
    said = refused(
        "train.pretrain", recipe, "--run-dir", folder, "--tokenizer.vocab-size", "60000", "--tokenizer.strict", "true"
    )
    assert "tokenizer.vocab_size = 60000 is more than the corpus supports" in said
    assert not folder.exists()


def test_a_vocabulary_that_the_corpus_does_not_support_is_reduced(command, recipe, tmp_path):
    folder = tmp_path / "run"
    done = command("train.pretrain", recipe, "--run-dir", folder, "--tokenizer.vocab-size", "60000")
    assert done.returncode == 0, done.stderr
    said = re.search(r"vocab_size = 60000 is .* reduced to ([\d,]+) tokens", done.stderr)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(tokens) == int(said[1].replace(",", "")) < 60000
    assert (folder / "sample.txt").exists()
    again = command("train.pretrain", recipe, "--run-dir", folder, "--tokenizer.vocab-size", "60000", "--resume")
    assert again.returncode == 0, again.stderr


def test_sequence_longer_than_the_corpus(refused, recipe, tmp_path):
    said = refused("train.pretrain", recipe, "--run-dir", tmp_path / "r", "--model.max-seq-len", "500000")
    assert "sequences of 500000 tokens are longer than the corpus" in said


def test_prompt_longer_than_the_context(refused, run):
    said = refused("model.sample", run, "--prompt", "word " * 200)
    assert "the model's context is 64" in said


def test_a_prompt_for_the_end_of_a_run_is_refused_at_its_start(refused, recipe, tmp_path):
    run = tmp_path / "run"
    said = refused("train.pretrain", recipe, "--run-dir", run, "--sample.prompt", "word " * 200)
    assert "the model's context is 64" in said
    assert not run.exists()


def test_corrupted_checkpoint(refused, recipe, run, tmp_path):
    for damage in ("flip", "cut", "gone"):
        broken = tmp_path / damage
        shutil.copytree(run, broken)
        for path in checkpoints(broken)[:-1]:  # to which it would go back
            shutil.rmtree(path)
        weights = latest_checkpoint(broken) / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data if damage == "flip" else data[: len(data) // 2])
        if damage == "gone":
            weights.unlink()
        assert "corrupted checkpoint: model.safetensors" in refused("model.sample", broken)
        said = refused("train.pretrain", recipe, "--run-dir", broken, "--resume")
        assert "corrupted checkpoint: model.safetensors" in said


def test_run_directory_of_another_tokenizer(refused, recipe, run, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    tokenizer = (broken / "tokenizer.json").read_text()
    (broken / "tokenizer.json").write_text(tokenizer.replace('"<|endoftext|>"', '"<|other|>"'))
    assert "was trained with another tokenizer" in refused("model.sample", broken)
    said = refused("train.pretrain", recipe, "--run-dir", run, "--resume", "--tokenizer.vocab-size", "350")
    assert "was started with other [tokenizer] settings" in said


def test_resume_and_overwrite_of_the_wrong_thing(refused, recipe, run, tmp_path):
    said = refused("train.pretrain", recipe, "--run-dir", tmp_path / "none", "--resume")
    assert "nothing to resume here" in said
    said = refused("train.pretrain", recipe, "--run-dir", run, "--resume", "--model.dim", "64")
    assert "was started with other [model] settings" in said
    said = refused("train.pretrain", recipe, "--run-dir", run, "--resume", "--overwrite")
    assert "not allowed with" in said


def test_stores_and_models_that_cannot_be_used(refused, tmp_path):
    from prompting.store import Store

    Store(tmp_path / "empty", 300)
    said = refused("prompting.ask", "smollm2-135m", "--store", tmp_path / "empty", "--question", "Why?")
    assert "the store is empty; add documents first" in said
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "lama"}')
    said = refused("model.sample", tmp_path / "model")
    assert 'unknown architecture "lama"; did you mean "llama"?' in said
    said = refused("prompting.evaluate", "configs/prompt/tune-key.toml", "--chosen", "nobody")
    assert 'no training item has the id "nobody"' in said


def test_a_quantisation_that_cannot_be_read(refused, foundation_path, tmp_path):
    import gguf

    # A file like the foundation's, one of whose tensors is of a kind that gguf cannot widen.
    reader = gguf.GGUFReader(foundation_path)
    tensor = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight")
    header = tensor.field.parts[-2].ctypes.data - reader.data.ctypes.data
    data = bytearray(foundation_path.read_bytes())
    assert int.from_bytes(data[header : header + 4], "little") == tensor.tensor_type
    kind = gguf.GGMLQuantizationType.Q8_1
    data[header : header + 4] = int(kind).to_bytes(4, "little")
    (tmp_path / "odd.gguf").write_bytes(data)
    said = refused("model.sample", tmp_path / "odd.gguf")
    assert "unsupported quantisation Q8_1" in said


def test_a_file_of_two_kilobytes_trains(command, recipe, tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text(words(7, 400)[:2048])
    done = command(
        "train.pretrain",
        recipe,
        "--run-dir",
        tmp_path / "run",
        "--data.corpus",
        path,
        "--tokenizer.vocab-size",
        "280",
        "--model.max-seq-len",
        "32",
        "--train.steps",
        "3",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "sample.txt").exists()
