"""Log-likelihood of documents against transformers."""

import math

import pytest
import torch
from texts import words

from cli.errors import UserError
from model.likelihood import score_texts
from model.load import load_model


def test_score_equals_transformers(llama_folder):
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(llama_folder)
    texts = [words(1, 12), "café 北京\n", words(2, 9)]
    theirs = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
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


def test_text_that_does_not_round_trip_is_refused(llama_folder):
    model, tokenizer = load_model(llama_folder)
    tokenizer.decode = lambda ids: "other"
    with pytest.raises(UserError, match="loses characters"):
        score_texts(model, tokenizer, ["text"])
