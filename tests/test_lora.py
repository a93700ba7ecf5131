"""LoRA: equal to peft step by step and merged, its files exchanged with peft, merging and its way back, bad input."""

import copy
import json
import math

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from shared import lora
from shared.checkpoints import load_model, save_model
from shared.classification import SpamClassifier, train_classifier
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel, count_parameters
from shared.llama import LlamaConfig, LlamaModel
from shared.nf4 import Linear4bit, quantise_model
from shared.training import make_optimizer, train

V, T = 97, 16
MODELS = {
    "gpt": lambda: GPTModel(GPTConfig(V, 24, emb_dim=32, n_heads=4, n_layers=2)),
    "llama": lambda: LlamaModel(LlamaConfig(V, 24, 32, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=48)),
}
EVERYWHERE = ("blocks", "head")


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")
    monkeypatch.setenv("LLM_DEVICE", "cpu")


def make(kind, seed=0):
    torch.manual_seed(seed)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODELS)
def model(request):
    return make(request.param)


def tokens(seed=0, rows=3):
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(seed))


def shake(model, size=0.3):
    """Adapters that do something, as after training."""
    with torch.no_grad():
        for adapter in lora.adapters_of(model).values():
            adapter.B.normal_(std=size)
    return model


def in_transformers(model, folder):
    save_model(model, None, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def their_config(model, targets, rank=4, alpha=6, **settings):
    names = [lora.published_layer(model, name) for name in lora.adapters_of(copy.deepcopy(model) if targets is None else
             lora.apply_lora(copy.deepcopy(model), 1, 1, targets))]  # fmt: skip
    return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, task_type="CAUSAL_LM",
                           fan_in_fan_out=isinstance(model, GPTModel), **settings)  # fmt: skip


def their_layer(other, model, name):
    return other.get_submodule(f"base_model.model.{lora.published_layer(model, name)}")


# --- Equal to peft


@pytest.mark.parametrize("targets", [("blocks",), ("attention",), EVERYWHERE])
def test_ten_steps_and_merged_logits_equal_peft(model, targets, tmp_path):
    other = peft.get_peft_model(in_transformers(model, tmp_path), their_config(model, targets))
    lora.apply_lora(model, 4, 6, targets)
    for name, adapter in lora.adapters_of(model).items():
        their_layer(other, model, name).lora_A["default"].weight.data.copy_(adapter.A)
    assert lora.count_trainable(model) == sum(p.numel() for p in other.parameters() if p.requires_grad)
    losses = []
    for one in (model, other):
        one.train()
        optimizer, found = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2), []
        for step in range(10):
            batch = tokens(step)
            logits = one(batch) if one is model else one(input_ids=batch).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
    assert losses[0][0] - losses[0][-1] > 0.01  # it learned something
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-6)
    lora.merge_lora(model.eval())
    # peft merges an adapted head into the embedding that it is tied to, and warns: there its model as it is counts
    merged = other.eval() if "head" in targets else other.eval().merge_and_unload()
    with torch.no_grad():
        assert_close(model(tokens(99)), merged(input_ids=tokens(99)).logits, rtol=0, atol=1e-5)


def test_a_begins_as_pefts_does_and_b_at_zero(model, tmp_path):
    other = peft.get_peft_model(in_transformers(model, tmp_path), their_config(model, ("blocks",), rank=8))
    lora.apply_lora(model, 8)
    for name, adapter in lora.adapters_of(model).items():
        theirs = their_layer(other, model, name).lora_A["default"].weight
        bound = 1 / math.sqrt(adapter.A.shape[1])  # uniform within it
        for found in (adapter.A.detach(), theirs.detach()):
            assert found.abs().max() <= bound and found.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert not adapter.B.any() and not adapter.base.weight.requires_grad


@pytest.mark.parametrize("targets", [("blocks",), ("attention",), ("head",), ("blocks.0",)])
def test_peft_loads_our_adapter_onto_the_model_that_we_saved(model, targets, tmp_path):
    base = in_transformers(model, tmp_path / "base")
    shake(lora.apply_lora(model, 4, 6, targets))
    lora.save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    other = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        assert_close(model(tokens()), other(input_ids=tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [("blocks",), EVERYWHERE])
def test_we_load_pefts_adapter(model, targets, tmp_path):
    other = peft.get_peft_model(in_transformers(model, tmp_path / "base"), their_config(model, targets))
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    other.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert lora.load_adapter(model, tmp_path / "adapter") is model
    with torch.no_grad():
        assert_close(model(tokens()), other(input_ids=tokens()).logits, rtol=1e-5, atol=1e-5)


# --- The layer, and where it goes


def test_by_hand():
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer = lora.LoRALinear(base, rank=1, alpha=3)
    layer.A.data, layer.B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [-1.0]])
    x = torch.tensor([[1.0, 1.0]])
    assert layer(x).tolist() == [[1 + 9.0, 1 - 9.0]]  # A x = 3, times alpha / r = 3
    assert layer.update().tolist() == [[3.0, 6.0], [-3.0, -6.0]]


def test_at_first_nothing_changes_and_only_adapters_train(model):
    with torch.no_grad():
        before = model(tokens())
        assert torch.equal(lora.apply_lora(model, 3, 5, EVERYWHERE)(tokens()), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in lora.adapters_of(model) for part in "AB"}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    loader = torch.utils.data.DataLoader([(t[:-1], t[1:]) for t in tokens(5, 24)], batch_size=4)
    history = train(model, loader, epochs=4, lr=1e-2, weight_decay=0, eval_every=1, progress=False)
    assert history.train_loss[-1] < history.train_loss[0]
    for name, parameter in model.named_parameters():
        assert name in trained or torch.equal(parameter, frozen[name]), name
    assert all(adapter.B.any() for adapter in lora.adapters_of(model).values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("four_bits", [False, True])
def test_it_trains_in_each_number_format(model, dtype, four_bits, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", dtype)
    if four_bits:
        quantise_model(model)
    lora.apply_lora(model, 4, 8, dropout=0.1)
    batch = tokens(7, 4)
    loader = torch.utils.data.DataLoader([(t[:-1], t[1:]) for t in batch] * 4, batch_size=4)
    history = train(model, loader, epochs=15, lr=1e-2, weight_decay=0, eval_every=1, progress=False)
    assert history.train_loss[-1] < history.train_loss[0] - 0.3
    assert all(a.A.dtype == a.B.dtype == torch.float32 for a in lora.adapters_of(model).values())


def test_a_base_in_16_bits_keeps_its_adapters_in_32(model):
    lora.apply_lora(model.to(torch.bfloat16), 4)
    out = model(tokens())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {a.B.grad.dtype for a in lora.adapters_of(model).values()} == {torch.float32}


def test_dropout_drops_in_training_only(model):
    shake(lora.apply_lora(model, 4, 8, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(model(tokens()), model(tokens()))
        model.train()
        assert not torch.equal(model(tokens()), model(tokens()))


@pytest.mark.parametrize(("kind", "targets", "count"), [
    ("gpt", ("blocks",), 8), ("gpt", "qkv", 2), ("gpt", ("attention",), 4), ("gpt", ("blocks.1", "head"), 5),
    ("llama", ("blocks",), 14), ("llama", ("query", "value"), 4), ("llama", ["feed_forward.expand"], 2),
    ("llama", ("head",), 1),
])
def test_targets(kind, targets, count):
    assert len(lora.adapters_of(lora.apply_lora(make(kind), 2, targets=targets))) == count


def test_numbers_that_train_are_rank_times_both_widths(model):
    lora.apply_lora(model, 3, targets=EVERYWHERE)
    widths = [a.base.in_features + a.base.out_features for a in lora.adapters_of(model).values()]
    assert lora.count_trainable(model) == 3 * sum(widths)


def test_smollm2_trains_less_than_two_percent_at_rank_8():
    config = LlamaConfig(49_152, 8192, emb_dim=576, n_heads=9, n_kv_heads=3, n_layers=30, hidden_dim=1536)
    with torch.device("meta"):
        model = LlamaModel(config)
        n = count_parameters(model)
        trained = lora.count_trainable(lora.apply_lora(model, 8))
    assert n == 134_515_008 and trained == 2_442_240 and trained / n < 0.02


def test_generation_with_a_cache_works_with_an_adapted_head(model):
    shake(lora.apply_lora(model, 4, targets=EVERYWHERE))
    prompt = tokens()[:1, :5]
    cached = generate(model, prompt, 8)
    assert torch.equal(cached, generate(model, prompt, 8, use_cache=False))
    lora.merge_lora(model)
    assert torch.equal(cached, generate(model, prompt, 8))


def test_a_classifier_trains_its_head_and_the_adapters_of_its_gpt():
    import tiktoken

    encoding = tiktoken.Encoding("bytes", pat_str=r".", mergeable_ranks={bytes([i]): i for i in range(256)},
                                 special_tokens={"<|endoftext|>": 256})  # fmt: skip
    torch.manual_seed(0)
    classifier = SpamClassifier(GPTModel(GPTConfig(257, 32, 32, 2, 2)), encoding)
    lora.apply_lora(classifier.gpt, 4)
    before = classifier.head.weight.detach().clone()
    messages = [("spam", "WIN WIN"), ("ham", "see you")] * 8
    train_classifier(classifier, messages, epochs=8, lr=1e-2, weight_decay=0, progress=False)
    assert not torch.equal(classifier.head.weight, before)
    assert classifier.predict(["WIN WIN", "see you"])[0] == ["spam", "ham"]


# --- Merging and the way back


def test_merging_changes_no_answer_beyond_rounding_and_can_be_undone(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shake(lora.apply_lora(model, 4, 6))
    with torch.no_grad():
        adapted = model(tokens())
        adapters = lora.merge_lora(model)
        assert not lora.adapters_of(model) and {*dict(model.named_parameters())} == {*before}
        assert_close(model(tokens()), adapted, rtol=0, atol=2e-5)
        lora.unmerge_lora(model, adapters)
        assert_close(model(tokens()), adapted, rtol=0, atol=2e-5)
    for name, parameter in model.named_parameters():
        if not name.endswith((".A", ".B")):
            assert_close(parameter, before[name.replace(".base.", ".")], rtol=0, atol=2e-6)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.{part}" for name in adapters for part in "AB"}  # fmt: skip


def test_merging_unties_a_tied_head_and_says_so(model, capsys, tmp_path):
    embedding = model.token_embedding.weight.detach().clone()
    shake(lora.apply_lora(model, 4, 6, EVERYWHERE))
    with torch.no_grad():
        adapted = model(tokens())
        adapters = lora.merge_lora(model)
        assert "unties the head" in capsys.readouterr().out and not model.config.tie_weights
        assert torch.equal(model.token_embedding.weight, embedding)  # what reads tokens has not moved
        assert not torch.equal(model.head.weight, embedding)
        other = in_transformers(model, tmp_path)
        assert_close(other(input_ids=tokens()).logits, adapted, rtol=0, atol=5e-5)
        assert_close(load_model(tmp_path)[0](tokens()), adapted, rtol=0, atol=5e-5)
        lora.unmerge_lora(model, adapters)
        assert model.head.base.weight is model.token_embedding.weight and model.config.tie_weights
        assert_close(model(tokens()), adapted, rtol=0, atol=2e-5)
        lora.merge_lora(model)
        assert not model.config.tie_weights and not torch.equal(model.head.weight, embedding)


def test_a_head_that_is_not_adapted_stays_tied(model, capsys):
    shake(lora.apply_lora(model, 4))
    lora.merge_lora(model)
    assert model.config.tie_weights and model.head.weight is model.token_embedding.weight
    assert capsys.readouterr().out == ""


def test_merging_onto_4_bits_gives_a_plain_layer_and_comes_back_exactly(model):
    shake(lora.apply_lora(quantise_model(model), 4, 6))
    with torch.no_grad():
        adapted = model(tokens())
        adapters = lora.merge_lora(model)
        assert all(type(m) is not Linear4bit for m in model.modules())
        assert_close(model(tokens()), adapted, rtol=0, atol=2e-5)
        lora.unmerge_lora(model, adapters)
        assert torch.equal(model(tokens()), adapted)


def test_merging_in_bfloat16_rounds_once(model):
    shake(lora.apply_lora(model.to(torch.bfloat16), 4, 6))
    wanted = {n: (a.base.weight.float() + a.update()).bfloat16() for n, a in lora.adapters_of(model).items()}
    lora.merge_lora(model)
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in wanted.items())


# --- Files


def test_an_adapter_comes_back_as_it_was_and_goes_on_training(model, tmp_path):
    again = copy.deepcopy(model)
    shake(lora.apply_lora(model, 4, 6, EVERYWHERE, dropout=0.25))
    lora.save_adapter(model, tmp_path, "me/base")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "me/base" and settings["r"] == 4 and settings["lora_alpha"] == 6
    lora.load_adapter(again, tmp_path)
    assert torch.equal(model(tokens()), again(tokens()))
    assert again.head.dropout.p == 0.25 and lora.count_trainable(again) == lora.count_trainable(model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    make_optimizer(again)
    with pytest.raises(ValueError, match=f"{len(lora.adapters_of(again))} adapters already"):
        lora.load_adapter(again, tmp_path, check_base=False)


def test_an_adapter_of_another_base_is_one_clear_error(model, tmp_path):
    start = copy.deepcopy(model)
    shake(lora.apply_lora(model, 4))
    lora.save_adapter(model, tmp_path, "the-first-base")
    merged = copy.deepcopy(model)
    lora.merge_lora(merged)  # differs in the blocks only
    smaller = {"GPTModel": GPTModel(GPTConfig(V, 24, 16, 4, 2)), "LlamaModel": LlamaModel(
        LlamaConfig(V, 24, 16, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=48))}[type(model).__name__]  # fmt: skip
    other_kind = make("llama" if isinstance(model, GPTModel) else "gpt")
    others = {"checksums differ": merged, "would have to be": smaller, "belongs to no layer": other_kind}
    for said, other in others.items():
        before = {*dict(other.named_parameters())}
        with pytest.raises(ValueError, match=f"another base \\(the-first-base\\).*{said}"):
            lora.load_adapter(other, tmp_path)
        assert {*dict(other.named_parameters())} == before
    halved = quantise_model(copy.deepcopy(start))
    with pytest.raises(ValueError, match="another number format"):
        lora.load_adapter(halved, tmp_path)
    lora.load_adapter(halved, tmp_path, check_base=False)
    assert_close(halved.blocks[0].attention.out_proj.B, model.blocks[0].attention.out_proj.B)
    lora.load_adapter(start, tmp_path)


def test_damaged_and_foreign_adapters_are_refused(model, tmp_path):
    plain = copy.deepcopy(model)
    shake(lora.apply_lora(model, 4))
    lora.save_adapter(model, tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    for key, value in (("use_dora", True), ("use_rslora", True), ("bias", "all"), ("peft_type", "IA3"),
                       ("rank_pattern", {"q_proj": 2}), ("modules_to_save", ["lm_head"])):  # fmt: skip
        config.write_text(json.dumps(settings | {key: value}))
        with pytest.raises(ValueError, match=f"{key} is "):
            lora.load_adapter(plain, tmp_path)
    config.write_text(json.dumps(settings | {"r": 5}))
    with pytest.raises(ValueError, match="would have to be"):
        lora.load_adapter(plain, tmp_path)
    config.write_text(json.dumps(settings))
    save_file(dict(list(tensors.items())[:-1]), weights)
    with pytest.raises(ValueError, match="not two for each"):
        lora.load_adapter(plain, tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        lora.load_adapter(plain, tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist"):
        lora.load_adapter(plain, tmp_path)
    assert not lora.adapters_of(plain)


# --- Bad input


@pytest.mark.parametrize(("settings", "said"), [
    ({"rank": 0}, "rank is 0; blocks.0.attention.* from 1 to 32"), ({"rank": 33}, "rank is 33; .* from 1 to 32"),
    ({"rank": 2.0}, "rank is 2.0"), ({"rank": True}, "rank is True"), ({"alpha": 0}, "alpha is 0"),
    ({"alpha": math.nan}, "alpha is nan"), ({"dropout": 1.0}, "dropout is 1.0"), ({"dropout": -0.1}, "dropout is -0.1"),
    ({"targets": ()}, "no target"), ({"targets": ("atention",)}, "'atention' matches no linear layer; .*attention"),
    ({"targets": "token_embedding"}, "'token_embedding' matches no"), ({"targets": "lm_head"}, "did you mean head"),
    ({"targets": ("zzz",)}, "the parts of their names are"), ({"targets": ("blocks.7",)}, "'blocks.7' matches no"),
])
def test_bad_settings_are_one_clear_error_and_change_nothing(model, settings, said):
    with pytest.raises(ValueError, match=said):
        lora.apply_lora(model, **settings)
    assert not lora.adapters_of(model) and lora.count_trainable(model) == count_parameters(model)


def test_names_of_hugging_face_are_translated():
    with pytest.raises(ValueError, match="did you mean attention.query"):
        lora.apply_lora(make("llama"), targets=("q_proj",))
    with pytest.raises(ValueError, match="did you mean attention.qkv"):
        lora.apply_lora(make("gpt"), targets=("attn.c_attn",))


def test_a_rank_above_one_narrow_layer_names_it():
    with pytest.raises(ValueError, match="rank is 17; blocks.0.attention.key goes from 32 to 16"):
        lora.apply_lora(make("llama"), 17)
    assert len(lora.adapters_of(lora.apply_lora(make("llama"), 17, targets=("query",)))) == 2


def test_merging_twice_applying_twice_and_what_is_not_merged(model, tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        lora.merge_lora(model)
    lora.apply_lora(model, 2)
    with pytest.raises(ValueError, match="adapters already: merge them first"):
        lora.apply_lora(model, 2)
    adapters = lora.merge_lora(model)
    with pytest.raises(ValueError, match="were they merged already"):
        lora.merge_lora(model)
    with pytest.raises(ValueError, match="no adapters to save: were they merged already"):
        lora.save_adapter(model, tmp_path / "x")
    lora.unmerge_lora(model, adapters)
    with pytest.raises(ValueError, match="is not merged"):
        lora.unmerge_lora(model, adapters)


def test_an_adapter_that_is_not_finite_ruins_no_weight(model):
    lora.apply_lora(model, 2)
    before = model.blocks[0].attention.out_proj.base.weight.detach().clone()
    model.blocks[1].attention.out_proj.B.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="blocks.1.attention.out_proj is not finite"):
        lora.merge_lora(model)
    assert torch.equal(model.blocks[0].attention.out_proj.base.weight, before)
    assert "blocks.0.attention.out_proj" in lora.adapters_of(model)
