"""Llama and SmolLM2: equal to transformers, to the package gguf, to tokenizers and to llama.cpp; damaged files."""

import json
import struct
from dataclasses import replace

import gguf as package
import numpy as np
import pytest
import requests
import tokenizers
import torch
import transformers
import xllamacpp
from torch import nn
from torch.testing import assert_close

from shared import data
from shared.bigrams import bigram_loss
from shared.checkpoints import load_base, load_gguf, load_model, main, save_gguf, save_model
from shared.classification import SpamClassifier
from shared.data.places import SAMPLES, is_sample
from shared.generation import generate
from shared.gguf import dequantize, read_gguf, write_gguf
from shared.llama import LlamaConfig, LlamaModel, RMSNorm, SwiGLU, rotary_angles, rotate
from shared.llama_files import config_from_json, config_to_json, to_gguf, to_published
from shared.loss import next_token_loss
from shared.smollm_tokenizer import from_tokenizer_json, to_tokenizer_json
from tools.smollm2_tiny import texts

TINY = SAMPLES / "smollm2-tiny.gguf"
CONFIG = LlamaConfig(300, 64, emb_dim=48, n_heads=6, n_kv_heads=2, n_layers=3, hidden_dim=80, rope_base=500.0)


def make(config=CONFIG):
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def theirs(model):
    settings = {k: v for k, v in config_to_json(model.config).items() if k not in ("architectures", "model_type")}
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    missing, unexpected = other.load_state_dict(to_published(model), strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if model.config.tie_weights else [])
    return other


@pytest.fixture(scope="module")
def tiny():
    return load_gguf(TINY)


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 6}, {"n_kv_heads": 1, "tie_weights": False}])
@torch.no_grad()
def test_logits_equal_those_of_transformers(changes):
    model = make(replace(CONFIG, **changes))
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    assert_close(model(tokens), theirs(model)(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_parts_equal_the_libraries():
    x = torch.randn(3, 5, 16)
    norm, reference = RMSNorm(16, 1e-6), nn.RMSNorm(16, 1e-6)
    norm.weight.copy_(torch.randn(16))
    reference.weight.copy_(norm.weight)
    assert_close(norm(x), reference(x))
    ours, config = SwiGLU(16, 24), transformers.LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)
    mlp = transformers.models.llama.modeling_llama.LlamaMLP(config)
    for mine, other in ((ours.gate, mlp.gate_proj), (ours.expand, mlp.up_proj), (ours.contract, mlp.down_proj)):
        other.weight.copy_(mine.weight)
    assert_close(ours(x), mlp(x))


def test_a_rotated_score_depends_on_the_distance_only():
    q, k = torch.randn(2, 1, 32)

    def score(i, j):
        a, b = (rotate(x, *rotary_angles(torch.tensor([at]), 32, 100.0)) for x, at in ((q, i), (k, j)))
        return (a @ b.T).item()

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(5, 5) == pytest.approx((q @ k.T).item(), abs=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_heads": 5}, "divisible by twice n_heads"), ({"n_kv_heads": 4}, "divisible by n_kv_heads"),
    ({"n_layers": 0}, "n_layers is 0"),
])  # fmt: skip
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_bad_tokens_are_named():
    with pytest.raises(ValueError, match="token id 300 is outside the vocabulary of 300"):
        make()(torch.tensor([[1, 300]]))
    for T in (0, 65):
        with pytest.raises(ValueError, match=f"the input has {T} tokens; it must have 1 to 64"):
            make()(torch.zeros(1, T, dtype=torch.long))


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"), ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"rope_theta": "x"}, "rope_theta 'x'"), ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is"), ({"head_dim": 7}, "head_dim is 7"),
    ({"vocab_size": None}, "vocab_size is None"), ({"tie_word_embeddings": 1}, "tie_word_embeddings 1"),
    ({"num_key_value_heads": 4}, "divisible by n_kv_heads"), ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
])  # fmt: skip
def test_settings_that_are_refused(changes, message):
    assert config_from_json(config_to_json(CONFIG)) == CONFIG
    with pytest.raises(ValueError, match=message):
        config_from_json(config_to_json(CONFIG) | changes)


# --- the stand-in ----------------------------------------------------------------------------------------------------


def test_the_stand_in_is_small_and_beats_counted_bigrams(tiny):
    model, encoding = tiny
    ids = {held: [i for n, text in enumerate(texts()) if (n % 10 == 9) == held
                  for i in [*encoding.encode(text, allowed_special="all"), 0]] for held in (False, True)}  # fmt: skip
    held = torch.tensor(ids[True][: len(ids[True]) // 128 * 128 + 1])
    x, y = held[:-1].view(-1, 128), held[1:].view(-1, 128)
    with torch.no_grad():
        loss = next_token_loss(model, x, y).item()
    assert loss < bigram_loss(ids[False], ids[True], encoding.n_vocab) - 0.05 and TINY.stat().st_size < 2_000_000
    model, encoding = load_base("smollm2") if is_sample(data.fetch("smollm2")) else tiny
    assert type(model) is LlamaModel and encoding.name == "smollm2-tiny"


def test_numbers_equal_those_of_the_package_gguf(tiny):
    _, stored = read_gguf(TINY)
    reader = package.GGUFReader(TINY)
    assert {"Q4_1", "Q8_0", "F32"} == {tensor.tensor_type.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = package.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(dequantize(*stored[tensor.name]).numpy(), expected), tensor.name
    settings = read_gguf(TINY)[0]
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert settings[key] == field.contents(), key


def test_encoding_equals_that_of_tokenizers(tiny):
    encoding = tiny[1]
    found = json.loads(json.dumps(to_tokenizer_json(encoding)))
    reference = tokenizers.Tokenizer.from_str(json.dumps(found))
    draw = np.random.default_rng(0)
    letters = [*map(chr, range(32, 127)), *"\n\té漢😀\u0300٣²", " 12", "'s", "  ", "the", " a"]
    for text in ["".join(draw.choice(letters, draw.integers(1, 14))) for _ in range(2000)]:
        assert encoding.encode_ordinary(text) == reference.encode(text, add_special_tokens=False).ids, text
        assert encoding.decode(encoding.encode_ordinary(text)) == text
    again, text = from_tokenizer_json(found, "again"), "<|im_start|>a 12"
    assert again.encode(text, allowed_special="all") == encoding.encode(text, allowed_special="all")
    assert from_tokenizer_json({"pre_tokenizer": {"type": "ByteLevel"}}, "gpt2") is None
    assert encoding.encode_ordinary("a\ud800") == encoding.encode_ordinary("a\ufffd")


def test_bytes_without_a_token_are_left_out(tiny):
    found = to_tokenizer_json(tiny[1])
    del found["model"]["vocab"]["A"]
    lower = {name: i - (i > tiny[1].encode_single_token("A")) for name, i in found["model"]["vocab"].items()}
    found["model"]["vocab"], found["model"]["merges"] = lower, []
    smaller = from_tokenizer_json(found, "smaller")
    assert smaller.missing == [ord("A")] and smaller.n_vocab == tiny[1].n_vocab - 1
    assert smaller.decode(smaller.encode_ordinary("bAb")) == "bb"
    assert max(smaller.encode("AAA b", allowed_special="all")) < smaller.n_vocab


def test_a_folder_loads_in_transformers_and_back(tiny, tmp_path):
    model, encoding = tiny
    save_model(model, encoding, tmp_path, chat_template="{{ messages[0]['content'] }}")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The lamp in room 12 burned low."
    ids = encoding.encode_ordinary(text)
    assert tokenizer(text)["input_ids"] == ids and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    with torch.no_grad():
        assert_close(other(torch.tensor([ids])).logits, model(torch.tensor([ids])), rtol=1e-4, atol=1e-4)
    again, its = load_model(tmp_path)
    assert again.config == model.config and its.encode_ordinary(text) == ids
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_classifier_on_it_loads_in_transformers_and_back(tiny, tmp_path):
    model, encoding = tiny
    classifier, texts = SpamClassifier(model, encoding, threshold=0.3).eval(), ["The lamp burned low.", "WIN 12 now"]
    classifier.save(tmp_path)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(other).__name__ == "LlamaForSequenceClassification"
    for text, p in zip(texts, classifier.predict(texts)[1], strict=True):
        ids = torch.tensor([encoding.encode_ordinary(text)])
        with torch.no_grad():
            assert_close(other(ids).logits.softmax(dim=-1)[0], p, rtol=1e-4, atol=1e-5)
    again = SpamClassifier.load(tmp_path)
    assert again.threshold == 0.3 and torch.equal(again.predict(texts)[1], classifier.predict(texts)[1])


def test_llama_cpp_chooses_the_same_tokens(tiny, tmp_path, capfd):
    model, encoding = tiny
    save_gguf(model, encoding, tmp_path / "ours.gguf")
    assert main([str(tmp_path), "--gguf", "x"]) == 1  # that is no folder of a checkpoint
    again, _ = load_gguf(tmp_path / "ours.gguf")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(tmp_path / "ours.gguf"), 256, 1
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    for prompt in ("The lamp", "<|im_start|>user\nName a colour.<|im_end|>\n", "In 1912", "She said", "Water"):
        ids = encoding.encode(prompt, allowed_special="all")
        wanted = generate(model, [ids], 64, eos_id=2, n_vocab=encoding.n_vocab)[0, len(ids):].tolist()
        body = {"prompt": ids, "n_predict": 64, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        told = requests.post(f"{server.listening_address}/completion", json=body, timeout=60).json()["tokens"]
        assert told == wanted[: len(told)] and len(told) >= min(64, len(wanted) - 1), prompt


# --- files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3, 20, 500, 5_000, 100_000, -1])
def test_a_file_that_was_cut_off(tmp_path, cut):
    file = tmp_path / "cut.gguf"
    file.write_bytes(TINY.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut\.gguf .*(cut off|is empty|in the middle)"):
        load_gguf(file)


def changed(tmp_path, changes=(), kinds=None):
    settings, stored = read_gguf(TINY)
    tensors = {name: dequantize(*one) for name, one in stored.items()}
    file = tmp_path / "changed.gguf"
    write_gguf(file, settings["general.architecture"], settings | dict(changes), tensors, kinds)
    return file


@pytest.mark.parametrize(("changes", "message"), [
    ({"llama.block_count": 10**6}, "num_hidden_layers is 1000000"),
    ({"tokenizer.ggml.pre": "llama-bpe"}, "pre is 'llama-bpe'"),
    ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [3, 3]}, "2 tokens, but its embedding 1027"),
    ({"llama.attention.head_count": 7}, "divisible"), ({"llama.embedding_length": 64}, "token_embedding.weight is"),
])  # fmt: skip
def test_settings_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"changed\.gguf.*{message}"):
        load_gguf(changed(tmp_path, changes))


def test_other_architectures_kinds_and_letters_are_named(tmp_path):
    file = tmp_path / "x.gguf"
    write_gguf(file, "gpt2", {"gpt2.block_count": 1}, {"token_embd.weight": torch.zeros(2, 32)})
    with pytest.raises(ValueError, match="general.architecture is 'gpt2'; this model is 'llama'"):
        load_gguf(file)
    with pytest.raises(ValueError, match="is stored in format 2; known here are F32, F16, Q4_1, Q8_0"):
        load_gguf(changed(tmp_path, kinds={"blk.0.attn_q.weight": "Q4_0"}))
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match=r"x\.gguf cannot be read as GGUF: it does not begin with the letters GGUF"):
        read_gguf(file)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60))
    with pytest.raises(ValueError, match="cut off"):
        read_gguf(file)
    file.write_bytes(b"GGUF" + struct.pack("<I", 9) + bytes(50))
    with pytest.raises(ValueError, match="it has version 9"):
        read_gguf(file)
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize("place", range(4, 1500, 37))
def test_a_flipped_bit_in_the_header_is_no_traceback(tmp_path, place):
    content = bytearray(TINY.read_bytes())
    content[place] ^= 1 << (place % 8)
    file = tmp_path / "flipped.gguf"
    file.write_bytes(content)
    try:
        load_gguf(file)
    except ValueError as error:
        assert "flipped.gguf" in str(error)


# --- the real file ---------------------------------------------------------------------------------------------------


def test_smollm2_answers():
    file = data.fetch("smollm2")
    if is_sample(file):
        pytest.skip("SmolLM2's file is not here")
    model, encoding = load_gguf(file)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008 and encoding.n_vocab == 49_152
    asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = encoding.encode(asked, allowed_special="all")
    out = generate(model, [ids], 20, eos_id=2)[0, len(ids):].tolist()
    assert encoding.decode(out).removesuffix("<|im_end|>") == "The capital of France is Paris."
    assert to_gguf(model)["blk.0.attn_q.weight"].equal(dequantize(*read_gguf(file)[1]["blk.0.attn_q.weight"]))
    assert to_tokenizer_json(encoding)["model"]["merges"] == read_gguf(file)[0]["tokenizer.ggml.merges"]
