"""The card of the course base: its interval is Student's, and all numbers of bits are for the texts' own bytes."""

import gzip
import json

import numpy as np
import pytest
import torch
from scipy import stats

from shared.gpt import GPTConfig, GPTModel
from shared.tokenizer import BPETokenizer
from tools import course_base

TEXTS = ["The lamp room was cold and the keeper slept.", "Nobody came up the stairs.", "Naïve, said the sea."]


def test_the_interval_of_texts_of_one_length_is_that_of_their_mean():
    bits = [220.0, 190.0, 260.0]
    low, high = stats.ttest_1samp([b / 100 for b in bits], 0).confidence_interval()
    assert course_base.ratio([(b, 100) for b in bits]) == pytest.approx((sum(bits) / 300, low, high))


def test_the_interval_of_three_unequal_texts_covers():
    """Of 600 samples of three texts about 95 % hold the true ratio, 2; a bootstrap's would in 72 %."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(600):
        n_bytes = rng.uniform(800, 1200, size=3)
        _, low, high = course_base.ratio(list(zip(n_bytes * (2 + 0.2 * rng.normal(size=3)), n_bytes, strict=True)))
        inside += low <= 2 <= high
    assert 0.92 < inside / 600 < 0.98


def test_the_card_counts_the_bytes_of_the_texts(tmp_path, monkeypatch):
    tokenizer = BPETokenizer().train("".join(TEXTS), 300).to_tiktoken("x")
    np.array(tokenizer.encode_ordinary("".join(TEXTS)), dtype="<u2").tofile(tmp_path / "train_00000.bin")
    settings = dict.fromkeys(("tokens_per_step", "lr", "min_lr", "weight_decay", "clip"), 1)
    settings |= {"optimizer": "adamw", "number_format": "float32"}
    train = {"documents": 3, "text_bytes": 1, "tokens": 1}
    held_out = [json.dumps({"text": text, "meta": {"licence": "CC BY 4.0"}}) for text in TEXTS]
    for name, content in {
        "settings.json": json.dumps(settings),
        "manifest.json": json.dumps({"splits": {"train": train}, "settings": {"keep_meta": [["licence", "CC"]]}}),
        "metrics.jsonl": json.dumps({"step": 1, "tokens": 1, "loss": 1.0, "val_loss": 1.0}),
        "held_out.jsonl": "\n".join(held_out),
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(course_base, "lambada", lambda model, tokenizer: (0, 3, "lambada.jsonl"))
    monkeypatch.setattr(course_base, "wikitext", lambda model, tokenizer: "WikiText-2: 2 bits")
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(tokenizer.n_vocab, 32, emb_dim=16, n_heads=2, n_layers=1)).eval()
    card = course_base.card(tmp_path, tmp_path, tmp_path / "held_out.jsonl", model, tokenizer)
    whole = "".join(TEXTS).encode("utf-8")
    assert f"(3 documents, {len(whole):,} bytes;" in card
    assert f"| gzip -9, of the held-out text alone | {8 * len(gzip.compress(whole, 9)) / len(whole):.3f} |" in card
    measured = course_base.bits_per_byte(model, tokenizer, TEXTS)
    assert [n_bytes for _, n_bytes in measured] == [len(text.encode("utf-8")) for text in TEXTS]
    value, low, high = course_base.ratio(measured)
    assert f"| CC BY 4.0 | 3 | {value:.3f} ({low:.3f} to {high:.3f}) |" in card
