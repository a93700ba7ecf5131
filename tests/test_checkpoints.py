"""Checkpoints in and out, against `transformers` and `gguf`, and all that can be wrong with a file."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from shared import checkpoints, data
from shared import files as shared_files
from shared.checkpoints import (
    empty_model,
    load_base,
    load_gpt2,
    load_model,
    load_weights,
    save_model,
)
from shared.classification import SpamClassifier
from shared.generation import generate
from shared.gpt import (
    GPT2_CONFIGS,
    GPTConfig,
    GPTModel,
    count_parameters,
    from_published,
    is_transposed,
    published_name,
    to_published,
)
from shared.loss import next_token_loss
from shared.tokenizer import BPETokenizer
from shared.training import make_optimizer, training_step

ROOT = Path(__file__).resolve().parents[1]
STORY = (ROOT / "shared/data/samples/the-lamp-room.txt").read_text(encoding="utf-8")
CONFIG = GPTConfig(600, 32, emb_dim=48, n_heads=4, n_layers=2)
TOKENS = torch.randint(0, 600, (2, 20), generator=torch.Generator().manual_seed(0))
TEXT = "It's 12 o'clock, naïve 漢字\n\n  and  <|endoftext|>The lamp"
CHAT = """{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"""


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer().train(STORY, 600)


def make(config=CONFIG, seed=1):
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero or one, so that nothing can be mixed up unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def folder(tmp_path, bpe):
    save_model(make(), bpe.to_tiktoken("x"), tmp_path / "my_gpt")
    return tmp_path / "my_gpt"


def edit(folder, **changes):
    """Change config.json; None takes a key away."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def rewrite(folder, change):
    """Replace the tensors of a folder by `change(tensors)`."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


# --- with transformers as the oracle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_transformers_loads_what_we_export(tmp_path, bpe, tied, qkv_bias):
    import transformers

    model = make(replace(CONFIG, tie_weights=tied, qkv_bias=qkv_bias))
    save_model(model, bpe.to_tiktoken("x"), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(theirs(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-5)
    ours, tokenizer = load_model(tmp_path)
    assert_close(ours(TOKENS), model(TOKENS), rtol=0, atol=1e-5)
    assert ours.config == replace(model.config, qkv_bias=True) and not ours.training
    assert (ours.head.weight is ours.token_embedding.weight) == tied
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())
    assert tokenizer.name == tmp_path.name


@pytest.mark.parametrize("tied", [True, False])
def test_we_load_what_transformers_saves(tmp_path, tied):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=300, n_positions=24, n_embd=32, n_head=2, n_layer=3, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = load_model(tmp_path)
    tokens = torch.randint(0, 300, (3, 24))
    assert tokenizer is None and ours.config.drop_rate == 0.1
    assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    save_model(ours, None, tmp_path / "again")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_published_names_are_those_of_transformers():
    import transformers

    config = GPT2_CONFIGS["gpt2"]
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        ours = GPTModel(config)
    shapes = {name.removeprefix("transformer."): p.shape for name, p in theirs.named_parameters()}
    found = {}
    for name, parameter in ours.named_parameters():
        shape = parameter.shape[::-1] if is_transposed(published_name(name)) else parameter.shape
        found[published_name(name)] = shape
    assert found == shapes and count_parameters(ours) == 124_439_808


def test_auto_tokenizer_equals_ours(folder):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    _, ours = load_model(folder)
    for text in (TEXT, STORY[:3000], "", " ", "\t \n x", "don't DON'T 1234567"):
        ids = ours.encode(text, allowed_special="all")
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.pad_token_id == ours.eot_token and len(theirs) == ours.n_vocab
    assert theirs.model_max_length == 32


def test_folder_that_transformers_wrote_keeps_its_tokenizer(folder, tmp_path):
    import transformers

    _, ours = load_model(folder)
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    model, tokenizer = load_model(tmp_path / "theirs")
    assert tokenizer.encode(TEXT, allowed_special="all") == ours.encode(TEXT, allowed_special="all")
    assert tokenizer.n_vocab == ours.n_vocab and tokenizer.eot_token == ours.eot_token
    assert_close(model(TOKENS), make()(TOKENS), rtol=0, atol=1e-5)


def test_pipeline_plain_and_chat(tmp_path, bpe):
    import transformers

    save_model(make(), bpe.to_tiktoken("x"), tmp_path, chat_template=CHAT)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path))
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert pipe("The lamp", **settings)[0]["generated_text"].startswith("The lamp")
    messages = [{"role": "user", "content": "Hello"}]
    answer = pipe(messages, **settings)[0]["generated_text"]
    assert answer[0] == messages[0] and answer[1]["role"] == "assistant"
    plain = pipe("user: Hello\nbot:", **settings)[0]["generated_text"]
    assert plain == "user: Hello\nbot:" + answer[1]["content"]
    save_model(make(), bpe.to_tiktoken("x"), tmp_path)  # without a template: the old one is gone
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template is None


def test_special_tokens_of_a_chat_are_special_in_transformers(tmp_path):
    import transformers

    bpe = BPETokenizer().train(STORY, 600, special_tokens=("<|endoftext|>", "<|user|>", "<|bot|>"))
    save_model(make(), bpe.to_tiktoken("chat"), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    _, ours = load_model(tmp_path)
    text = "<|user|>Hello<|bot|>"
    assert theirs(text).input_ids == ours.encode(text, allowed_special="all")
    assert theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == "Hello"


# --- ours, there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, bpe, dtype):
    model = make()
    save_model(make().to(dtype), bpe.to_tiktoken("x"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    ours, _ = load_model(tmp_path)
    for (name, a), b in zip(ours.named_parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.to(dtype).float()), name


def test_no_tokenizer(tmp_path):
    save_model(make(), None, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "generation_config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1  # readable for whom the others are
    model, tokenizer = load_model(tmp_path)
    assert tokenizer is None and torch.equal(model(TOKENS), load_model(str(tmp_path))[0](TOKENS))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_prefix_and_masks(folder, prefix, masks):
    def change(tensors):
        if masks:
            tensors |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
            tensors |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
        return tensors if prefix else {name.removeprefix("transformer."): t for name, t in tensors.items()}

    rewrite(folder, change)
    model, _ = load_model(folder)
    assert_close(model(TOKENS), make()(TOKENS), rtol=0, atol=1e-5)


def test_several_files(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    for i, part in enumerate((names[:10], names[10:]), start=1):
        save_file({name: tensors[name] for name in part}, folder / f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    assert_close(load_model(folder)[0](TOKENS), make()(TOKENS), rtol=0, atol=1e-5)


def test_training_changes_the_model_and_not_the_file(folder, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    model, tokenizer = load_model(folder)
    fresh = make()
    for each in (model, fresh):
        optimizer = make_optimizer(each.train(), lr=1e-2)
        for _ in range(3):
            batch = [(TOKENS[:, :-1], TOKENS[:, 1:])]
            training_step(each, batch, next_token_loss, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    assert_close(model.eval()(TOKENS), fresh.eval()(TOKENS), rtol=0, atol=1e-4)
    assert (model(TOKENS) - make()(TOKENS)).abs().max() > 0.1
    assert model.head.weight is model.token_embedding.weight
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == before
    save_model(model, tokenizer, folder)  # over the file that it was mapped from
    assert_close(load_model(folder)[0](TOKENS), model(TOKENS), rtol=0, atol=1e-5)


def test_random_numbers_are_left_alone(folder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(state, torch.get_rng_state())
    layer = torch.nn.Linear(3, 3)
    assert layer.weight.std() > 0.1  # initialisation works again


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_padded_vocabulary(folder, tmp_path):
    """Rows beyond the tokenizer's ids, or beyond config.json's vocab_size where there is no tokenizer, are cut off."""
    pad = torch.full((40, 48), 7.0)
    rewrite(folder, lambda t: t | {"transformer.wte.weight": torch.cat([t["transformer.wte.weight"], pad])})
    model, tokenizer = load_model(folder)
    assert model.config.vocab_size == 600 and model.head.weight.shape == (600, 48)
    assert_close(model(TOKENS), make()(TOKENS), rtol=0, atol=1e-5)
    edit(folder, vocab_size=640)
    model, tokenizer = load_model(folder)
    assert model.config == make().config and tokenizer.n_vocab == 600
    assert_close(model(TOKENS), make()(TOKENS), rtol=0, atol=1e-5)
    (folder / "vocab.json").rename(folder / "aside.json")
    assert load_model(folder)[0](TOKENS).shape[-1] == 640
    (folder / "aside.json").rename(folder / "vocab.json")
    edit(folder, vocab_size=641)
    with pytest.raises(ValueError, match=r"token_embedding.weight is \[640, 48\] float32; the model has \[641, 48\]"):
        load_model(folder)
    edit(folder, vocab_size=599)
    with pytest.raises(ValueError, match="the tokenizer has 600 tokens, the model 599"):
        load_model(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_without_a_text_is_never_chosen(tmp_path, bpe, tied):
    """Vocabularies are often rounded up to a multiple of 64; here the added ids would win every choice."""
    import transformers

    model = make(replace(CONFIG, vocab_size=640, tie_weights=tied))
    with torch.no_grad():
        model.head.weight[600:] = 50 * model.hidden(TOKENS)[0, -1]
    assert generate(model, TOKENS[:1], 5)[0, -5:].min() >= 600
    save_model(model, bpe.to_tiktoken("x"), tmp_path / "padded")
    loaded, tokenizer = load_model(tmp_path / "padded")
    assert_close(loaded(TOKENS), model(TOKENS)[..., :600], rtol=0, atol=1e-5)
    assert (loaded.head.weight is loaded.token_embedding.weight) == tied
    tokens = generate(loaded, TOKENS[:1], 12)
    assert tokens.max() < 600 and tokenizer.decode(tokens[0].tolist())
    save_model(loaded, tokenizer, tmp_path / "cut")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert_close(theirs(TOKENS).logits, loaded(TOKENS), rtol=0, atol=1e-5)
    assert theirs.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(tmp_path / "cut")) == 600


@pytest.mark.parametrize("tied", [True, False])
def test_padded_head(tmp_path, tied):
    model = make(replace(CONFIG, tie_weights=False))
    save_model(model, None, tmp_path)
    pad = torch.full((8, 48), 7.0)
    rewrite(tmp_path, lambda t: t | {name: torch.cat([t[name], pad]) for name in t if "wte" in name or "head" in name})
    if not tied:
        assert_close(load_model(tmp_path)[0](TOKENS), model(TOKENS), rtol=0, atol=1e-5)
    else:
        edit(tmp_path, tie_word_embeddings=True)
        with pytest.raises(ValueError, match="head.weight is not equal to token_embedding.weight, to which the config"):
            load_model(tmp_path)
        rewrite(tmp_path, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()})
        loaded, _ = load_model(tmp_path)  # a tied head that is stored all the same
        assert loaded.head.weight is loaded.token_embedding.weight
        assert torch.equal(loaded.head.weight, model.token_embedding.weight)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: {n: x for n, x in t.items() if "h.1.ln_2.bias" not in n}, r"lacks blocks.1.norm2.bias \(1\)"),
    (lambda t: t | {"transformer.h.2.ln_1.bias": torch.zeros(48)}, r"has unknown h.2.ln_1.bias \(1\)"),
    (lambda t: {n.replace("c_fc", "up"): x for n, x in t.items()},
     r"lacks blocks.0.feed_forward.expand.bias, blocks.0.feed_forward.expand.weight, blocks.1.feed_forward.expand.bias"
     r" \(4\) and has unknown h.0.mlp.up.bias"),
    (lambda t: t | {"transformer.h.0.mlp.c_fc.weight": t["transformer.h.0.mlp.c_fc.weight"].T.contiguous()},
     r"blocks.0.feed_forward.expand.weight is \[48, 192\] float32; the model has \[192, 48\]"),
    (lambda t: t | {"transformer.wpe.weight": torch.zeros(31, 48)}, r"position_embedding.weight is \[31, 48\]"),
    (lambda t: t | {"transformer.wpe.weight": torch.zeros(33, 48)}, r"position_embedding.weight is \[33, 48\]"),
    (lambda t: t | {"transformer.wte.weight": torch.zeros(600 * 48)}, r"token_embedding.weight is \[28800\] float32"),
    (lambda t: t | {"transformer.wte.weight": torch.zeros(())}, r"token_embedding.weight is \[\] float32"),
    (lambda t: t | {"lm_head.weight": torch.zeros(())}, r"head.weight is not equal to token_embedding.weight"),
    (lambda t: t | {"transformer.h.1.mlp.c_fc.weight": torch.zeros(3, 4, 5)}, r"expand.weight is \[3, 4, 5\] float32"),
    (lambda t: t | {"transformer.ln_f.bias": torch.zeros(48, dtype=torch.int64)}, r"final_norm.bias is \[48\] int64"),
    (lambda t: {n: x for n, x in t.items() if "wpe" not in n}, r"GPTModel of 2 layers.* it lacks position_embedding.w"),
    (lambda t: {"a": torch.zeros(1)}, r"model.safetensors is no GPTModel of 2 layers.* \(28\) and has unknown a \(1\)"),
    (lambda t: {}, r"model.safetensors is no GPTModel of 2 layers.* it lacks blocks.0.* \(28\)"),
])  # fmt: skip
def test_wrong_names_and_shapes_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_untied_without_a_head(folder):
    edit(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"is no GPTModel of 2 layers, tie_weights=False: it lacks head.weight \(1\)"):
        load_model(folder)


@pytest.mark.parametrize("left", [0, 5, 300, -1])
def test_truncated_file(folder, left):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:left])
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        load_model(folder)


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "llama"}, "config.json: max_position_embeddings is None; it must be an integer"),
    ({"model_type": "bert"}, "config.json: model_type is 'bert'; it must be one of gpt2, llama"),
    ({"model_type": []}, r"config.json: model_type is \[\]"),
    ({"activation_function": "relu"}, "activation_function is"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"), ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer"),
    ({"n_inner": 100}, "n_inner is 100"), ({"n_embd": None}, "config.json: n_embd is None; it must be an integer"),
    ({"n_head": 5}, "config.json: .*divisible"), ({"n_head": 10**9}, "n_head is 1000000000; it must be"),
    ({"n_layer": 10**9}, "config.json: n_layer is 1000000000; it must be an integer from 1 to 1000"),
    ({"n_layer": 3}, r"no GPTModel of 3 layers.* it lacks blocks.2.attention.out_proj.bias"),
    ({"n_layer": 1}, "has unknown h.1.attn"),
    ({"n_positions": 10**9}, r"safetensors: position_embedding.weight is \[32, 48\] float32; the model has \[10000"),
    ({"vocab_size": 2**31 - 1}, r"safetensors: token_embedding.weight is \[600, 48\] float32; the model has \[21474"),
    ({"n_embd": 2**31 - 4}, "config.json: n_embd is 2147483644; it must be an integer from 1 to 65536"),
    ({"n_embd": 2**16}, r"safetensors: token_embedding.weight is \[600, 48\] float32; the model has \[600, 65536\]"),
    ({"resid_pdrop": "0.1"}, "config.json: resid_pdrop is '0.1'"), ({"resid_pdrop": 2}, "config.json: drop_rate is 2"),
    ({"resid_pdrop": float("nan")}, "config.json: drop_rate is nan"), ({"resid_pdrop": []}, r"resid_pdrop is \[\]"),
    ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings is 'no'"),
])  # fmt: skip
def test_other_architectures_are_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"])
@pytest.mark.parametrize("size", [None, "12", 2.0, True, -1, 0, 10**30, [2], {"a": 2}])
def test_sizes_that_are_none(folder, key, size, monkeypatch):
    """They are refused before a model is made."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {key: size}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(checkpoints, "empty_model", None)
    with pytest.raises(ValueError, match=rf"my_gpt.config.json: {key} is .*; it must be an integer from 1"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"a"', b"", b"{", b"\xff\xfe{\x00}\x00", b"[" * 100_000,
                                     b'{"a":' * 100_000, b'{"a": "b"}', b'{"a": null}'])  # fmt: skip
def test_json_files_that_hold_something_else(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("change", [
    {"model": []}, {"model": {"vocab": [], "merges": []}}, {"model": {"vocab": {"a": "b"}, "merges": ["a b"]}},
    {"added_tokens": {"<a>": 600}}, {"added_tokens": [3]}, {"added_tokens": [{"id": [], "content": "<a>"}]},
    {"added_tokens": [{"id": None, "content": "<|endoftext|>"}]}, {"pre_tokenizer": None},
    {"model": {"vocab": {}, "merges": [3]}}, {"model": {"vocab": {}, "merges": [["a", 3]]}},
])  # fmt: skip
def test_tokenizer_json_of_another_form(folder, change):
    whole = {"model": {"vocab": json.loads((folder / "vocab.json").read_text()), "merges": []}, "added_tokens": [],
             "pre_tokenizer": {"type": "ByteLevel"}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole | change), encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json holds no byte-pair encoding"):
        load_model(folder)


def test_files_with_a_byte_order_mark(folder):
    for name in ("config.json", "vocab.json", "merges.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    model, tokenizer = load_model(folder)
    assert tokenizer.decode(tokenizer.encode("It's naïve")) == "It's naïve" and tokenizer.n_vocab == 600
    (folder / "merges.txt").write_bytes(b"\xe9 \xe9\n")
    with pytest.raises(ValueError, match="my_gpt.merges.txt is damaged: 'utf-8' codec"):
        load_model(folder)


def test_added_tokens(folder):
    """Tokens that were added after training, as transformers 4 keeps them, belong to the vocabulary."""
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    added = {"<|endoftext|>": ids.pop("<|endoftext|>"), "<pad>": 600}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    pad = torch.full((40, 48), 7.0)
    rewrite(folder, lambda t: t | {"transformer.wte.weight": torch.cat([t["transformer.wte.weight"], pad])})
    edit(folder, vocab_size=640)
    model, tokenizer = load_model(folder)
    assert tokenizer.encode("a<pad>", allowed_special="all")[1:] == [600] and tokenizer.eot_token == 599
    assert model.config.vocab_size == 601
    save_model(model, tokenizer, folder)
    again = load_model(folder)
    assert again[0].config.vocab_size == 601 and again[1]._special_tokens == tokenizer._special_tokens
    (folder / "added_tokens.json").write_text('{"<pad>": 700}', encoding="utf-8")
    with pytest.raises(ValueError, match="added_tokens.json does not hold the ids"):
        load_model(folder)


def test_damaged_headers(tmp_path):
    """Whatever bit of a header is flipped: the file is named, or what was hit carries no meaning."""
    save_model(make(GPTConfig(260, 4, 4, 1, 1)), None, tmp_path)
    file = tmp_path / "model.safetensors"
    whole, loaded = file.read_bytes(), 0
    length = int.from_bytes(whole[:8], "little")
    for place in [*range(8), *range(8, 8 + length, 3)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            load_model(tmp_path)
            loaded += 1
        except ValueError as error:
            assert str(file) in str(error), place
    assert loaded < 20  # in "__metadata__", or a blank


@pytest.fixture
def spam(tmp_path, bpe):
    SpamClassifier(make(), bpe.to_tiktoken("x")).save(tmp_path / "spam")
    return tmp_path / "spam"


@pytest.mark.parametrize("score", [torch.zeros(2, 47), torch.zeros(2, 1), torch.zeros(48), torch.zeros(()),
                                   torch.zeros(0, 48), torch.zeros(2, 48, 1), torch.zeros(2, 48, dtype=torch.int64)])
def test_an_output_layer_of_another_shape(spam, score):
    rewrite(spam, lambda tensors: tensors | {"score.weight": score})
    found = re.escape(f"{list(score.shape)} {str(score.dtype).removeprefix('torch.')}")
    with pytest.raises(ValueError, match=rf"spam.model.safetensors: score.weight is {found}; a classifier has .labels"):
        SpamClassifier.load(spam)


@pytest.mark.parametrize("names", [["ham", "spam"], "ham", 3, {"0": "ham", "1": None}, {"0": 1, "1": 2}, {"1": ["a"]}])
def test_labels_that_are_no_names(spam, names):
    edit(spam, id2label=names)
    with pytest.raises(ValueError, match="spam.config.json: id2label must give each number of a label its name"):
        SpamClassifier.load(spam)


def test_a_classifier_in_several_files_and_one_whose_tokenizer_ends_nothing(spam, bpe):
    whole = load_file(spam / "model.safetensors")
    for i, names in enumerate((list(whole)[:5], list(whole)[5:]), 1):
        save_file({name: whole[name] for name in names}, spam / f"model-0000{i}-of-00002.safetensors")
    (spam / "model.safetensors").unlink()
    assert torch.equal(SpamClassifier.load(spam).head.weight, whole["score.weight"])
    bare = BPETokenizer(list(bpe.merges), ["<pad>"])
    bare.save(spam)
    with pytest.raises(ValueError, match="spam: its tokenizer has no <.endoftext.>"):
        SpamClassifier.load(spam)


def test_missing_and_damaged_files(folder):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_model(folder / "nowhere")
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        load_model(folder)
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json holds no byte-pair encoding"):
        load_model(folder)
    foreign = {"model": {"vocab": {}, "merges": []}, "added_tokens": [], "pre_tokenizer": {"type": "Metaspace"}}
    (folder / "tokenizer.json").write_text(json.dumps(foreign), encoding="utf-8")
    with pytest.raises(ValueError, match="cuts text by Metaspace, not by GPT-2's rule"):
        load_model(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="config.json is damaged: Expecting property name"):
        load_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    edit_free = {"vocab_size": 600, "n_positions": 32, "n_embd": 48, "n_head": 4, "n_layer": 2}
    (folder / "config.json").write_text(json.dumps(edit_free), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="safetensors files only"):
        load_model(folder)


def test_full_disk_leaves_the_old_checkpoint(folder, bpe, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_json", full)
    with pytest.raises(OSError, match="could not be written .*No space left.* what was there is untouched"):
        save_model(make(seed=2), bpe.to_tiktoken("x"), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("name", [".partial", ".partial-export-mine"])
def test_export_takes_nothing_out_of_a_linked_folder(tmp_path, folder, bpe, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in ("thesis.txt", "model.safetensors", "vocab.bpe"):
        (mine / file).write_text("years of work", encoding="utf-8")
    os.symlink(mine, folder / name)
    before = sorted(os.listdir(folder))
    save_model(make(seed=2), bpe.to_tiktoken("x"), folder)
    assert {file.name: file.read_text() for file in mine.iterdir()} == dict.fromkeys(
        ("thesis.txt", "model.safetensors", "vocab.bpe"), "years of work")  # fmt: skip
    assert sorted(os.listdir(folder)) == before
    assert_close(load_model(folder)[0](TOKENS), make(seed=2)(TOKENS), rtol=0, atol=1e-5)


def test_export_over_links_leaves_what_they_lead_to(tmp_path, folder, bpe):
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(tmp_path / name)
        os.symlink(tmp_path / name, folder / name)
    before = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "config.json")}
    save_model(make(replace(CONFIG, n_layers=1)), bpe.to_tiktoken("x"), folder)
    assert not any(file.is_symlink() for file in folder.iterdir())
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert load_model(folder)[0].config.n_layers == 1


def test_what_a_killed_export_left_is_taken_away_and_not_what_another_writes(folder, bpe):
    before = sorted(os.listdir(folder))
    for name, age in ("left", 4000), ("now", 1):
        left = folder / f"{shared_files._ASIDE}{name}"
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    (folder / f"{shared_files._ASIDE}link").symlink_to("nowhere")
    save_model(make(), bpe.to_tiktoken("x"), folder)
    there = {f"{shared_files._ASIDE}now", f"{shared_files._ASIDE}link"}
    assert set(os.listdir(folder)) == {*before} | there


def test_two_that_write_into_one_folder_both_succeed(tmp_path):
    models = [make(replace(CONFIG, n_layers=n), seed=n) for n in (1, 2)]

    def save(model):
        for _ in range(10):
            save_model(model, None, tmp_path / "both")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(save, models)) == [None, None]
    assert sorted(os.listdir(tmp_path / "both")) == ["config.json", "generation_config.json", "model.safetensors"]


def test_all_files_are_on_the_disk_before_the_first_has_its_name(folder, bpe, monkeypatch):
    """Else a kill while the weights are brought to the disk would leave the new settings beside the old weights."""
    done, sync, move = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("move"), move(*paths)))
    save_model(make(seed=2), bpe.to_tiktoken("x"), folder)
    last = done.index("move", len(done) - 6)
    assert done[last:] == ["move"] * 6 and "sync" in done[:last]


def test_export_where_a_folder_has_the_name_of_a_file(folder, bpe):
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").mkdir()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="my_gpt could not be written .vocab.json is a folder there.*untouched"):
        save_model(make(seed=2), bpe.to_tiktoken("x"), folder)
    assert (folder / "model.safetensors").read_bytes() == before and (folder / "vocab.json").is_dir()


def test_an_error_between_the_renames_is_not_called_harmless(folder, bpe, monkeypatch):
    real = os.replace

    def replace_but_one(source, target):
        if Path(target) == folder / "merges.txt":
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_but_one)
    with pytest.raises(OSError, match="Permission denied.*only config.json, generation_config.json is new there"):
        save_model(make(seed=2), bpe.to_tiktoken("x"), folder)


def test_names_that_no_utf8_can_hold(tmp_path, bpe, capsys):
    config = {"id2label": {"0": "half \ud83d"}}
    save_model(make(), bpe.to_tiktoken("x"), tmp_path, chat_template="\udc00", settings=config)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["id2label"]["0"] == "half \ufffd"
    assert load_model(tmp_path)[1].n_vocab == 600


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_folder_with_a_latin1_name_is_refused(tmp_path, bpe, capsys):
    """safetensors opens no such path."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    save_model(make(), bpe.to_tiktoken("x"), folder)
    assert checkpoints.main([folder]) == 1
    assert "caf?/model.safetensors" in (out := capsys.readouterr().out) and "not valid UTF-8" in out


def test_a_model_without_a_tokenizer_is_not_saved_beside_another_ones(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, _ = load_model(folder)
    with pytest.raises(ValueError, match="holds a tokenizer"):
        save_model(model, None, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unsuitable_tokenizer_leaves_nothing(tmp_path, bpe):
    foreign = tiktoken.Encoding("foreign", pat_str=bpe.to_tiktoken("x")._pat_str, special_tokens={"PAD": 599},
                                mergeable_ranks={token: i for i, token in enumerate(bpe.tokens)})  # fmt: skip
    with pytest.raises(ValueError, match="special token 'PAD' must be written as <...> or"):
        save_model(make(), foreign, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*")) and not list((tmp_path / "new").glob(".*"))


def test_export_into_a_place_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="could not be written"):
        save_model(make(), None, tmp_path / "file")


# --- GPT-2 and the base ----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_gpt2(tmp_path, monkeypatch):
    """A registry and a cache in which "gpt2" is a tiny model, with the bundled encoding's files as GPT-2's."""
    config = GPTConfig(8192, 16, emb_dim=16, n_heads=2, n_layers=1)
    monkeypatch.setitem(GPT2_CONFIGS, "gpt2", config)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    for name in ("LLM_MIRROR", "LLM_BASE"):
        monkeypatch.delenv(name, raising=False)
    model = make(config)
    save_model(model, None, tmp_path / "data/gpt2")
    for name in ("gpt2_weights", "gpt2_vocab", "gpt2_encoder"):
        entry = data.registry.REGISTRY[name]
        if entry.sample:
            target = tmp_path / "data" / entry.file
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((data.places.SAMPLES / entry.sample).read_bytes())
        monkeypatch.setitem(data.registry.REGISTRY, name, replace(entry, size=None, sha256=None))
    return model


def test_load_gpt2(tiny_gpt2):
    model, tokenizer = load_gpt2()
    tokens = torch.randint(0, 8192, (2, 16))
    assert_close(model(tokens), tiny_gpt2(tokens))
    assert tokenizer.name == "gpt2" and tokenizer.n_vocab == 8192 and not model.training
    with pytest.raises(ValueError, match="there is no GPT-2 called 'gpt3'; there are gpt2, gpt2-medium"):
        load_gpt2("gpt3")
    with pytest.raises(data.DownloadError, match="gpt2-xl_weights could not be had"):
        load_gpt2("gpt2-xl")


def test_load_base(tiny_gpt2, folder, tmp_path, monkeypatch, capsys):
    save_model(make(seed=5), BPETokenizer().train(STORY, 600).to_tiktoken("x"), tmp_path / "course_base")
    monkeypatch.setattr(checkpoints, "COURSE_BASE", tmp_path / "course_base")
    monkeypatch.setenv("LLM_SCALE", "quick")
    assert load_base()[1].name == "course_base"
    assert load_base(folder)[1].name == "my_gpt"
    monkeypatch.setenv("LLM_SCALE", "full")
    assert load_base()[1].name == "gpt2" and capsys.readouterr().out == ""
    (tmp_path / "data/gpt2/model.safetensors").unlink()
    model, tokenizer = load_base()
    assert tokenizer.name == "course_base"
    assert_close(model(TOKENS), make(seed=5)(TOKENS), rtol=0, atol=1e-5)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "GPT-2" in out and "course base" in out
    monkeypatch.setenv("LLM_BASE", str(folder))
    assert load_base()[1].name == "my_gpt"
    assert load_base(tmp_path / "course_base")[1].name == "course_base"
    monkeypatch.setenv("LLM_BASE", "no/such/folder")
    with pytest.raises(FileNotFoundError, match="such"):
        load_base()


def test_load_base_refuses_a_model_that_no_lesson_can_use(folder, bpe, tmp_path, monkeypatch):
    save_model(make(), None, tmp_path / "mute")
    bare = BPETokenizer(list(bpe.merges), ["<pad>"])
    save_model(make(), bare.to_tiktoken("x"), tmp_path / "endless")
    for name, message in (("mute", "mute has no tokenizer: it needs"), ("endless", "endless: its tokenizer has no <")):
        assert load_model(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            load_base(tmp_path / name)
        monkeypatch.setenv("LLM_BASE", str(tmp_path / name))
        with pytest.raises(ValueError, match=message):
            load_base()


@pytest.mark.parametrize(("scale", "asked"), [("quick", []), ("full", ["gpt2-medium"])])
def test_load_base_of_a_size(scale, asked, monkeypatch):
    """The size is for full scale: lesson 5.1 asks for GPT-2 medium."""
    seen = []
    monkeypatch.setattr(checkpoints, "load_gpt2", lambda name: seen.append(name) or (None, None))
    monkeypatch.setenv("LLM_SCALE", scale)
    monkeypatch.delenv("LLM_BASE", raising=False)
    load_base(size="gpt2-medium")
    assert seen == asked


PEAK = """
import sys
from pathlib import Path
from shared.runtime import peak_memory
from shared.checkpoints import load_model
before = peak_memory()
model, _ = load_model(sys.argv[1])
total = sum(p.sum().item() for p in model.parameters())  # every page is read
print((peak_memory() - before) / Path(sys.argv[1], "model.safetensors").stat().st_size)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process its peak memory here")
def test_loading_takes_little_more_memory_than_the_file(tmp_path):
    save_model(GPTModel(GPTConfig(8000, 64, 512, 8, 6)), None, tmp_path)  # 92 MB
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.8 < float(result.stdout) < 1.2  # and it was seen at all


# --- what only a plain model of an architecture can be saved as -------------------------------------------------------


class Adapted(torch.nn.Module):
    """A layer with something beside it, as an adapter has it: it is called, and has no `weight`."""

    def __init__(self, layer, rank=0):
        super().__init__()
        self.inner = layer
        self.down = torch.nn.Linear(layer.in_features, rank, bias=False) if rank else None

    def forward(self, x):
        return 2 * self.inner(x)


def grouped(model):
    """The model with half as many key/value heads as heads, as far as its parameters go."""
    for block in model.blocks:
        block.attention.qkv = torch.nn.Linear(48, 48 + 2 * 24)
    return model


def replaced(model, name, change):
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, change(model.get_submodule(name)))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("change", "message"), [
    (lambda m: replaced(m, "head", Adapted), "has unknown head.inner.weight"),
    (lambda m: replaced(m, "head", lambda head: Adapted(head, 4)), "has unknown head.down.weight, head.inner.weight"),
    (lambda m: replaced(m, "blocks.1.attention.qkv", Adapted), "lacks blocks.1.attention.qkv.bias.*qkv.inner.bias"),
    (lambda m: replaced(m, "blocks.0.norm2", lambda norm: torch.nn.Identity()), "it lacks blocks.0.norm2.bias"),
    (grouped, r"blocks.0.attention.qkv.bias is \[96\] float32; the model has \[144\] for it|"
              r"blocks.0.attention.qkv.weight is \[96, 48\] float32; the model has \[144, 48\] for it"),
])  # fmt: skip
def test_a_model_that_has_other_tensors_is_not_saved(folder, bpe, tied, change, message):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = change(make(replace(CONFIG, tie_weights=tied)))
    with pytest.raises(ValueError, match=f"the model to be saved.*{message}"):
        save_model(model, bpe.to_tiktoken("x"), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_head_that_is_no_longer_tied_is_not_saved(tmp_path):
    model = make()
    model.head = torch.nn.Linear(48, 600, bias=False)
    with pytest.raises(ValueError, match="the model to be saved: head.weight is not equal to token_embedding.weight"):
        save_model(model, None, tmp_path / "new")
    model.head.weight.data.copy_(model.token_embedding.weight)
    save_model(model, None, tmp_path / "new")
    assert_close(load_model(tmp_path / "new")[0](TOKENS), model(TOKENS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["token_embedding.weight", "blocks.1.norm2.bias"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_damaged_weights_do_not_take_the_place_of_good_ones(folder, bpe, name, number):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = make()
    with torch.no_grad():
        model.get_parameter(name)[3] = number
    for save in (lambda: save_model(model, bpe.to_tiktoken("x"), folder),
                 lambda: checkpoints.save_gguf(model, bpe.to_tiktoken("x"), folder / "a.gguf")):  # fmt: skip
        with pytest.raises(ValueError, match=f"the model to be saved: {name} is not finite"):
            save()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_saved(folder):
    """The folder could not be read again, and what was there before would be gone."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    larger = BPETokenizer(special_tokens=[f"<{i}>" for i in range(CONFIG.vocab_size)]).to_tiktoken("x")
    for save in (lambda: save_model(make(), larger, folder),
                 lambda: checkpoints.save_gguf(make(), larger, folder / "a.gguf")):  # fmt: skip
        with pytest.raises(ValueError, match=f"has {CONFIG.vocab_size} tokens, its tokenizer {larger.n_vocab}"):
            save()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_what_is_no_known_model_is_not_saved(tmp_path, bpe):
    model = make()
    with pytest.raises(ValueError, match="the model to be saved.*lacks .* and has unknown gpt.blocks.0"):
        save_model(SpamClassifier(model, bpe.to_tiktoken("x")), None, tmp_path / "new")
    model.config = object()
    with pytest.raises(ValueError, match="there are no checkpoints for a object, only for gpt2"):
        save_model(model, None, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    assert checkpoints.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().out


def test_load_weights_alone(folder):
    model = load_weights(empty_model(CONFIG), [folder / "model.safetensors"], from_published)
    assert set(to_published(model)) == set(load_file(folder / "model.safetensors"))
