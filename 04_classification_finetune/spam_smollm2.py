"""SmolLM2 as a spam filter: asked by a prompt, never trained on spam; then fine-tuned once on all training messages.

    python 04_classification_finetune/spam_smollm2.py

Writes spam_smollm2.json beside this file (or --out FILE) after each run: some ten runs by prompt, one fine-tuning
(tens of minutes on a CPU, with a checkpoint of 1.6 GB on the way), and beside it the classifier of lesson 4.1 and TF-
IDF. The same command goes on where it stopped, within the fine-tuning too; a table of another model or other data is
never written over. The fine-tuned classifier is kept in data/, under the model's name and -spam, for classify.py. All
runs read the test messages of lesson 4.1. Where the file of SmolLM2 is missing, the tiny stand-in runs, and the table
says so. Lesson 4.2 shows it.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from ablations import fit_baseline  # noqa: E402

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base, load_model  # noqa: E402
from shared.classification import (  # noqa: E402
    LABELS,
    SpamClassifier,
    balance,
    class_weights,
    deduplicate,
    parse_messages,
    split,
    train_classifier,
)
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.generation import CachePass, KVCache, last_logits, prefill  # noqa: E402
from shared.gpt import count_parameters  # noqa: E402
from shared.metrics import bootstrap, roc_auc  # noqa: E402
from shared.runtime import evaluating, get_device, made_on, seed_everything  # noqa: E402

OUT = Path(__file__).with_name("spam_smollm2.json")
WORDS = {"spam/ham": (" ham", " spam"), "spam/normal": (" normal", " spam")}
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. (2021), section 5
LABELLED = 100  # validation messages that may choose a threshold for a prompt
FINE_TUNED, COURSE, TFIDF = "SmolLM2, fine-tuned", "course base, as in lesson 4.1", "TF-IDF"
RECIPES = {FINE_TUNED: {"epochs": 1, "batch_size": 32, "lr": 5e-5}, COURSE: {"epochs": 1, "batch_size": 16, "lr": 1e-3}}
PROMPTS = [("plain", 0), ("chat", 0), ("plain", 6, 0), ("plain", 6, 1), ("plain", 6, 2)]  # form, shots, which draw


def prompt(form, words, shots=()):
    """(what stands before a message, what stands after it) when a model is asked; `shots` are solved messages."""
    other = WORDS[words][0].strip()
    if form == "chat":
        return (f"<|im_start|>user\nIs this text message spam or {other}?\n\nMessage:",
                "<|im_end|>\n<|im_start|>assistant\nThis message is")  # fmt: skip
    answer = dict(zip(LABELS, WORDS[words], strict=True))
    solved = "".join(f"Message: {text}\nLabel:{answer[label]}\n\n" for label, text in shots)
    return f"Is each text message spam or {other}?\n\n{solved}Message:", "\nLabel:"


def draw_shots(train, n, draw):
    """`n` solved messages of the training part, ham and spam in turn."""
    groups = [[m for m in balance(train, seed=draw) if m[0] == label] for label in LABELS]
    order = [torch.randperm(len(g), generator=torch.Generator().manual_seed(draw)).tolist() for g in groups]
    return [groups[i % 2][order[i % 2][i // 2]] for i in range(n)]


def by_prompt(model, tokenizer, texts, before, after, words, batch_size=16):
    """Log-probabilities [N, 2] of the two label words (of their first tokens) after each text in its prompt.

    What stands before the text is the same for all: it is read once, and its keys and values serve every row.
    """
    prefix, end = (tokenizer.encode(part, allowed_special="all") for part in (before, after))
    rest = [[*tokenizer.encode_ordinary(f" {text}"), *end] for text in texts]
    answers = [tokenizer.encode_ordinary(word)[0] for word in WORDS[words]]
    if answers[0] == answers[1]:
        raise ValueError(f"the words {words} begin with the same token")
    cache = KVCache(model, min(batch_size, len(texts)), len(prefix) + max(map(len, rest)))
    order, found = sorted(range(len(rest)), key=lambda i: len(rest[i])), torch.zeros(len(rest), 2)
    with evaluating(model):  # in float32: 16 bits would round the log-odds to eighths
        prefill(model, cache, [0], [prefix])
        cache.keys[:, 1:], cache.values[:, 1:] = cache.keys[:, :1], cache.values[:, :1]
        cache.tokens = [prefix for _ in cache.tokens]
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            one_pass = CachePass(cache, list(range(len(some))), len(rest[some[-1]]))
            logits = last_logits(model, [rest[i] for i in some], one_pass)
            found[some] = logits.float().log_softmax(dim=-1)[:, answers].cpu()
    return found


def log_odds(pairs):
    """log P(spam word) - log P(the other) of log-probabilities [N, 2] -> [N]."""
    return (pairs[:, 1] - pairs[:, 0]).double()


def content_free_threshold(pairs):
    """Zhao et al.'s calibration as a threshold for the log-odds: those of the mean probabilities of inputs that say
    nothing. pairs [n, 2]: the log-probabilities of these."""
    mean = pairs.softmax(dim=-1).mean(dim=0)  # of the two words alone
    return (mean[1] / mean[0]).log().item()


def labelled_threshold(labels, scores):
    """The threshold with the best balanced accuracy on labelled messages; of equal ones, the middle."""
    values = sorted(set(scores.tolist()))
    cuts = [values[0], *((a + b) / 2 for a, b in zip(values, values[1:], strict=False))]
    results = [balanced(torch.stack([labels, (scores >= cut).long()], dim=1)) for cut in cuts]
    best = [cut for cut, result in zip(cuts, results, strict=True) if result == max(results)]
    return best[len(best) // 2]


def balanced(pairs):
    """Balanced accuracy of pairs [N, 2] of (label, called): the mean of what is right among ham and among spam."""
    right = pairs[:, 0] == pairs[:, 1]
    shares = [right[pairs[:, 0] == label].double().mean() for label in (0, 1)]
    return (sum(shares) / 2).item()


def measured(labels, scores, thresholds):
    """What scores [N] are worth: AUC, and for each way to choose a threshold the decisions; 95 % intervals."""
    def interval(pairs, statistic):  # a draw without ham or without spam, where messages are few, shows nothing
        ends = bootstrap(pairs, lambda some: statistic(some) if some[:, 0].unique().numel() == 2 else 0.5)
        return [round(end, 4) for end in ends]

    pairs = torch.stack([labels.double(), scores.double()], dim=1)
    between = interval(pairs, lambda some: roc_auc(some[:, 0].long(), some[:, 1]))
    result = {"auc": round(roc_auc(labels, scores), 4), "auc_interval": between, "decisions": {}}
    for name, threshold in thresholds.items():
        decided = torch.stack([labels, (scores >= threshold).long()], dim=1)
        confusion = torch.bincount(2 * decided[:, 0] + decided[:, 1], minlength=4).view(2, 2).tolist()
        result["decisions"][name] = {
            "threshold": threshold, "confusion": confusion, "balanced": round(balanced(decided), 4),
            "interval": interval(decided, balanced)}  # fmt: skip
    return result


def numbers(messages):
    return torch.tensor([LABELS.index(label) for label, _ in messages])


def texts_of(messages):
    return [text for _, text in messages]


def run_prompt(model, tokenizer, parts, words, form, n_shots, draw=0):
    """Ask the model about every test message; its thresholds are chosen without one of them."""
    train, val, test = parts
    before, after = prompt(form, words, draw_shots(train, n_shots, draw))
    chosen = val[:LABELLED]
    some = [*CONTENT_FREE, *texts_of(chosen), *texts_of(test)]
    pairs = by_prompt(model, tokenizer, some, before, after, words)
    scores, n_free = log_odds(pairs), len(CONTENT_FREE)
    thresholds = {
        "as asked": 0.0, "content-free": content_free_threshold(pairs[:n_free]),
        "labelled": labelled_threshold(numbers(chosen), scores[n_free : n_free + len(chosen)]),
    }  # fmt: skip
    own = scores[n_free + len(chosen) :]
    both = pairs[n_free + len(chosen) :].exp().sum(dim=1).mean().item()  # how much of its belief went to either word
    return measured(numbers(test), own, thresholds) | {
        "on_the_words": round(both, 4), "log_odds": [round(score, 2) for score in own.tolist()]}  # fmt: skip


def train_filter(name, model, tokenizer, parts, checkpoint=None, progress=True):
    """A SpamClassifier trained on all training messages by RECIPES[name]; its threshold is 1 - the rate of spam.

    With `checkpoint`, a file, the state of the run is saved there on the way, and a run that was broken off goes on.
    """
    train, recipe = parts[0], RECIPES[name]
    seed_everything(41)
    classifier = SpamClassifier(model.to(get_device()), tokenizer)
    seen = train if name == FINE_TUNED else train + [m for m in train if m[0] == LABELS[1]]  # as lesson 4.1 does
    steps = recipe["epochs"] * math.ceil(len(seen) / recipe["batch_size"])
    saving = {"checkpoint": checkpoint, "resume": checkpoint.is_file()} if checkpoint else {}
    history = train_classifier(
        classifier, seen, weights=class_weights(numbers(seen), 2), warmup_steps=steps // 10, eval_every=50,
        progress=progress, **recipe, **saving)  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    classifier.threshold = 1 - numbers(train).double().mean().item()
    return classifier


def run_filter(scores_of, parts, others, rule):
    """Measure a trained filter on the test messages and on those of another source; `rule`: its own threshold."""
    _, val, test = parts
    thresholds = {"its own": rule, "validation": labelled_threshold(numbers(val), scores_of(texts_of(val)))}
    result = {"test": measured(numbers(test), scores_of(texts_of(test)), thresholds)}
    if others:
        result["others"] = measured(numbers(others), scores_of(texts_of(others)), thresholds)
    return result


def classifier_scores(classifier):
    """A function: texts -> their probabilities of spam [N], as classify.py computes them."""
    return lambda texts: classifier.predict(texts)[1][:, 1].double()


def conditions(model, tokenizer, messages, file, others):
    """What the runs have in common: a table is continued only under the same ones."""
    sha = hashlib.sha256()
    for parameter in model.parameters():
        sha.update(parameter.detach().numpy().tobytes())
    return {
        "model": {"name": tokenizer.name, "parameters": count_parameters(model), "sha256": sha.hexdigest()},
        "data": {
            "file": Path(file).name, "bundled_sample": data.places.is_sample(file), "messages": len(messages),
            "spam": int(numbers(messages).sum()), "others": len(others),
            "others_spam": sum(label == LABELS[1] for label, _ in others),
            "sha256": hashlib.sha256(json.dumps([messages, others]).encode("utf-8")).hexdigest(),
        },
        "settings": {"labelled": LABELLED, "content_free": CONTENT_FREE, "recipes": RECIPES, "seed": 41,
                     "class_weights": "per message",  # in every batch alike
                     "prompts": {form: prompt(form, "spam/ham") for form in ("plain", "chat")}},
    }  # fmt: skip


def main(argv=None):
    """`python 04_classification_finetune/spam_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: spam_smollm2.json, here)")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    args = parser.parse_args(argv)
    file = data.fetch("sms_spam")
    messages = deduplicate(parse_messages(data.load(file)))
    parts, known = split(messages), {text for _, text in messages}
    own = deduplicate(parse_messages((data.places.SAMPLES / "sms_messages.tsv").read_text(encoding="utf-8")))
    others = [message for message in own if message[1] not in known]  # none where the messages are these
    model, tokenizer = load_base("smollm2")
    common = conditions(model, tokenizer, messages, file, others)
    table = common | {"labels": "".join(map(str, numbers(parts[2]).tolist())), "runs": []}
    try:
        table["runs"] = continue_table(args.out, common)
    except ValueError as error:
        parser.error(str(error))
    if table["runs"]:
        print(f"{args.out.name} has {len(table['runs'])} runs: going on")
    mark = hashlib.sha256(json.dumps(common).encode("utf-8")).hexdigest()[:8]  # another run has another checkpoint
    checkpoint = data.places.data_dir() / f"{tokenizer.name}-spam-{mark}.checkpoint"
    model.to(get_device())

    def by_words(words, *how):
        return lambda: run_prompt(model, tokenizer, parts, words, *how)

    def fine_tuned():
        classifier = train_filter(FINE_TUNED, model, tokenizer, parts, checkpoint)
        result = run_filter(classifier_scores(classifier), parts, others, classifier.threshold)
        classifier.threshold = min(1.0, max(0.0, result["test"]["decisions"]["validation"]["threshold"]))
        classifier.save(data.places.data_dir() / f"{tokenizer.name}-spam")
        return result

    def course():
        classifier = train_filter(COURSE, *load_model(COURSE_BASE), parts, progress=False)
        return run_filter(classifier_scores(classifier), parts, others, classifier.threshold)

    def tfidf():
        return run_filter(fit_baseline(parts[0]), parts, others, 0.5)

    runs = {}
    for form, shots, *draw in PROMPTS:
        for words in WORDS:
            name = f"{form}, {shots} shots{f' (draw {draw[0]})' if draw else ''}, {words}"
            runs[name] = by_words(words, form, shots, *draw)
    runs |= {TFIDF: tfidf, COURSE: course, FINE_TUNED: fine_tuned}  # the last one changes the model
    if not any(args.only in name for name in runs):
        parser.error(f"--only is {args.only!r}; no run's name contains that: {'; '.join(runs)}")
    done = {run["name"] for run in table["runs"]}
    for name, run in runs.items():
        if name in done or args.only not in name:
            continue
        started = time.perf_counter()
        try:
            result = run()
        except KeyboardInterrupt:
            print("stopped; the same command goes on")
            return 130
        seconds = round(time.perf_counter() - started, 1)
        table["runs"].append({"name": name, "seconds": seconds} | made_on() | result)
        write_table(args.out, table)
        if name == FINE_TUNED:
            checkpoint.unlink(missing_ok=True)
        found = result.get("test", result)
        decisions = ", ".join(f"{how} {d['balanced']:.3f}" for how, d in found["decisions"].items())
        print(f"{name:34} AUC {found['auc']:.3f}, balanced accuracy: {decisions}  {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
