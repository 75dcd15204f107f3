"""Log-likelihood of documents against transformers."""

import math

import pytest
import torch
from texts import words

from cli.errors import UserError
from model.cache import KVCache
from model.likelihood import score_continuations, score_texts
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


@torch.no_grad()
@pytest.mark.parametrize("with_prefix", [False, True])
def test_continuations_in_one_pass_equal_one_text_at_a_time(llama_folder, with_prefix):
    model, _ = load_model(llama_folder)
    prompt, continuations = [5, 9, 2, 7], [[3], [4, 8, 1], [6, 6], list(range(20))]
    cache = None
    if with_prefix:
        cache = KVCache(2)
        model.features(torch.tensor([prompt[:2]]), cache)
    found = score_continuations(model, prompt[2:] if with_prefix else prompt, continuations, cache)
    for (nats, is_greedy), continuation in zip(found, continuations, strict=True):
        logs = model(torch.tensor([prompt + continuation]))[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        targets = torch.tensor(continuation)
        assert nats == pytest.approx(logs.gather(1, targets[:, None]).sum().item(), rel=1e-5)
        assert is_greedy == torch.equal(logs.argmax(-1), targets)


@torch.no_grad()
def test_the_likeliest_continuation_is_greedy(llama_folder):
    model, _ = load_model(llama_folder)
    text = [5, 9, 2, 7]
    for _ in range(4):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    (likeliest, other) = score_continuations(model, text[:4], [text[4:], [*text[4:7], (text[7] + 1) % 50]])
    assert (likeliest[1], other[1]) == (True, False)
