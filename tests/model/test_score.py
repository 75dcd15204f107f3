"""A score for any file under any model."""

import json
import math

import pytest
import torch
from texts import words

from configs.cli import UserError
from configs.schema import TokenizerConfig
from model.load import load_model
from model.score import score_texts
from tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama, written by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    out = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer([words(3, 2000)], TokenizerConfig(vocab_size=300))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    (out / "tokenizer.json").write_text(tokenizer.to_json())
    return out


def test_the_score_is_that_of_transformers(folder):
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(folder)
    texts = [words(1, 12), "café 北京\n", words(2, 9)]
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.separator_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            logits = theirs(ids).logits[0, :-1].double().log_softmax(-1)
        nats -= logits.gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    found = score_texts(model, tokenizer, texts)
    size = len("".join(texts).encode())
    assert found["tokens"] == tokens
    assert found["bytes"] == size
    assert found["documents"] == 3
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_the_command_scores_files_of_any_kind(command, folder, tmp_path):
    text, table = tmp_path / "notes [1].txt", tmp_path / "rows.csv"
    text.write_text(words(1, 300))
    table.write_text("review,stars\nfine words,3\nother words,4\n")
    done = command("model.score", folder, text, text, "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second
    model, tokenizer = load_model(folder)
    assert first["bits_per_byte"] == pytest.approx(
        score_texts(model, tokenizer, [text.read_text().rstrip()])["bits_per_byte"], rel=1e-6
    )
    said = command("model.score", folder, text).stdout
    assert said.startswith(f"{text}: {first['bits_per_byte']:.4f} bits per byte, perplexity ")
    assert f" {first['tokens']:,} tokens, " in said
    by_row = command("model.score", folder, table, "--text-field", "review", "--json")
    assert json.loads(by_row.stdout)["documents"] == 2
    for wrong, reason in ((tmp_path / "none.txt", "no such file"), (table, 'no column "text"')):
        done = command("model.score", folder, wrong)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_empty_file_has_no_score(command, folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    done = command("model.score", folder, tmp_path / "empty.txt")
    assert done.returncode == 2
    assert "holds no text" in done.stderr


def test_text_that_the_tokenizer_loses_is_refused(folder):
    model, tokenizer = load_model(folder)
    tokenizer.decode = lambda ids: "other"
    with pytest.raises(UserError, match="loses characters"):
        score_texts(model, tokenizer, ["text"])
