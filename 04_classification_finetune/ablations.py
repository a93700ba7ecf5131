"""What makes the spam classifier good, and how many labelled messages does it need? One training run for each variant
and run number, all counts into one file.

    python 04_classification_finetune/ablations.py --runs 10

Writes ablations.json beside this file (or --out FILE) after each run. The same command goes on where it stopped; a
table of another base, other data, settings or another scale is never written over. Run i has split i % 5 and training
seed i: the split decides which messages are for testing, the seed decides the rest (which few messages are labelled,
the new weights, the order of the batches). All variants of one run share split, seed and messages, so that their
differences are paired; the variants are done run by run, so that the table may be stopped at any time. Settings
follow LLM_SCALE. Lesson 4.2 reads the table.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base, load_model  # noqa: E402
from shared.classification import (  # noqa: E402
    LabelledTexts,
    SpamClassifier,
    class_weights,
    deduplicate,
    freeze_except,
    parse_messages,
    split,
    train_classifier,
)
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.gpt import GPTModel, count_parameters  # noqa: E402
from shared.metrics import classification_metrics, roc_auc  # noqa: E402
from shared.runtime import get_device, made_on, scale, seed_everything  # noqa: E402
from shared.tokenizer import END_OF_TEXT  # noqa: E402

OUT = Path(__file__).with_name("ablations.json")
SPLITS = 5
COST = 10  # of a ham that is blocked, where a spam let through costs 1
# examples, batch_size, lr, learns: as in lesson 4.1 (a test compares them). few_batch, few_steps: where only a few
# messages are labelled, about as many steps, of smaller batches. pad_to: tokens that "padded" messages have at least
SETTINGS = {
    "quick": {"examples": 3600, "batch_size": 16, "lr": 1e-3, "learns": "all", "few_batch": 4, "few_steps": 250,
              "pad_to": 64, "threads": 1, "class_weights": "per message"},
    "full": {"examples": 10_800, "batch_size": 16, "lr": 5e-5, "learns": "all", "few_batch": 4, "few_steps": 750,
             "pad_to": 120, "threads": 0, "class_weights": "per message"},
}  # fmt: skip
REFERENCE = "as in lesson 4.1"
CURVE, FEW = (20, 50, 100, 200, "all"), 200  # labelled messages; the number of them for the ablations
ON_CURVE = {REFERENCE: {}, "random weights": {"random": True}, "TF-IDF": {"baseline": True}}
ABLATIONS = {  # how each differs from the reference
    "reads the first token": {"read": "first"},
    "reads the mean of all tokens": {"read": "mean"},
    "padded, reads the last token": {"read": "last", "padded": True},
    "trains the head only": {"learns": "head", "lr_times": 10},
    "trains the last block": {"learns": "last_block", "lr_times": 2},
}
VARIANTS = ON_CURVE | ABLATIONS
JOBS = [(name, n) for n in CURVE for name in ON_CURVE] + [(name, FEW) for name in ABLATIONS]
SIZE = {"quick": "GPT-2, 124 M parameters", "full": "course base, 6 M parameters"}  # the other model


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
    """A SpamClassifier that reads another token, or pads each text with <|endoftext|> to at least `pad_to` tokens."""

    def __init__(self, gpt, tokenizer, read="last real", pad_to=None):
        super().__init__(gpt, tokenizer)
        self.read, self.pad_to = read, pad_to

    def forward(self, tokens, lengths):
        if self.pad_to:
            tokens = F.pad(tokens, (0, max(0, self.pad_to - tokens.shape[1])))
            filler = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]  # [B, T]
            tokens = tokens.masked_fill(filler, self.tokenizer.encode_single_token(END_OF_TEXT))
        if self.read == "last real":
            return super().forward(tokens, lengths)
        return self.head(pool(self.gpt.hidden(tokens), lengths, self.read))


def draw(messages, seed, n="all"):
    """`n` of `messages`, drawn by `seed`: at the natural rate of spam, but at least five of each label."""
    if n == "all":
        return messages
    rate = sum(label == "spam" for label, _ in messages) / len(messages)
    n_spam = min(max(5, round(n * rate)), n - 5)
    order = torch.randperm(len(messages), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [[messages[i] for i in order if messages[i][0] == label] for label in ("ham", "spam")]
    return groups[0][: n - n_spam] + groups[1][:n_spam]


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


def fit(model, train_messages, seed, *, batch_size, lr, examples=None, steps=None):
    """Train a classifier as lesson 4.1 does: each spam goes in twice, and both labels count alike in sum. As many
    passes as give `examples` messages, or about `steps` steps. Returns the number of steps."""
    seen = train_messages + [message for message in train_messages if message[0] == "spam"]
    batches = -(-len(seen) // batch_size)
    epochs = max(1, round(steps / batches)) if steps else -(-examples // len(seen))
    weights = class_weights(LabelledTexts(seen, model.tokenizer, 1).labels, 2)
    history = train_classifier(model, seen, batch_size=batch_size, weights=weights, epochs=epochs, lr=lr, seed=seed,
                               warmup_steps=epochs * batches // 10, progress=False)  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    return epochs * batches


def best_threshold(labels, scores, value):
    """The threshold with the largest value(tp, fp, fn), of those halfway between two neighbouring scores (the lowest of
    equals), and of 2, above which there is nothing: labels [N] (1 is spam), scores [N]."""
    levels = scores.double().unique()
    cuts = torch.cat([(levels[1:] + levels[:-1]) / 2, torch.tensor([2.0])])
    called = scores.double() >= cuts[:, None]  # [cuts, N]
    tp, fp = (called * labels).sum(dim=1), (called * (1 - labels)).sum(dim=1)
    return cuts[value(tp, fp, labels.sum() - tp).argmax()].item()


def thresholds(rate, labels, scores):
    """Rules for a threshold: two by formula, from the rate of spam; two by trial, on the validation messages."""
    odds = COST * (1 - rate) / rate  # where the scores, adjusted to the rate, reach COST / (COST + 1)
    return {
        "1 - r": 1 - rate,
        "best F1": best_threshold(labels, scores, lambda tp, fp, fn: 2 * tp / (2 * tp + fp + fn)),
        "cost, by formula": odds / (1 + odds),
        "cost, lowest": best_threshold(labels, scores, lambda tp, fp, fn: -(COST * fp + fn)),
    }


def numbered(messages):
    """(texts, labels [N]) of messages; 1 is spam."""
    return [text for _, text in messages], torch.tensor([int(label == "spam") for label, _ in messages])


def run_variant(variant, n, run, messages, settings, folder=None):
    """Train on `n` messages and test once. Returns the counts at the threshold 0.5 and the AUC; with all messages also
    the counts at other `thresholds`."""
    started = time.perf_counter()
    seed_everything(run)
    train, val, test = split(messages, seed=run % SPLITS)
    chosen = draw(train, run, n)
    (texts, labels), steps = numbered(test), 0
    if variant.get("baseline"):
        predict = fit_baseline(chosen)
    else:
        gpt, tokenizer = load_model(folder) if folder else load_base()
        if variant.get("random"):
            gpt = GPTModel(gpt.config)
        pad_to = settings["pad_to"] if variant.get("padded") else None
        model = Reader(gpt.to(get_device()), tokenizer, variant.get("read", "last real"), pad_to)
        freeze_except(model, variant.get("learns", settings["learns"]))
        length = {"batch_size": settings["few_batch"], "steps": settings["few_steps"]}
        if n == "all":
            length = {"batch_size": settings["batch_size"], "examples": settings["examples"]}
        steps = fit(model, chosen, run, lr=settings["lr"] * variant.get("lr_times", 1), **length)
        predict = lambda texts: model.predict(texts)[1][:, 1]  # noqa: E731
    scores = predict(texts)
    found = {"trained_on": len(chosen), "steps": steps, "auc": round(roc_auc(labels, scores), 5),
             "confusion": classification_metrics(labels, scores).confusion}  # fmt: skip
    if n == "all":
        val_texts, val_labels = numbered(val)
        rules = thresholds(numbered(train)[1].double().mean().item(), val_labels, predict(val_texts))
        found["confusions"] = {name: classification_metrics(labels, scores, t).confusion for name, t in rules.items()}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


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


def rows_of(table):
    """({(variant, labels): {seed: run}}, the seeds that all rows have); in each run "confusions" has all thresholds."""
    rows = {}
    for run in table["runs"]:
        confusions = {"0.5": run["confusion"]} | run.get("confusions", {})
        rows.setdefault((run["variant"], run["labels"]), {})[run["seed"]] = run | {"confusions": confusions}
    return rows, sorted(set.intersection(*map(set, rows.values()))) if rows else []


def main(argv=None):
    """`python 04_classification_finetune/ablations.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of each variant (default 10: 5 splits x 2 seeds)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: ablations.json, here)")
    parser.add_argument("--only", help="variants whose name contains this")
    args = parser.parse_args(argv)
    if args.runs < 1 or not any((args.only or "") in name for name in (*VARIANTS, SIZE["full"])):
        parser.error(f"nothing to do with --runs {args.runs} and --only {args.only!r} of {', '.join(VARIANTS)}")
    settings = SETTINGS[scale()]
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    file = data.fetch("sms_spam")
    messages = deduplicate(parse_messages(data.load(file)))
    common = conditions(messages, file)
    table = common | {"not_run": [SIZE["quick"]] if scale() == "quick" else [], "runs": []}
    try:
        table["runs"] = continue_table(args.out, common)
    except ValueError as error:
        parser.error(str(error))
    if table["runs"]:
        print(f"{args.out.name} has {len(table['runs'])} runs: going on")
    jobs = JOBS + ([(SIZE["full"], "all")] if scale() == "full" else [])
    done = {(entry["variant"], entry["labels"], entry["seed"]) for entry in table["runs"]}
    for run in range(args.runs):
        for name, n in jobs:
            if (name, n, run) in done or args.only and args.only not in name:
                continue
            folder = COURSE_BASE if name == SIZE["full"] else None
            result = made_on() | run_variant(VARIANTS.get(name, {}), n, run, messages, settings, folder)
            table["runs"].append({"variant": name, "labels": n, "split": run % SPLITS, "seed": run} | result)
            write_table(args.out, table)
            (tn, fp), (fn, tp) = result["confusion"]
            print(f"run {run}  {name:28} {n:>3} labels  ham {tn}/{tn + fp}  spam {tp}/{fn + tp}  "
                  f"AUC {result['auc']:.3f}  {result['seconds']:.0f} s", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    command_line(main)
