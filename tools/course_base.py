"""Publish a run of 03_gpt/pretrain.py as the course base: weights in 16 bits, measurements, model card.

    python -m tools.course_base --run data/course_base --corpus data/course_base_corpus --heldout validation.jsonl.zst

Every number in the card is measured here or read from what the run and its corpus left; none is typed in.
The held-out file has {"text": ..., "meta": {...}} on each line and must share no text with the corpus.
PPM is measured where the package `pyppmd` is installed.
"""

import argparse
import gzip
import json
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from shared import data
from shared.checkpoints import COURSE_BASE, load_model, save_model
from shared.evaluation import perplexity, score_completions
from shared.generation import generate
from shared.gpt import GPTModel, count_parameters
from shared.metrics import wilson
from shared.tokenizer import load_tokenizer

SOURCES = (
    "English novels and books (Project Gutenberg, PG-19), US inaugural and State of the Union addresses (NLTK), "
    "OpenStax textbooks (Psychology 2e, U.S. History, Astronomy 2e, Introduction to Philosophy, Introduction to "
    "Anthropology, Introduction to Business, Principles of Economics 3e; CC BY 4.0, © OpenStax), African Storybook "
    "stories (CC BY), 994 TinyStories (CDLA-Sharing-1.0)"
)
PROMPTS = ("The old man looked at the sea and", "It was a cold evening, and the", "In economics, the price of a good")


def bits_per_byte(model, tokenizer, texts):
    """Of each text: (bits, bytes)."""
    sums = perplexity(model, tokenizer, texts).sums
    return [(nats / math.log(2), n_bytes) for nats, _, n_bytes in sums.tolist()]


def ratio(pairs):
    """Bits per byte of several texts together, with its 95 % interval over the texts: (value, low, high).

    Student's t for a ratio (Cochran 1977, chapter 6): right for three texts too; of one text there is none (nan).
    """
    bits, n_bytes = np.array(pairs, dtype=float).T
    value, n = bits.sum() / n_bytes.sum(), len(bits)
    deviation = math.sqrt(n / max(1, n - 1) * ((bits - value * n_bytes) ** 2).sum()) / n_bytes.sum()
    half = t.ppf(0.975, n - 1) * deviation
    return value, value - half, value + half


def bigram(corpus, tokenizer, texts):
    """Bits per byte of token pairs counted in the corpus, mixed with single-token counts (Jelinek and Mercer 1980)."""
    V, ids = tokenizer.n_vocab, np.fromfile(corpus / "train_00000.bin", dtype="<u2").astype(np.int64)
    single = (np.bincount(ids, minlength=V) + 0.1) / (len(ids) + 0.1 * V)
    pairs, counts = np.unique(ids[:-1] * V + ids[1:], return_counts=True)
    firsts = np.bincount(ids[:-1], minlength=V)
    best = math.inf
    streams = [np.array([tokenizer.eot_token, *tokenizer.encode_ordinary(text)]) for text in texts]
    keys = np.concatenate([stream[:-1] * V + stream[1:] for stream in streams])
    at = np.searchsorted(pairs, keys).clip(max=len(pairs) - 1)
    seen = np.where(pairs[at] == keys, counts[at], 0) / np.maximum(1, firsts[keys // V])
    for share in (0.5, 0.7, 0.8, 0.9, 0.95):  # the best of a few mixtures on the text itself: in the bigram's favour
        bits = -np.log2(share * seen + (1 - share) * single[keys % V]).sum()
        best = min(best, bits / sum(len(text.encode("utf-8")) for text in texts))
    return best


def ppm(corpus, tokenizer, texts):
    """Bits per byte of PPMd (order 6) after it has read the corpus: the growth of its output. None without pyppmd."""
    try:
        import pyppmd
    except ImportError:
        return None
    ids = np.fromfile(corpus / "train_00000.bin", dtype="<u2").tolist()
    primer, text = tokenizer.decode_bytes(ids), "".join(texts).encode("utf-8")
    encoder = pyppmd.Ppmd7Encoder(6, 2_000_000_000)
    before = len(encoder.encode(primer))
    after = before + len(encoder.encode(text)) + len(encoder.flush())
    return 8 * (after - before) / len(text)


def lambada(model, tokenizer):
    """Last words found by greedy choice: (found, passages, name of the file)."""
    path, encode = data.fetch("lambada"), tokenizer.encode_ordinary
    parts = [passage.rpartition(" ") for passage in data.load(path)]
    scored = score_completions(model, [(encode(context), encode(" " + word)) for context, _, word in parts])
    return sum(bool(greedy.all()) for _, greedy in scored), len(parts), path.name


def wikitext(model, tokenizer):
    """One sentence: bits per byte of WikiText-2's articles, another kind of text than the model has read."""
    path = data.fetch("wikitext2")
    articles = re.split(r"\n(?= = [^=])", data.load(path))  # a title has one sign of equality on each side
    value, low, high = ratio(bits_per_byte(model, tokenizer, articles))
    return f"WikiText-2 ({path.name}): {value:.3f} bits per byte ({low:.3f} to {high:.3f}, {len(articles)} articles)."


def sample_text(model, tokenizer):
    lines = []
    for i, prompt in enumerate(PROMPTS):
        tokens = generate(model, [tokenizer.encode(prompt)], 60, temperature=0.7, top_k=40,
                          generator=torch.Generator().manual_seed(i))  # fmt: skip
        lines.append("> " + tokenizer.decode(tokens[0].tolist()).replace("\n", " "))
    return "\n>\n".join(lines)


def card(run, corpus, heldout, model, tokenizer, note=""):
    """The text of the model card; `note` is what a reader should know about the run."""
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [entry for entry in metrics if "val_loss" in entry]
    records = data.formats.read_records(heldout)
    texts = [record["text"] for record in records]
    kinds = [record["meta"].get("licence", "?").split("(")[0].strip() for record in records]
    measured = bits_per_byte(model, tokenizer, texts)
    whole = ratio(measured)
    torch.manual_seed(0)
    few = random.Random(0).sample(texts, min(10, len(texts)))
    untrained = ratio(bits_per_byte(GPTModel(model.config).eval(), tokenizer, few))[0]
    joined = "".join(texts).encode("utf-8")  # with nothing between them: all that is measured divides by these bytes
    primed = ppm(corpus, tokenizer, texts)
    found, n, lambada_file = lambada(model, tokenizer)
    low, high = (100 * bound for bound in wilson(found, n))
    c, train = model.config, manifest["splits"]["train"]
    by_kind = []
    for kind in sorted(set(kinds)):
        value, low_, high_ = ratio([pair for pair, k in zip(measured, kinds, strict=True) if k == kind])
        by_kind.append(f"| {kind} | {kinds.count(kind)} | {value:.3f} ({low_:.3f} to {high_:.3f}) |")
    shape = (f"{c.n_layers} layers, {c.n_heads} heads, {c.emb_dim} wide, context {c.context_length}, tied head")
    how = (f"{settings['tokens_per_step']:,} tokens a step, {settings['optimizer']}, rate {settings['lr']} to "
           f"{settings['min_lr']} (cosine), weight decay {settings['weight_decay']}, clipping {settings['clip']}, "
           f"{settings['number_format']}")  # fmt: skip
    wanted = ", ".join(value for key, value in manifest["settings"]["keep_meta"])
    every = max(1, len(evaluated) // 12)
    curve = evaluated[::every] + ([evaluated[-1]] if (len(evaluated) - 1) % every else [])
    rows = [f"| {e['step']:,} | {e['tokens']:,} | {e['loss']:.3f} | {e['val_loss']:.3f} |" for e in curve]
    dash = "not measured (needs `pyppmd`)"
    return f"""# The course base

A small GPT for chapters 4 and 5 where GPT-2 is too large or not available. It was pretrained with the course's own
scripts, `03_gpt/prepare_corpus.py` and `03_gpt/pretrain.py`, and is loaded by `shared.checkpoints.load_base()` or by
`transformers`. It knows the rhythm of English and little of the world; it makes things up, and repeats the views of
its sources, most of them more than ninety years old. It is for lessons, not for use.

| | |
|---|---|
| parameters | {count_parameters(model):,} ({shape}) |
| encoding | byte-pair, {tokenizer.n_vocab:,} entries, trained on the same text with lesson 1.1's trainer |
| data | {train["documents"]:,} documents, {train["text_bytes"]:,} bytes, {train["tokens"]:,} tokens |
| licences of the data | {wanted}: {SOURCES} |
| tokens read | {evaluated[-1]["tokens"]:,} ({evaluated[-1]["tokens"] / train["tokens"]:.2f} passes) |
| settings | {how} |
| stored as | float16 |

## Measured

On held-out text ({len(texts)} documents, {len(joined):,} bytes; whole books and articles that are not in the data),
bits per byte, with a 95 % t interval over documents; the window moves by half of its {c.context_length} tokens.

| | bits per byte |
|---|---|
| **this model** | **{whole[0]:.3f}** ({whole[1]:.3f} to {whole[2]:.3f}) |
| the same, untrained (ten documents) | {untrained:.3f} |
| bigrams of tokens, counted in the same data | {bigram(corpus, tokenizer, texts):.3f} |
| PPMd, order 6, after reading the same data | {dash if primed is None else f"{primed:.3f}"} |
| gzip -9, of the held-out text alone | {8 * len(gzip.compress(joined, 9)) / len(joined):.3f} |

| held-out text by licence | documents | bits per byte |
|---|---:|---|
{chr(10).join(by_kind)}

LAMBADA ({lambada_file}): {found} of {n:,} last words found, {100 * found / n:.1f} % ({low:.1f} to {high:.1f}).
{wikitext(model, tokenizer)}

## The run

{note}{chr(10) * 2 if note else ""}| step | tokens | loss of that step | validation loss |
|---:|---:|---:|---:|
{chr(10).join(rows)}

## Samples

Temperature 0.7, top-k 40, first draw of seeds 0, 1, 2:

{sample_text(model, tokenizer)}

## Licence

The weights are under the course's licence (Apache-2.0). The data are not part of the course.
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "corpus", "heldout"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--note", default="", help="a sentence about the run for the card")
    args = parser.parse_args(arguments)
    model, tokenizer = load_model(args.run)
    tokenizer = load_tokenizer(args.corpus / "tokenizer")
    save_model(model.half(), tokenizer, COURSE_BASE)
    model, tokenizer = load_model(COURSE_BASE)  # what is measured is what is published
    text = card(args.run, args.corpus, args.heldout, model, tokenizer, args.note)
    (COURSE_BASE / "README.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
