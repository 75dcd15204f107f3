"""Exported GGUF files against llama.cpp, which npm packages: tokens, greedy texts, likelihoods."""

import json
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import torch
from layout import ROOT

from benchmarks.generation import NODE, install_llama_cpp
from cli.errors import UserError
from cli.recipes import load
from configs.schema import ModelConfig, Recipe, TokenizerConfig
from data.builtin import aws_api, folk_tunes, python_stdlib
from model.build import build_model
from model.formats.families import OWN, check_portable, fold_config
from model.formats.gguf import load_gguf
from model.formats.gguf_writer import find_pre_tokenizer, save_gguf
from model.formats.huggingface import save_huggingface
from model.generate import generate
from model.load import load_model
from tokenizer.train import train_tokenizer

PORTABLE = {"newlines": "attach"}
SHAPE = ModelConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, max_seq_len=256)
FAMILIES = {
    "llama": {},
    "llama-3": {"rope_scaling": [8.0, 1.0, 4.0, 64], "tie_embeddings": False},
    "qwen2": {"biases": "qkv"},
    "qwen3": {"qk_norm": True},
    "smollm3": {"nope_every": 4},
    "arcee": {"activation": "relu2"},
    "apertus": {"activation": "relu2", "qk_norm": True},
    "folded": {"activation": "relu2", "qk_norm": True, "embedding_norm": True, "base_dim": 32, "zero_init": True},
}
TIE = 1e-2  # of the two best logits: from there on either text is right


@pytest.fixture(scope="module")
def llama_cpp():
    """Answers of llama.cpp for a file: ask(path, request, …)."""
    if not install_llama_cpp():
        pytest.skip("llama.cpp could not be installed from npm")
    script = shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), NODE / "oracle.mjs")

    def ask(path, *requests, context=256):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        command = ["node", Path(script).name, str(path), str(context)]
        done = subprocess.run(command, cwd=NODE, input=lines, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


@pytest.fixture(scope="module")
def tokenizer():
    texts = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=600, **PORTABLE))


def random_model(changes):
    model = build_model(SHAPE.model_copy(update=changes), 600).init_weights(0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        model.norm.weight.mul_(20)  # few logits that are almost equal
    return model


def assert_same_texts(model, prompts, theirs):
    """Equal to ours, up to the first position where the two best logits are almost equal."""
    ours = torch.stack([*generate(model, prompts, max_new_tokens=len(theirs[0]), temperature=0)], 1)
    compared = 0
    for prompt, text, other in zip(prompts, ours, torch.tensor(theirs), strict=True):
        ids = torch.cat([prompt, text])[None]
        best = model(ids)[0, len(prompt) - 1 : -1].topk(2).values
        ties = ((best[:, 0] - best[:, 1]) < TIE).nonzero().flatten().tolist()
        end = ties[0] if ties else len(text)
        compared += end
        assert text[:end].tolist() == other[:end].tolist()
    assert compared > 0.3 * ours.numel()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_writes_our_texts(family, tokenizer, llama_cpp, tmp_path):
    model = random_model(FAMILIES[family])
    save_gguf(model, tokenizer, tmp_path / "f32.gguf", "f32", family)
    prompts = torch.randint(0, 600, (20, 9), generator=torch.Generator().manual_seed(1))
    texts, nats = llama_cpp(
        tmp_path / "f32.gguf", {"greedy": prompts.tolist(), "count": 200}, {"score": prompts.tolist()}
    )
    assert_same_texts(model, prompts, texts)
    ours = [float(model(row[None, :-1], targets=row[None, 1:])) for row in prompts]
    assert nats == pytest.approx(ours, rel=1e-4)
    if family == "llama":  # the one family that we read
        again, its_tokenizer = load_gguf(tmp_path / "f32.gguf")
        torch.testing.assert_close(again(prompts), model(prompts), atol=1e-4, rtol=1e-4)
        assert its_tokenizer.encode("a text") == tokenizer.encode("a text")


def test_matrices_are_written_in_every_type(tokenizer, llama_cpp, tmp_path):
    model = random_model({"dim": 64, "hidden_dim": 100})  # rows of 100 do not fit blocks of 32
    prompts = torch.randint(0, 600, (4, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = [float(model(row[None, :-1], targets=row[None, 1:])) for row in prompts]
    sizes = {}
    for kind, bound in (("f32", 1e-3), ("f16", 2e-3), ("bf16", 1e-2), ("q8_0", 1e-2), ("q4_0", 0.2)):
        path = tmp_path / f"{kind}.gguf"
        save_gguf(model, tokenizer, path, kind, "x")
        (nats,) = llama_cpp(path, {"score": prompts.tolist()})
        assert nats == pytest.approx(ours, rel=bound), kind
        sizes[kind] = path.stat().st_size
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["f16"] == sizes["bf16"] < sizes["f32"]


@pytest.mark.parametrize("digits", ["single", "any"])
def test_token_ids_are_llama_cpps_on_three_corpora(digits, llama_cpp, tmp_path):
    def lines(corpus):
        found = (line for document in corpus.read() for line in document.text.splitlines(keepends=True))
        pairs = zip(found, found, strict=False)  # two lines: a line break inside, and one at the end
        return ["".join(pair) for pair in islice(pairs, 3334)]

    texts = [text for corpus in (folk_tunes(), aws_api(), python_stdlib()) for text in lines(corpus)]
    assert len(texts) > 10_000
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=2000, digits=digits, **PORTABLE))
    assert find_pre_tokenizer(tokenizer) == {"single": "smollm", "any": "gpt-2"}[digits]
    model = build_model(SHAPE, tokenizer.vocab_size).init_weights(0)
    save_gguf(model, tokenizer, tmp_path / "x.gguf", "f16", "x")
    extra = ["", " ", "\n\n\n", "a  b\t\tc", "naïve café 東京 🎉", "x\r\ny\r\n", "don't I'LL 12345 1,000.5", " \n \n x"]
    (found,) = llama_cpp(tmp_path / "x.gguf", {"tokenize": texts + extra})
    wrong = [text for text, ids in zip(texts + extra, found, strict=True) if ids != tokenizer.encode(text)]
    assert wrong == []


@pytest.mark.slow
def test_a_trained_run_leaves_with_its_quality(command, llama_cpp, tmp_path):
    """configs/portable.toml, smaller: to transformers, and to llama.cpp in 32 and 8 bits."""
    run = tmp_path / "run"
    settings = ["--data.corpus", "folk-tunes", "--tokenizer.vocab-size", "1024", "--model.dim", "128"]
    settings += ["--model.n-layers", "3", "--model.hidden-dim", "352", "--model.max-seq-len", "256"]
    settings += ["--train.steps", "120", "--train.eval-every", "60", "--train.save-every", "60"]
    done = command("train.pretrain", "configs/portable.toml", "--run-dir", run, *settings, timeout=600)
    assert done.returncode == 0, done.stderr
    for kind in ("f32", "q8_0"):
        done = command("model.export", run, tmp_path / f"{kind}.gguf", "--type", kind, "--license", "mit")
        assert done.returncode == 0, done.stderr
        assert "license: mit" in (tmp_path / f"{kind}.md").read_text()
    model, tokenizer = load_model(str(run))
    texts = list(islice((document.text for document in folk_tunes().read()), 300, 330))
    rows = [[tokenizer.separator_id, *tokenizer.encode(text)][:200] for text in texts]
    with torch.no_grad():
        ours = sum(float(model(torch.tensor([row[:-1]]), targets=torch.tensor([row[1:]]))) for row in rows)
        prompts = torch.tensor([row[:12] for row in rows[:20]])
        nats, greedy = llama_cpp(tmp_path / "f32.gguf", {"score": rows}, {"greedy": prompts.tolist(), "count": 200})
        assert sum(nats) == pytest.approx(ours, rel=1e-3)
        assert_same_texts(model, prompts, greedy)
    (nats,) = llama_cpp(tmp_path / "q8_0.gguf", {"score": rows})
    assert sum(nats) == pytest.approx(ours, rel=5e-3)
    again = command("model.export", run, tmp_path / "f32.gguf")
    assert again.returncode == 2
    assert "exists; choose another name" in again.stderr


RECIPES = sorted(path for path in (ROOT / "configs").glob("*.toml") if "[model]" in path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_exports_or_says_why_before_training(path, tokenizer, command, tmp_path):
    recipe = load(Recipe, path)
    heads = {"n_heads": 4, "n_kv_heads": min(4, recipe.model.n_kv_heads), "head_dim": 8}
    small = {"dim": 32, "n_layers": 2, "hidden_dim": 64, "max_seq_len": 64, **heads}
    if recipe.model.bigram_buckets:
        small["bigram_buckets"] = 50
    model = build_model(recipe.model.model_copy(update=small), tokenizer.vocab_size).init_weights(0).eval()
    save_huggingface(model, tokenizer, tmp_path / "out", "")
    from transformers import AutoModelForCausalLM

    x = torch.arange(50)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, model(x), atol=1e-4, rtol=1e-4)
    if path.stem in ("portable", "tiny"):
        check_portable(recipe.model, recipe.tokenizer)
        save_gguf(model, tokenizer, tmp_path / "x.gguf", "f16", "x")
        return
    with pytest.raises(UserError) as refusal:
        check_portable(recipe.model, recipe.tokenizer)
    refused = command("train.pretrain", path, "--portable", "true", "--run-dir", tmp_path / "run")
    assert refused.returncode == 2
    assert str(refusal.value) in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_portable_recipe_exists_and_an_own_option_is_refused_by_name(tokenizer, tmp_path):
    recipe = load(Recipe, ROOT / "configs" / "portable.toml")
    assert recipe.portable
    assert not any(getattr(fold_config(recipe.model), option) for option in OWN)
    for changes, message in (
        ({"key_shift": True}, "model.key_shift = true: no other architecture has it"),
        ({"window": 8}, "model.window = 8: llama.cpp has no sliding window for Qwen3ForCausalLM"),
    ):
        with pytest.raises(UserError, match=message):
            check_portable(recipe.model.model_copy(update=changes), recipe.tokenizer)
    for key, value in (("newlines", "own"), ("whitespace", "merge"), ("digits", "triple")):
        with pytest.raises(
            UserError, match=f'tokenizer.{key} = "{value}": llama.cpp has no such pre-tokenizer; set it to'
        ):
            check_portable(recipe.model, recipe.tokenizer.model_copy(update={key: value}))
    other = train_tokenizer(["some text"], TokenizerConfig(vocab_size=260))
    with pytest.raises(UserError, match=r'before training set tokenizer\.newlines = "attach"'):
        save_gguf(random_model({}), other, tmp_path / "x.gguf", "f16", "x")
    assert not list(tmp_path.iterdir())
