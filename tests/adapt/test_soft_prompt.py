"""Soft prompts against `peft`: prompt tuning and the prompt encoder, on the foundation model."""

import copy

import pytest
import torch

from adapt.adapter import load_adapter, save_adapter
from adapt.soft_prompt import add_soft_prompt, merge_prompt_encoder
from cli.errors import UserError
from configs.finetune_recipe import SoftPromptConfig
from configs.schema import ModelConfig
from model.build import build_model
from model.generate import generate


def small(**changes):
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)
    return build_model(config.model_copy(update=changes), 61).init_weights(0)


class Letters:
    """A tokenizer stub: one id per letter."""

    @staticmethod
    def encode(text):
        return [ord(c) % 61 for c in text]


PLAIN = SoftPromptConfig(tokens=5)
ENCODER = SoftPromptConfig(tokens=5, hidden_dim=16)


@pytest.mark.parametrize("config", [PLAIN, ENCODER], ids=["plain", "encoder"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "learned"},
        {"value_embeddings": True, "bigram_buckets": 20, "key_shift": True, "embedding_norm": True},
    ],
    ids=["plain", "learned", "recipe"],
)
def test_only_the_prompt_is_trained_and_the_kv_cache_gives_the_same_tokens(config, changes):
    model = add_soft_prompt(small(**changes), Letters, config, seed=0)
    x = torch.arange(12)[None]
    model(x, targets=x).backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith("soft_prompt.")
        assert (p.grad is not None) == p.requires_grad
    whole = [int(t) for t in generate(model, x, max_new_tokens=9, temperature=0, use_cache=False)]
    assert [int(t) for t in generate(model, x, max_new_tokens=9, temperature=0)] == whole
    two = list(generate(model, x, max_new_tokens=9, temperature=0, num_samples=2))
    assert [int(t[1]) for t in two] == whole
    before = model(x)
    torch.testing.assert_close(merge_prompt_encoder(model)(x), before)


def test_soft_prompt_shortens_the_context():
    model = add_soft_prompt(small(max_seq_len=16), Letters, PLAIN, seed=0)
    assert model.config.context == 11
    x = torch.arange(6)[None]
    assert len(list(generate(model, x, max_new_tokens=99, temperature=0))) == 5
    with pytest.raises(UserError, match="already has a soft prompt of 5 vectors"):
        add_soft_prompt(model, Letters, PLAIN, seed=0)
    with pytest.raises(UserError, match="init_text has 9 tokens, more than"):
        add_soft_prompt(small(), Letters, SoftPromptConfig(tokens=5, init_text="too long."), 0)


def test_init_text_equals_its_tokens():
    model = small()
    text = torch.tensor([Letters.encode("hello")])
    x = torch.arange(12)[None]
    expected = model(torch.cat([text, x], 1))[:, 5:]
    config = SoftPromptConfig(tokens=5, init_text="hello")
    torch.testing.assert_close(add_soft_prompt(model, Letters, config, 0)(x), expected)


def test_a_prompt_that_fills_the_context_is_refused():
    with pytest.raises(UserError, match=r"tokens = 512 fills the context of 512"):
        add_soft_prompt(small(), Letters, SoftPromptConfig(tokens=512), 0)


@pytest.fixture(scope="module")
def theirs(foundation_path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        foundation_path.parent, gguf_file=foundation_path.name, dtype=torch.float32
    )


@pytest.mark.parametrize("hidden", [0, 64], ids=["plain", "encoder"])
def test_training_gives_the_losses_of_peft_and_adapters_load_both_ways(foundation, theirs, hidden, tmp_path):
    from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    base, tokenizer = foundation
    config = SoftPromptConfig(tokens=6, hidden_dim=hidden)
    ours = add_soft_prompt(copy.deepcopy(base), tokenizer, config, seed=0)
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 6}
    if hidden:
        peft = get_peft_model(theirs, PromptEncoderConfig(encoder_hidden_size=64, **common))
    else:
        peft = get_peft_model(theirs, PromptTuningConfig(**common))
    encoder = peft.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(ours.soft_prompt.vectors)
        if hidden:
            pairs = zip(ours.soft_prompt.mlp.parameters(), encoder.mlp_head.parameters(), strict=True)
            for mine, other in pairs:
                other.copy_(mine)
    ids = torch.tensor([tokenizer.encode("K:G\nGFG BAB|gfg gab|GFG BAB|d2A AFD|\n")])
    labels = ids.clone()
    labels[:, 0] = -100
    results = []
    for model, loss in (
        (ours, lambda: ours(ids[:, :-1], targets=ids[:, 1:]) / (ids.shape[1] - 1)),
        (peft, lambda: peft(input_ids=ids, labels=labels).loss),
    ):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-5 if hidden else 1e-3)
        found = []
        for _ in range(20):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append(value.item())
        results.append(found)
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert results[0][-1] < results[0][0] - 0.1

    save_adapter(ours, tmp_path / "mine", "smollm2-135m")
    merged = merge_prompt_encoder(ours)
    with torch.no_grad():
        expected = merged(ids)
        again = load_adapter(copy.deepcopy(base), tmp_path / "mine")
        torch.testing.assert_close(again(ids), expected)
        plain = peft.get_base_model()
        loaded = PeftModel.from_pretrained(plain, tmp_path / "mine").eval()
        torch.testing.assert_close(loaded(ids).logits[:, 6:], expected, atol=1e-3, rtol=1e-3)
    peft.save_pretrained(tmp_path / "theirs")
    back = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(back(ids), peft.eval()(input_ids=ids).logits[:, 6:], atol=1e-3, rtol=1e-3)
