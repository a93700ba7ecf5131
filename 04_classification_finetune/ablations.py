"""What makes the spam classifier good? One training run for each variant and seed, all counts into one file.

    python 04_classification_finetune/ablations.py --seeds 3

Writes ablations.json beside this file (or --out FILE) after each run. The same command goes on where it stopped; with
another base, other data, settings or another scale it starts anew. A seed decides everything that is drawn: the split,
the training messages, the new weights, the order of the batches. All variants of one seed share split and messages,
so that their differences are paired. Settings follow LLM_SCALE. Lesson 4.2 draws the table.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base, load_model  # noqa: E402
from shared.classification import (  # noqa: E402
    SpamClassifier,
    balance,
    deduplicate,
    freeze_except,
    parse_messages,
    split,
    train_classifier,
)
from shared.files import write_atomically  # noqa: E402
from shared.gpt import GPTModel, count_parameters  # noqa: E402
from shared.runtime import describe, get_device, scale, seed_everything  # noqa: E402
from shared.tokenizer import END_OF_TEXT  # noqa: E402

OUT = Path(__file__).with_name("ablations.json")
# max_tokens: where messages are cut, and what is padded to; per_label: how many of each to learn from (None: all there
# are); epochs_all: passes over all training messages
SETTINGS = {
    "quick": {"max_tokens": 64, "per_label": 160, "epochs": 2, "epochs_all": 1, "lr": 5e-4, "batch_size": 16,
              "threads": 1},
    "full": {"max_tokens": 120, "per_label": None, "epochs": 5, "epochs_all": 3, "lr": 5e-5, "batch_size": 8,
             "threads": 0},
}  # fmt: skip
REFERENCE = "last real token, all layers, no padding"
VARIANTS = {  # how each differs from the reference
    REFERENCE: {},
    "reads the first token": {"read": "first"},
    "reads the mean of all tokens": {"read": "mean"},
    "padded, reads the last token": {"read": "last", "padded": True},
    "padded, reads the last real token": {"padded": True},
    "trains the head only": {"what": "head", "lr_times": 10},
    "trains the last block": {"what": "last_block", "lr_times": 2},
    "random weights": {"random": True},
    "TF-IDF, same messages": {"baseline": True},
    "TF-IDF, all training messages": {"baseline": True, "natural": True},
    "all training messages": {"natural": True},
}
SIZE = {"quick": "GPT-2, 124 M parameters", "full": "course base, 4 M parameters"}  # the other model


def pool(hidden, lengths, read):
    """One vector of each text's: hidden [B, T, D], lengths [B] -> [B, D]. `read`: first, mean, last or "last real"."""
    if read == "first":
        return hidden[:, 0]
    if read == "last":  # whatever stands there
        return hidden[:, -1]
    if read == "last real":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if read == "mean":
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # [B, T]
        return (hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]
    raise ValueError(f"pool: {read!r} is not one of first, mean, last, last real")


class Reader(SpamClassifier):
    """A SpamClassifier that reads another token, or pads each text with <|endoftext|> up to `pad_to` tokens."""

    def __init__(self, gpt, tokenizer, read="last real", pad_to=None):
        super().__init__(gpt, tokenizer)
        self.read, self.pad_to = read, pad_to

    def forward(self, tokens, lengths):
        if self.pad_to:
            tokens = F.pad(tokens, (0, self.pad_to - tokens.shape[1]))
            filler = torch.arange(self.pad_to, device=tokens.device) >= lengths[:, None]  # [B, T]
            tokens = tokens.masked_fill(filler, self.tokenizer.encode_single_token(END_OF_TEXT))
        if self.read == "last real":
            return super().forward(tokens, lengths)
        return self.head(pool(self.gpt.hidden(tokens), lengths, self.read))


def fit_baseline(train_messages):
    """The plain baseline: parts of words (2 to 5 characters), weighted by TF-IDF, and a logistic regression in which
    both labels count alike. Returns a function: texts -> their probabilities of spam [N]."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    model = make_pipeline(parts, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
    model.fit([text for _, text in train_messages], [label == "spam" for label, _ in train_messages])
    return lambda texts: torch.from_numpy(model.predict_proba(texts)[:, 1])


def draw(messages, seed, per_label=None, natural=False):
    """(training messages, test messages) of a seed: the balanced set, or the whole training part if `natural`."""
    train, _, test = split(messages, seed=seed)
    if natural:
        return train, test
    train = balance(train, seed)
    if per_label:
        groups = [[m for m in train if m[0] == label] for label in ("ham", "spam")]
        train = [message for group in groups for message in group[:per_label]]
    return train, test


def run_variant(variant, seed, messages, settings, folder=None):
    """Train and test once: returns the counts, the numbers of the test messages it got wrong, and the seconds."""
    seed_everything(seed)
    train, test = draw(messages, seed, settings["per_label"], variant.get("natural"))
    texts, labels = [text for _, text in test], [label == "spam" for label, _ in test]
    started = time.perf_counter()
    if variant.get("baseline"):
        scores = fit_baseline(train)(texts)
    else:
        gpt, tokenizer = load_model(folder) if folder else load_base()
        if variant.get("random"):
            gpt = GPTModel(gpt.config)
        gpt.config = replace(gpt.config, context_length=settings["max_tokens"])  # longer messages are cut there
        pad_to = settings["max_tokens"] if variant.get("padded") else None
        model = Reader(gpt.to(get_device()), tokenizer, variant.get("read", "last real"), pad_to)
        freeze_except(model, variant.get("what", "all"))
        epochs = settings["epochs_all" if variant.get("natural") else "epochs"]
        steps = epochs * -(-len(train) // settings["batch_size"])
        train_classifier(
            model, train, batch_size=settings["batch_size"], epochs=epochs, seed=seed,
            lr=settings["lr"] * variant.get("lr_times", 1), warmup_steps=steps // 10, progress=False,
        )  # fmt: skip
        scores = model.predict(texts)[1][:, 1]
    called = (scores >= 0.5).tolist()
    confusion = [[sum(is_spam == a and call == b for is_spam, call in zip(labels, called)) for b in (False, True)]
                 for a in (False, True)]  # fmt: skip
    wrong = [i for i, (is_spam, call) in enumerate(zip(labels, called)) if is_spam != call]
    return {"trained_on": len(train), "confusion": confusion, "wrong": wrong,
            "seconds": round(time.perf_counter() - started, 1)}  # fmt: skip


def conditions(messages, file):
    """What the runs have in common: a table is continued only under the same ones."""
    gpt, tokenizer = load_base()
    sha = hashlib.sha256()
    for parameter in gpt.parameters():
        sha.update(parameter.detach().numpy().tobytes())
    return {
        "base": {"name": tokenizer.name, "parameters": count_parameters(gpt), "sha256": sha.hexdigest()},
        "data": {
            "file": Path(file).name, "bundled_sample": data.places.is_sample(file), "messages": len(messages),
            "spam": sum(label == "spam" for label, _ in messages),
            "sha256": hashlib.sha256(json.dumps(messages).encode("utf-8")).hexdigest(),
        },
        "scale": scale(), "settings": SETTINGS[scale()],
    }  # fmt: skip


def write(table, out):
    """Write the table, one run a line; at every moment the file is whole."""
    lines = json.dumps(table | {"runs": []}, indent=2).removesuffix("[]\n}")
    runs = ",\n".join("    " + json.dumps(run) for run in table["runs"])
    with write_atomically(out) as part:
        part.write_text(f"{lines}[\n{runs}\n  ]\n}}\n", encoding="utf-8")


def main(argv=None):
    """`python 04_classification_finetune/ablations.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: ablations.json, here)")
    parser.add_argument("--only", help="variants whose name contains this")
    args = parser.parse_args(argv)
    settings = SETTINGS[scale()]
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    file = data.fetch("sms_spam")
    messages = deduplicate(parse_messages(data.load(file)))
    common = conditions(messages, file)
    made = {"date": date.today().isoformat(), "machine": f"{platform.system()} {platform.machine()}, {describe()}",
            "threads": torch.get_num_threads()}  # fmt: skip
    table = {"made": made} | common | {"not_run": [SIZE["quick"]] if scale() == "quick" else [], "runs": []}
    if args.out.is_file():
        old = json.loads(args.out.read_text(encoding="utf-8"))
        if {key: old.get(key) for key in common} == common:
            table["runs"] = old["runs"]
            print(f"{args.out.name} has {len(old['runs'])} runs: going on")
        else:
            print(f"{args.out.name} was made with another base, other data or settings: starting anew")
    variants = VARIANTS | ({SIZE["full"]: {"size": True}} if scale() == "full" else {})
    done = {(run["variant"], run["seed"]) for run in table["runs"]}
    todo = [(seed, name) for seed in range(args.seeds) for name in variants if (name, seed) not in done]
    for seed, name in todo:
        if args.only and args.only not in name:
            continue
        folder = COURSE_BASE if variants[name].get("size") else None
        result = run_variant(variants[name], seed, messages, settings, folder)
        table["runs"].append({"variant": name, "seed": seed} | result)
        write(table, args.out)
        (tn, fp), (fn, tp) = result["confusion"]
        print(f"seed {seed}  {name:42} ham {tn}/{tn + fp}  spam {tp}/{fn + tp}  {result['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
