"""GGUF files, read back with the package `gguf`, which llama.cpp keeps."""

import os
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import requests
import torch
import xllamacpp

from shared import checkpoints
from shared.checkpoints import COURSE_BASE, load_base, save_gguf, save_model
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel
from shared.tokenizer import BPETokenizer

ROOT = Path(__file__).resolve().parents[1]
STORY = (ROOT / "shared/data/samples/the-lamp-room.txt").read_text(encoding="utf-8")
CONFIG = GPTConfig(600, 32, emb_dim=48, n_heads=4, n_layers=2)


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer().train(STORY, 600)


def make(config=CONFIG):
    torch.manual_seed(1)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def folder(tmp_path, bpe):
    save_model(make(), bpe.to_tiktoken("x"), tmp_path / "my_gpt")
    return tmp_path / "my_gpt"


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_reads_back_equal(tmp_path, bpe, tied, capsys):
    model = make(replace(CONFIG, tie_weights=tied))
    save_model(model, bpe.to_tiktoken("x"), tmp_path / "my_gpt")
    assert checkpoints.main([str(tmp_path / "my_gpt"), "--gguf", str(tmp_path / "my.gguf")]) == 0
    assert "parameters" in capsys.readouterr().out
    reader = gguf.GGUFReader(tmp_path / "my.gguf")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert torch.equal(found["token_embd.weight"], model.token_embedding.weight)
    assert torch.equal(found["blk.1.attn_qkv.weight"], model.blocks[1].attention.qkv.weight)
    assert torch.equal(found["blk.0.ffn_down.bias"], model.blocks[0].feed_forward.contract.bias)
    assert len(found) == len(list(model.parameters())) and ("output.weight" in found) != tied
    ours = sorted((tuple(p.shape), p.sum().item()) for p in model.parameters())
    assert ours == sorted((tuple(t.shape), t.sum().item()) for t in found.values())
    assert reader.fields["gpt2.block_count"].contents() == 2
    names = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(names) == 600 and names[-1] == "<|endoftext|>"
    assert len(reader.fields["tokenizer.ggml.merges"].contents()) == len(bpe.merges)
    assert not list(tmp_path.glob("*.part*"))


def test_gguf_leaves_links_and_older_files(tmp_path, folder, capsys, monkeypatch):
    (tmp_path / "mine").write_text("years of work", encoding="utf-8")
    for name in ("my.gguf", "my.gguf.part"):
        os.symlink(tmp_path / "mine", tmp_path / name)
    after = ["mine", "my.gguf", "my_gpt"]
    assert checkpoints.main([str(folder), "--gguf", str(tmp_path / "my.gguf")]) == 0
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "years of work"
    assert not (tmp_path / "my.gguf").is_symlink() and sorted(os.listdir(tmp_path)) == after
    whole = (tmp_path / "my.gguf").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    assert checkpoints.main([str(folder), "--gguf", str(tmp_path / "my.gguf")]) == 1
    assert f"[Errno 28] No space left on device: '{tmp_path / 'my.gguf'}'" in capsys.readouterr().out
    assert (tmp_path / "my.gguf").read_bytes() == whole and sorted(os.listdir(tmp_path)) == after
    assert checkpoints.main([str(folder), "--gguf", str(tmp_path / "no/such/folder/my.gguf")]) == 1
    assert f"No such file or directory: '{tmp_path / 'no/such/folder/my.gguf'}'" in capsys.readouterr().out


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_saving_a_model_equals_saving_its_folder(tmp_path, bpe, qkv_bias):
    """In either number format, and with zeros where there is no bias, which llama.cpp asks for."""
    model = make(replace(CONFIG, qkv_bias=qkv_bias)).half()
    save_model(model, bpe.to_tiktoken("x"), tmp_path / "x")
    assert checkpoints.main([str(tmp_path / "x"), "--gguf", str(tmp_path / "a.gguf")]) == 0
    save_gguf(model, bpe.to_tiktoken("x"), tmp_path / "b.gguf")
    a, b = (gguf.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    for one, other in zip(*(sorted(each.tensors, key=lambda t: t.name) for each in (a, b)), strict=True):
        assert one.name == other.name and (one.data == other.data).all()
    assert len(a.tensors) == 28
    assert {key: field.contents() for key, field in a.fields.items()} == {
        key: field.contents() for key, field in b.fields.items()}  # fmt: skip


def test_a_wrapped_head_or_no_tokenizer_is_refused(tmp_path, bpe):
    with pytest.raises(ValueError, match="a.gguf: there is no tokenizer"):
        save_gguf(make(), None, tmp_path / "a.gguf")
    model = make()
    model.head = torch.nn.Sequential(model.head)
    with pytest.raises(ValueError, match="has unknown head.0.weight"):
        save_gguf(model, bpe.to_tiktoken("x"), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_llama_cpp_chooses_the_same_tokens_for_the_course_base(tmp_path):
    """What lesson 5.8 says of it: our GPT-2 goes out of the house and writes the same."""
    model, tokenizer = load_base(COURSE_BASE)
    save_gguf(model, tokenizer, tmp_path / "my_gpt.gguf")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(tmp_path / "my_gpt.gguf"), 512, 1
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    for prompt in ("The old man looked at the sea and", "She opened the door", "In 1912", "Water"):
        ids = tokenizer.encode(prompt)
        wanted = generate(model, [ids], 40, eos_id=tokenizer.eot_token)[0, len(ids):].tolist()
        body = {"prompt": ids, "n_predict": 40, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        told = requests.post(f"{server.listening_address}/completion", json=body, timeout=60).json()["tokens"]
        assert told == wanted[: len(told)] and len(told) >= min(40, len(wanted) - 1), prompt
