"""Rows with different unmerged adapters in one batch, against models with each adapter merged."""

import copy

import pytest
import torch

import model.compiled
from adapt.adapter import save_adapter
from adapt.lora import add_lora, lora_layers, merge_lora
from adapt.soft_prompt import attach_soft_prompt
from cli.errors import UserError
from configs.finetune_recipe import LoraConfig
from configs.schema import ModelConfig
from model.adapters import Adapters
from model.build import build_model
from model.compiled import CompiledBlocks
from model.engine import Engine
from model.formats.peft import read_updates
from model.generate import generate
from model.packed import fuse, pack
from model.quantized import block_rows, quantise_model
from model.sampling import Sampling
from model.soft_prompt import SoftPrompt

SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 96, "max_seq_len": 48}
VOCABULARY = 37
SETTINGS = {
    "tunes": LoraConfig(rank=3, alpha=6, targets=["wq", "wv", "w2"]),
    "recipes": LoraConfig(rank=5, alpha=2, rank_stabilized=True, targets=["wk", "wo", "w1", "w3"]),
}
PROMPTS = {"": [1, 2, 3], "tunes": [4, 5], "recipes": [1, 2, 3, 6]}


@pytest.fixture(scope="module")
def base():
    return build_model(ModelConfig(**SHAPE), VOCABULARY).init_weights(1).eval()


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """Folders in peft's format, and the models with each merged."""
    folders, merged = {}, {"": base}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        tuned, draw = add_lora(copy.deepcopy(base), settings, seed), torch.Generator().manual_seed(seed)
        for layer in lora_layers(tuned).values():
            torch.nn.init.normal_(layer.lora_B, std=0.3, generator=draw)
        folders[name] = tmp_path_factory.mktemp(name)
        save_adapter(tuned, folders[name], "base")
        merged[name] = merge_lora(tuned)
    return folders, merged


def attach(m, folders):
    return Adapters(m, {name: read_updates(folder) for name, folder in folders.items()})


def run(engine, counts):
    texts, rows = {}, {}
    for name, prompt in PROMPTS.items():
        ((row, first),) = engine.join([prompt], [Sampling(0)], [0], counts[name], adapter=name)
        rows[row], texts[name] = name, [first]
        for number, tokens in engine.step().items():
            texts[rows[number]] += tokens
    while not all(engine.rows[row].is_full for row in rows):
        for number, tokens in engine.step().items():
            texts[rows[number]] += tokens
    return texts


@torch.no_grad()
def test_each_row_answers_as_the_merged_model_would(base, adapters):
    folders, merged = adapters
    m = copy.deepcopy(base).double()
    engine = Engine(m, 3, 40, attach(m, folders))
    texts = run(engine, {"": 12, "tunes": 15, "recipes": 9})
    alone = {
        name: [
            int(ids)
            for ids in generate(
                copy.deepcopy(merged[name]).double(),
                torch.tensor([prompt]),
                max_new_tokens=len(texts[name]),
                temperature=0,
            )
        ]
        for name, prompt in PROMPTS.items()
    }
    assert texts == alone
    other = {
        name: generate(base.double(), torch.tensor([PROMPTS[name]]), max_new_tokens=9, temperature=0)
        for name in SETTINGS
    }
    assert any([int(ids) for ids in found] != texts[name][:9] for name, found in other.items())  # they do something
    base.float()


@torch.no_grad()
@pytest.mark.parametrize("prepare", [lambda m: pack(m, 3), fuse], ids=["packed", "fused"])
def test_fused_projections_take_adapters(base, adapters, prepare):
    folders, merged = adapters
    m = prepare(copy.deepcopy(base))
    attached = attach(m, folders)
    tokens = torch.tensor([[1, 2, 3, 4, 5]] * 3)
    with attached.of_rows(list(PROMPTS)):
        found = m.output(m.features(tokens))
    for row, name in enumerate(PROMPTS):
        torch.testing.assert_close(found[row], merged[name](tokens[:1])[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(not block_rows(), reason="needs an x86 CPU with AVX2")
def test_quantised_projections_take_adapters(base, adapters):
    folders, _ = adapters
    m = quantise_model(copy.deepcopy(base), 8)
    attached = attach(m, folders)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    plain = m.output(m.features(tokens))
    rounding = (plain - base(tokens)).norm()
    for name in SETTINGS:
        with attached.of_rows([name]):
            found = m.output(m.features(tokens))
        expected = adapters[1][name](tokens)
        assert (found - expected).norm() < 2 * rounding
        assert (plain - expected).norm() > 5 * rounding


@torch.no_grad()
@pytest.mark.slow
def test_compiled_blocks_take_adapters(base, adapters, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model.compiled, "FOLDER", tmp_path)
    folders, _ = adapters
    texts = []
    for is_compiled in (False, True):
        m = fuse(copy.deepcopy(base))
        attached = attach(m, folders)
        if is_compiled:
            blocks = CompiledBlocks(m, True, attached)
            assert capsys.readouterr().err.count("once:") == 6
        texts.append(run(Engine(m, 3, 40, attached), {"": 12, "tunes": 15, "recipes": 9}))
    assert texts[0] == texts[1]
    assert all(blocks.programs.values())


def test_what_does_not_fit_is_refused(base, adapters, tmp_path):
    folders, _ = adapters
    other = build_model(ModelConfig(**SHAPE | {"hidden_dim": 128}), VOCABULARY).init_weights(0)
    with pytest.raises(UserError, match=r'adapter "tunes": layers\.0\.feed_forward\.w2 of shape 64 x 96 does not fit'):
        attach(other, folders)
    soft = attach_soft_prompt(copy.deepcopy(base), SoftPrompt(3, 64))
    save_adapter(soft, tmp_path, "base")
    with pytest.raises(UserError, match="peft_type PROMPT_TUNING cannot stay unmerged"):
        read_updates(tmp_path)
