"""FLOPs by formula equal those that torch counts per operator."""

import pytest
import torch
from texts import words
from torch.utils.flop_counter import FlopCounterMode

from adapt.lora import add_lora
from adapt.soft_prompt import add_soft_prompt
from adapt.top_layers import tune_top_layers
from cli.recipes import load
from configs.finetune_recipe import LoraConfig, SoftPromptConfig, TopLayersConfig
from configs.schema import ModelConfig, TokenizerConfig
from configs.study_recipe import StudyRecipe
from model.build import build_model
from model.flops import training_flops
from prompting.likelihood import rank_completions, shared_prefix
from tokenizer.train import train_tokenizer
from train.optim import build_optimizers, step_flops

LLAMA = ModelConfig(dim=96, n_layers=4, n_heads=6, n_kv_heads=2, head_dim=16, hidden_dim=256, max_seq_len=256)
STUDY = load(StudyRecipe, "configs/study/demo.toml")


def add_vectors(model):
    tokenizer = train_tokenizer(words(0, 3000).splitlines(), TokenizerConfig(vocab_size=400))
    return add_soft_prompt(model, tokenizer, SoftPromptConfig(tokens=20, init_text=""), 0)


METHODS = {
    "scratch": (STUDY.scratch.model, lambda model: model.requires_grad_(True)),
    "full": (LLAMA, lambda model: model.requires_grad_(True)),
    "lora": (LLAMA, lambda model: add_lora(model, LoraConfig(rank=8), 0)),
    "top-layers": (LLAMA, lambda model: tune_top_layers(model, TopLayersConfig(layers=1))),
    "soft-prompt": (LLAMA, add_vectors),
}


@pytest.mark.parametrize("method", METHODS)
def test_training(method):
    config, prepare = METHODS[method]
    model = prepare(build_model(config, 1000).init_weights(0))
    length = 256 - model.config.soft_tokens
    x, y = torch.randint(0, 1000, (2, 2, length))
    settings = STUDY.scratch.text if method == "scratch" else STUDY.full.text
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = build_optimizers(parameters, settings)
    with FlopCounterMode(display=False) as counted:
        model(x, targets=y).backward()
        for optimizer in chosen:
            optimizer.step()
    found = training_flops(model, 2 * length, 2 * length, length) + step_flops(chosen)
    assert found == pytest.approx(counted.get_total_flops(), rel=0.05)
    assert (step_flops(chosen) > 0.1 * found) == (method == "scratch")  # Muon, in small batches


@pytest.mark.parametrize("shared", [False, True])
def test_prompting(shared):
    tokenizer = train_tokenizer(words(0, 3000).splitlines(), TokenizerConfig(vocab_size=400))
    model = build_model(LLAMA, 400).init_weights(0).eval()
    prompts = [words(1, 40) + words(n, 8) for n in (2, 3)]
    prefix = shared_prefix(model, tokenizer, prompts) if shared else None
    options = [f" {words(n, 3)}\n" for n in range(10, 16)]
    with FlopCounterMode(display=False) as counted:
        answer = rank_completions(model, tokenizer, prompts[0], options, prefix)
    assert answer.flops == pytest.approx(counted.get_total_flops(), rel=0.05)
    assert (answer.read_tokens < answer.prompt_tokens) == shared
