"""Broken or hostile model files: a one-line error that names the file, never a traceback."""

import json
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file

from cli.errors import UserError
from model.formats.native import latest_checkpoint, write_checkpoint
from model.inference import load_for_generation
from model.load import load_model
from tokenizer.bpe import ChatTemplate, Tokenizer
from tokenizer.chat import encode_chat

DEEP = "[" * 200_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from configs.schema import TokenizerConfig
    from tokenizer.train import train_tokenizer

    out = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer(["a text of some words " * 9], TokenizerConfig(vocab_size=262))
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    (out / "tokenizer.json").write_text(tokenizer.to_json())
    load_model(out)
    return out


@pytest.fixture
def broken(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    return copy


def refused(path):
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def error_message(path):
    """The error message of loading a model, empty if it loads."""
    try:
        load_model(path)
    except UserError as error:
        return str(error)
    return ""


CONFIGS = (DEEP, "", "[]", "3", "null", '"llama"', "{", "\x00", '{"model_type": []}', '{"model_type": "llama"}')


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_invalid_config_is_refused(broken, text):
    (broken / "config.json").write_text(text)
    refused(broken)


@pytest.mark.parametrize("value", [None, [], {}, "many", -1, 0, 1e99, True, [[3]], 2**70])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_attention_heads", "rope_parameters", "rms_norm_eps", "max_position_embeddings"]
)
def test_config_with_wrong_types_is_refused(broken, key, value):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {key: value}))
    assert "\n" not in error_message(broken)  # some values are ignored or mean the default


def test_index_with_path_traversal_is_refused(broken, tmp_path):
    save_file({"model.norm.weight": torch.zeros(16)}, tmp_path / "secret.safetensors")
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "a/b", ""):
        index = {"weight_map": {"model.norm.weight": name}}
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "is not the name of a file in this folder" in refused(broken)
    for index in ([], {"weight_map": []}, {"weight_map": {"a": [1]}}, {}):
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(broken)


def test_tensors_of_wrong_shape_are_refused(broken):
    from safetensors.torch import load_file

    state = load_file(broken / "model.safetensors")
    for name in state:
        for wrong in (torch.zeros(()), torch.zeros(3), torch.zeros(2, 2, 2)):
            save_file(state | {name: wrong}, broken / "model.safetensors")
            refused(broken)
    biases = {f"h.0.attn.c_attn.{kind}": torch.zeros(()) for kind in ("weight", "bias")}
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    (broken / "config.json").write_text(json.dumps(gpt2))
    save_file(biases | {"wte.weight": torch.zeros(262, 16)}, broken / "model.safetensors")
    refused(broken)


def test_invalid_tokenizer_is_refused(broken):
    for text in (DEEP, "", "[]", "{}", '{"decoder": "ByteLevel"}'):
        (broken / "tokenizer.json").write_text(text)
        refused(broken)


def test_manifest_with_path_traversal_is_refused(tmp_path):
    run = tmp_path / "run"
    (tmp_path / "secret.json").write_text("{}")
    write_checkpoint(run, 3, {"state.json": {}}, {"tokenizer": "t"})
    import hashlib

    path = run / "checkpoints" / "000003" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    digest = hashlib.sha256((tmp_path / "secret.json").read_bytes()).hexdigest()
    manifest["files"]["../../../secret.json"] = digest
    total = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"checksum": total}))
    with pytest.raises(UserError, match=r"corrupted checkpoint: .* is not the name of a file"):
        latest_checkpoint(run)


class TooLong(Exception):
    pass


@pytest.fixture
def limit():
    """No test of a hostile file may hang."""

    def ring(*_):
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)


def small_gguf(path):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(c) for c in range(33, 127)]
    letters.append("ab")
    writer.add_token_list([*letters, "<|endoftext|>"])
    writer.add_token_types([1] * len(letters) + [3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(len(letters))
    draw = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(letters) + 1, 32), "output_norm": (32,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}"] = (32, 32)
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(*shape, generator=draw).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_damaged_gguf_file_loads_or_is_refused_in_one_line(tmp_path, limit):
    path = tmp_path / "a.gguf"
    small_gguf(path)
    load_model(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    header = whole.find(b"blk.0.ffn_norm.weight") + 60
    assert header < 5000
    seen = set()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(generator.choice((1, 1, 1, 4))):
            data[generator.randrange(header)] = generator.randrange(256)
        if generator.random() < 0.3:
            del data[generator.randrange(len(data)) :]
        path.write_bytes(data)
        said = error_message(path)
        assert "\n" not in said
        seen.add(said.replace(str(path), "")[:24])
    assert len(seen) > 8  # refused for many different reasons


TEMPLATES = {
    "{{ 1/0 }}": "division by zero",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "takes more",
    "{{ 9**9**9 }}": "is not supported",
    "{{ 'a' * 10**12 }}": "is not supported",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
    "{{ messages.nothing.at.all }}": "no attribute 'nothing'",
    "{% if %}": "Expected an expression",
    "{{ ''.__class__.__mro__ }}": "",
    "(" * 50 + "{{ " + "(" * 4000 + " }}": "",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_hostile_chat_template_gives_a_one_line_error(folder, template, limit, monkeypatch):
    monkeypatch.setattr("tokenizer.chat.TEMPLATE_SECONDS", 0.5)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tokenizer.chat = ChatTemplate(template)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with pytest.raises(UserError, match="line 3: the model's chat template") as caught:
        encode_chat(tokenizer, messages, "line 3")
    assert TEMPLATES[template] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_escape_sequences_never_reach_the_terminal(command, folder, broken, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "\x1b]0;owned\x07lama\nsecond line"
    (broken / "config.json").write_text(json.dumps(config))
    done = command("model.sample", broken)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert r"\x1b]0;owned\x07lama\nsecond line" in done.stderr
    done = command("model.sample", folder, "--prompt", "\x1b[2J", "--max-new-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout


def test_a_gguf_file_with_impossible_settings_is_refused_before_generation(foundation_path, tmp_path):
    content = bytearray(foundation_path.read_bytes())
    at = content.index(b"llama.rope.freq_base") + len(b"llama.rope.freq_base") + 4  # the type precedes the value
    content[at : at + 4] = bytes(4)
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.gguf: malformed model file: ValidationError"):
        load_for_generation(str(path))
