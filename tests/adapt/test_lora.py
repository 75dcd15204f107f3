"""LoRA against `peft` on the foundation model, and LoRA merge against unmerged layers."""

import copy
import json

import pytest
import torch

from adapt.adapter import load_adapter, save_adapter
from adapt.lora import LoraLinear, add_lora, lora_layers, merge_lora
from cli.errors import UserError
from configs.finetune_recipe import LoraConfig
from configs.schema import ModelConfig
from model.build import build_model

PEFT_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def small():
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)
    return build_model(config, 61).init_weights(0)


def test_a_fresh_adapter_changes_nothing_and_trains_only_itself():
    model, x = small(), torch.arange(30)[None]
    before = model(x)
    add_lora(model, LoraConfig(rank=4), seed=0)
    torch.testing.assert_close(model(x), before)
    model(x, targets=x).backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == name.endswith(("lora_A", "lora_B"))
        assert (p.grad is not None) == p.requires_grad
    assert model.num_parameters(trainable=True) == sum(
        4 * (m.in_features + m.out_features) for m in model.modules() if isinstance(m, LoraLinear)
    )


def test_merge_keeps_the_outputs():
    torch.manual_seed(0)
    model, x = add_lora(small(), LoraConfig(rank=4), seed=0).double(), torch.arange(30)[None]
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B)
    with torch.no_grad():
        expected = model(x)
        merged = merge_lora(copy.deepcopy(model))
        torch.testing.assert_close(merged(x), expected)
        torch.testing.assert_close(model(x), expected)
    assert merged.state_dict().keys() == small().state_dict().keys()


@pytest.mark.parametrize("stabilized", [False, True])
def test_training_gives_the_losses_of_peft_and_adapters_load_both_ways(
    foundation, foundation_path, stabilized, tmp_path
):
    from peft import LoraConfig as PeftConfig
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base, tokenizer = foundation
    ours = copy.deepcopy(base)
    add_lora(ours, LoraConfig(rank=4, alpha=8.0, rank_stabilized=stabilized), seed=0)
    theirs = AutoModelForCausalLM.from_pretrained(
        foundation_path.parent, gguf_file=foundation_path.name, dtype=torch.float32
    )
    targets = [name.split(".")[1] for name in PEFT_NAMES]
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "use_rslora": stabilized}
    theirs = get_peft_model(theirs, PeftConfig(**settings))
    mine = dict(ours.named_parameters())
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                layer, rest = name.split(".layers.")[1].split(".", 1)
                module, kind = rest.split(".lora_")
                p.copy_(mine[f"layers.{layer}.{PEFT_NAMES[module]}.lora_{kind[0]}"])
    ids = torch.tensor([tokenizer.encode("K:G\nGFG BAB|gfg gab|GFG BAB|d2A AFD|\n")])
    results = []
    for model, loss in (
        (ours, lambda: ours(ids[:, :-1], targets=ids[:, 1:]) / (ids.shape[1] - 1)),
        (theirs, lambda: theirs(ids, labels=ids).loss),
    ):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
        found = []
        for _ in range(20):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            found.append(value.item())
        results.append(found)
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert results[0][-1] < 0.9 * results[0][0]

    save_adapter(ours, tmp_path / "mine", "smollm2-135m")
    assert sum(f.stat().st_size for f in (tmp_path / "mine").iterdir()) < 10e6
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = ours(ids)
        own = load_adapter(copy.deepcopy(base), tmp_path / "mine")
        torch.testing.assert_close(own(ids), expected)
        back = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
        torch.testing.assert_close(back(ids), theirs.eval()(ids).logits, atol=1e-3, rtol=1e-4)
        loaded = PeftModel.from_pretrained(theirs.unload(), tmp_path / "mine").eval()
        torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(merge_lora(own)(ids), expected, atol=1e-4, rtol=1e-4)


def test_merged_weights_give_the_same_outputs():
    torch.manual_seed(0)
    model, x = add_lora(small(), LoraConfig(rank=4), seed=0), torch.arange(30)[None]
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(merge_lora(model)(x), expected, atol=1e-4, rtol=1e-4)


def test_dropout_is_active_only_in_training():
    model, x = add_lora(small(), LoraConfig(rank=4, dropout=0.5), seed=0), torch.arange(30)[None]
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_adapter_loads_only_on_its_own_base(tmp_path):
    save_adapter(add_lora(small(), LoraConfig(rank=4), seed=0), tmp_path, "small")
    load_adapter(small(), tmp_path)
    with pytest.raises(UserError, match=r"another base model \(small, whose weights"):
        load_adapter(small().init_weights(1), tmp_path)
    with pytest.raises(UserError, match="not an adapter"):
        load_adapter(small(), tmp_path / "nowhere")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="peft_type IA3 is not supported"):
        load_adapter(small(), tmp_path)


def test_finetune_command_writes_a_model_for_sampling(command, recipe, corpus, cache, tmp_path):
    base = tmp_path / "base"
    assert command("train.pretrain", recipe, "--run-dir", base).returncode == 0
    config = tmp_path / "tune.toml"
    config.write_text(f"""
base = "{base}"
seq_len = 32
[data]
corpus = "{corpus}"
section_chars = 500
cache_dir = "{cache}"
[lora]
rank = 2
[train]
steps = 4
batch_size = 4
micro_batch_size = 2
precision = "float32"
""")
    run = tmp_path / "tuned"
    done = command("adapt.finetune", config, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    refused = command("model.sample", run)
    assert refused.returncode == 2
    assert "holds an adapter, not a whole model" in refused.stderr
    sampled = command("model.sample", run / "merged", "--max-new-tokens", "5", "--json")
    assert json.loads(sampled.stdout)["tokens"] <= 5
    # A resumed adapter needs the base weights that it was trained on.
    assert (
        command(
            "train.pretrain", recipe, "--run-dir", base, "--overwrite", "--train.seed", "1", "--train.steps", "1"
        ).returncode
        == 0
    )
    changed = command("adapt.finetune", config, "--run-dir", run, "--resume")
    assert changed.returncode == 2
    assert "the data or the base model has changed" in changed.stderr
    long = command("adapt.finetune", config, "--run-dir", tmp_path / "x", "--seq-len", "65")
    assert long.returncode == 2
    assert "seq_len = 65 is above the model's context of 64" in long.stderr
