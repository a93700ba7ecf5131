"""The two domains of lesson 5.6, questions that need an earlier turn, and what is measured of a model that converses.

`conversations_smollm2.py` and the lesson use the same functions, so their figures mean the same. The probes belong to
the two domains: they plant cities, days and subjects. What `context_gain` measures needs no such list, and so it is
what the lesson asks of a model that was trained on the reader's own chats.
"""

import contextlib
import copy
import math
import re
from collections import Counter
from pathlib import Path

import torch

from shared import data
from shared.batches import random_split
from shared.conversation_files import (
    ROLES,
    check_conversations,
    cleaned,
    join_turns,
    normalised,
    read_conversations,
)
from shared.conversations import encode_conversation, fit, reply
from shared.evaluation import distinct_n, perplexity_of, repetition, score_completions, token_losses
from shared.metrics import bootstrap, wilson
from shared.personal_data import find_personal
from shared.runtime import autocast_dtype, evaluating

SYSTEM = {
    "airline": "You are the help desk of Kestrel Air.",
    "help_desk": "You are the help desk of Aldermoor University.",
}
SHARES = (0.7, 0.1, 0.2)  # of the conversations: training, validation, test

# Values that stand in no conversation of the sample, and some that do.
CITIES = "Naples Bruges Cork Malaga Basel Gdansk Split Vilnius Bordeaux Leipzig Aarhus Trieste".split()
NAMES = "Alice Boris Chloe Diego Elena Frank Gloria Hugo Ivan Julia Kevin Laura".split()
DOCTORS = "Abbott Brandt Carver Dixon Eriksen Foster Garner Holt Jarvis Kirby Lund Mercer".split()
STUDIES = """botany astronomy theology linguistics geology statistics archaeology anthropology zoology journalism
sociology ecology""".split()
DAYS = [f"{day} {month}" for day in (29, 30, 31) for month in ("March", "May", "July", "October")]
KNOWN_CITIES = "Oslo Porto Vienna Dublin Prague Athens Geneva Lisbon Madrid Warsaw Krakow Bergen".split()
KNOWN_STUDIES = """chemistry history physics biology law economics music geography mathematics philosophy nursing
architecture""".split()

# What the user says, with two values of one kind; what the assistant answers; two questions, each with the number of
# the value that is the answer. What begins with "known" uses words and values that the sample has too. (Those of
# the university ask for the first value only, so they cannot tell memory from a habit of position.)
NOTED = "Thank you, I have made a note of it."
KINDS = {
    "airline": [
        ("known 1", KNOWN_CITIES, "I fly from {} to {}. What luggage is allowed?",
         "That depends on your fare. Is it Basic or Plus?", ("From which city did I say that I leave?", 0),
         ("Which city do I fly to, again?", 1)),
        ("known 2", KNOWN_CITIES, "How many bags may I take from {} to {}?", "Do you travel on a Basic or a Plus fare?",
         ("Where do I leave from, again?", 0), ("Sorry, where did I say that I fly to?", 1)),
        ("route", CITIES, "I fly from {} to {}.", NOTED, ("From which city do I leave?", 0),
         ("To which city do I fly?", 1)),
        ("days", DAYS, "I leave on {} and come back on {}.", NOTED, ("On which day do I leave?", 0),
         ("On which day do I come back?", 1)),
        ("names", NAMES, "I am {}, and my sister is called {}.", NOTED, ("What is my name?", 0),
         ("What is my sister called?", 1)),
        ("lost", CITIES, "I left my bag in {} and my coat in {}.", NOTED, ("Where is my bag?", 0),
         ("Where is my coat?", 1)),
    ],
    "help_desk": [
        ("known 1", KNOWN_STUDIES, "I study {}. May I also take a course in {}?",
         "Yes, up to two courses. Which one is it?", ("What do I study, again?", 0),
         ("Sorry, which subject did I say that I study?", 0)),
        ("known 2", KNOWN_STUDIES, "I want to change my subject from {} to {}.",
         "Yes, until 3 May. In which year are you?", ("What do I study, again?", 0),
         ("Sorry, which subject did I say that I study?", 0)),
        ("subjects", STUDIES, "I study {}, and my brother studies {}.", NOTED, ("What do I study?", 0),
         ("What does my brother study?", 1)),
        ("doctors", DOCTORS, "My adviser is Dr {}, and my examiner is Dr {}.", NOTED, ("Who is my adviser?", 0),
         ("Who is my examiner?", 1)),
        ("days", DAYS, "My essay is due on {}, and my exam is on {}.", NOTED, ("When is my essay due?", 0),
         ("When is my exam?", 1)),
        ("homes", CITIES, "I come from {}, and now I live in {}.", NOTED, ("Where do I come from?", 0),
         ("Where do I live now?", 1)),
    ],
}  # fmt: skip
NOTHING = "Hello, I have a question."  # what the user says first in a probe's twin
MARK = re.compile(r"\{(.+?)\|(\w+)\}")


def planted():
    """The texts of planted.txt and where in each there is personal data: [(text, {(start, end, kind), ...}), ...]."""
    found = []
    for line in Path(__file__).with_name("planted.txt").read_text(encoding="utf-8").splitlines():
        marks, text, at = set(), "", 0
        for mark in MARK.finditer(line):
            text += line[at : mark.start()]
            marks.add((len(text), len(text) + len(mark[1]), mark[2]))
            text, at = text + mark[1], mark.end()
        found.append((text + line[at:], marks))
    return found


def parts(domain, own=(), speakers=None):
    """(training, validation, test) conversations: those of a domain, each with its system line.

    `own`: files with conversations of the reader's own, in place of the sample; they keep their own system lines, or
    none, turns of one speaker in a row are joined, and a line says what was masked and what was left out. `speakers`:
    as for `read_conversations`. Raises ValueError where fewer than ten can be used.
    """
    files = [Path(file) for file in own] or [data.places.SAMPLES / f"{domain}.jsonl"]
    found = [join_turns(conversation) for file in files for conversation in read_conversations(file, speakers=speakers)]
    kept, problems = check_conversations([cleaned(conversation) for conversation in found])
    reasons = Counter(re.sub(r"conversation \d+", "another", re.sub(r"^turn \d+", "a turn", why))
                      for _, why in problems)  # fmt: skip
    told = "; ".join(f"{n} times: {why}" for why, n in reasons.most_common())
    if len(kept) < 10:
        where = files[0] if len(files) == 1 else files[0].parent
        unknown = sorted({turn["role"] for turns in found for turn in turns} - set(ROLES))
        hint = f". Say who is who: speakers={{{unknown[0]!r}: 'user', ...}}" if unknown else ""
        raise ValueError(f"{where}: {len(kept)} of {len(found)} conversations can be used, and ten are needed. "
                         f"{told}{hint}")  # fmt: skip
    if problems:
        print(f"{len(problems)} of {len(found)} conversations left out. {told}")
    if own:
        texts = [normalised(turn["content"]) for conversation in found for turn in conversation]
        masked = Counter(kind for text in texts for *_, kind in find_personal(text))
        print(f"masked as personal data: {dict(masked) or 'nothing'}")
    made = random_split(kept if own else [with_system(one, SYSTEM[domain]) for one in kept], SHARES)
    if len(made[2]) < 8:
        print(f"{len(made[2])} test conversations: with fewer than eight, trust none of the intervals below")
    return made


def with_system(conversation, line):
    """The conversation with this system line, unless it has one of its own."""
    own = conversation and conversation[0]["role"] == "system"
    return conversation if own else [{"role": "system", "content": line}, *conversation]


def probes(domain, n_pairs=12):
    """Questions that can be answered only from an earlier turn: two for each pair of values, 12 * `n_pairs` in all.

    A probe has a `conversation`, which ends with the question, its `twin`, in which the turn with the answer is
    missing, the right answer, `target`, and the `other` value, which the same turn names: to repeat it is wrong.
    """
    made = []
    for kind, values, said, answered, *questions in KINDS[domain]:
        for i in range(n_pairs):
            pair = values[i], values[(i + 4) % len(values)]
            for question, k in questions:
                first, twin = (
                    [{"role": "system", "content": SYSTEM[domain]}, {"role": "user", "content": opening},
                     {"role": "assistant", "content": answered}, {"role": "user", "content": question}]
                    for opening in (said.format(*pair), NOTHING)
                )  # fmt: skip
                made.append({"kind": f"{domain}: {kind}", "conversation": first, "twin": twin, "target": pair[k],
                             "other": pair[1 - k]})  # fmt: skip
    return made


def names(text, value):
    """Whether the value stands in the text, as whole words; letter case aside."""
    return re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) is not None


def verdict(probe, answer):
    """"right" (the target alone), "other" (the other value alone), "both" or "neither"."""
    return {(True, False): "right", (False, True): "other", (True, True): "both", (False, False): "neither"}[
        names(answer, probe["target"]), names(answer, probe["other"])]  # fmt: skip


def ask(model, tokenizer, template, asked):
    """The verdicts on a model's answers to probes, and to their twins: two lists."""
    found = []
    for key in ("conversation", "twin"):
        answers = reply(model, tokenizer, [probe[key] for probe in asked], 16, template=template)
        found.append([verdict(probe, answer) for probe, answer in zip(asked, answers, strict=True)])
    return found


def share(verdicts, which="right"):
    """{"k", "n", "share", "interval"} of one verdict (Wilson's interval)."""
    k, n = verdicts.count(which), len(verdicts)
    return {"k": k, "n": n, "share": round(k / n, 4), "interval": [round(end, 4) for end in wilson(k, n)]}


def percent(found):
    """A share in words, such as "12 of 48 (15 to 39 %)"."""
    low, high = (100 * end for end in found["interval"])
    return f"{found['k']} of {found['n']} ({low:.0f} to {high:.0f} %)"


def with_interval(value, interval):
    """A figure in words, such as "0.47 (0.42 to 0.53)"."""
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def of_group(row, group, which="r"):
    """The `share` of one verdict, by its first letter, in a row of the table: among the "known" or the "new" probes of
    the domain that it was trained on, or those of the "other domain"."""
    pattern = {"known": "{}: known", "new": "{}: (?!known)", "other domain": "(?!{})"}[group].format(row["domain"])
    said = "".join(verdicts for kind, verdicts in row["kinds"].items() if re.match(pattern, kind))
    return share(list(said), which)


def bits(model, tokenizer, template, conversations):
    """`Perplexity` of what the assistant says in conversations, given what was said before; its ends do not count.

    Those whose last turns are longer than the context are left out: `sums` has a row for each of the others. Raises
    ValueError where none is left.
    """
    end, sums = tokenizer.encode_single_token(template.end), []
    for conversation in conversations:
        with contextlib.suppress(ValueError):
            left = fit(conversation, tokenizer, model.config.context_length, template)
            ids, counts = encode_conversation(left, tokenizer, template)
            with evaluating(model):
                losses = token_losses(model, ids, max(1, model.config.context_length // 2))
            words = torch.tensor([count and i != end for i, count in zip(ids, counts, strict=True)])[1:]
            said = "".join(turn["content"] for turn in left if turn["role"] == "assistant")
            sums.append([losses[words].sum().item(), words.sum().item(), len(said.encode("utf-8"))])
    if not sums:
        raise ValueError(f"of {len(conversations)} conversations none fits into the context of "
                         f"{model.config.context_length} tokens: nothing can be measured")  # fmt: skip
    return perplexity_of(torch.tensor(sums, dtype=torch.float64))


def openings(conversations, tokenizer, template, max_tokens):
    """The conversations up to the user's first turn, where that has at most `max_tokens`."""
    made = []
    for conversation in conversations:
        first = next(i for i, turn in enumerate(conversation) if turn["role"] == "user")
        opened = conversation[: first + 1]
        if len(encode_conversation(opened, tokenizer, template, prompt=True)[0]) <= max_tokens:
            made.append(opened)
    return made


def without_earlier(context):
    """The system line, if there is one, and the user's last turn."""
    return [turn for turn in context[:1] if turn["role"] == "system"] + context[-1:]


def context_gain(model, tokenizer, template, conversations):
    """What the earlier turns are worth: bits per byte of the assistant's turns but the first, after the conversation so
    far (`whole`) and after the user's last turn alone (`alone`), and what the first saves (`gain`).

    {"whole", "alone", "gain", "interval" of the gain, over conversations, "n" turns, "conversations"}; turns whose user
    turn has no room in half of the context are left out. Where none is left, the figures are NaN.
    """
    asked, sizes, owners = [], [], []
    for i, conversation in enumerate(conversations):
        for k, turn in enumerate(conversation):
            if turn["role"] != "assistant" or k < 2 or conversation[k - 2]["role"] != "assistant":
                continue
            with contextlib.suppress(ValueError):
                room = model.config.context_length // 2
                both = [encode_conversation(fit(some, tokenizer, room, template, prompt=True), tokenizer, template,
                                            prompt=True)[0] for some in (conversation[:k],
                                                                         without_earlier(conversation[:k]))]
                asked += [(ids, tokenizer.encode_ordinary(turn["content"])[:room]) for ids in both]
                sizes.append(len(tokenizer.decode(asked[-1][1]).encode("utf-8")))
                owners.append(i)
    if not asked:
        nan = float("nan")
        return {"whole": nan, "alone": nan, "gain": nan, "interval": (nan, nan), "n": 0, "conversations": 0}
    with evaluating(model):
        nats = torch.tensor([losses.sum().item() for losses, _ in score_completions(model, asked)], dtype=torch.float64)
    rows = torch.cat([nats.view(-1, 2) / math.log(2), torch.tensor(sizes, dtype=torch.float64).view(-1, 1)], dim=1)
    rows = torch.stack([rows[torch.tensor(owners) == i].sum(dim=0) for i in sorted(set(owners))])

    def per_byte(some):
        whole, alone, size = some.sum(dim=0).tolist()
        return whole / size, alone / size, (alone - whole) / size

    whole, alone, gain = per_byte(rows)
    interval = bootstrap(rows, lambda some: per_byte(some)[2])
    return {"whole": whole, "alone": alone, "gain": gain, "interval": interval, "n": len(sizes),
            "conversations": len(rows)}  # fmt: skip


def next_turns(conversations):
    """(context, true next turn of the assistant, a turn from another conversation), for each turn but the first."""
    made = []
    for i, conversation in enumerate(conversations):
        for k, turn in enumerate(conversation):
            if turn["role"] != "assistant" or k < 3:
                continue
            strangers = [t["content"] for t in conversations[(i + 1 + k) % len(conversations)]
                         if t["role"] == "assistant" and t["content"] != turn["content"]]  # fmt: skip
            if strangers and conversations[(i + 1 + k) % len(conversations)] is not conversation:
                made.append((conversation[:k], turn["content"], strangers[k % len(strangers)]))
    return made


def prefers_true(model, tokenizer, template, triples):
    """For each of `next_turns`: is the true turn likelier, byte for byte, than the stranger? A list of bools."""
    pairs, sizes = [], []
    for context, *turns in triples:
        left = fit(context, tokenizer, model.config.context_length // 2, template, prompt=True)
        asked = encode_conversation(left, tokenizer, template, prompt=True)[0]
        for turn in turns:
            pairs.append((asked, tokenizer.encode_ordinary(turn)))
            sizes.append(len(turn.encode("utf-8")))
    with evaluating(model):
        scored = score_completions(model, pairs)
    rates = [losses.sum().item() / size for (losses, _), size in zip(scored, sizes, strict=True)]
    return [true < stranger for true, stranger in zip(rates[::2], rates[1::2], strict=True)]


def fluency(texts):
    """{"distinct_1", "distinct_2", "repetition"}: means over groups of about six texts, and their intervals.

    More texts share more words, so distinct-n is compared between groups of about one size; and a group is drawn whole,
    because a text that is drawn twice would look like repetition.
    """
    n, found = max(1, len(texts) // 6), {}
    groups = [texts[i::n] for i in range(n)]
    measures = {"distinct_1": lambda some: distinct_n(some, 1), "distinct_2": lambda some: distinct_n(some, 2),
                "repetition": lambda some: sum(map(repetition, some)) / len(some)}  # fmt: skip
    for name, one in measures.items():
        values = torch.tensor([one(group) for group in groups])
        ends = bootstrap(values, lambda draw: draw.mean().item())
        found[name] = {"value": round(values.mean().item(), 4), "interval": [round(end, 4) for end in ends], "n": n}
    return found


def measure(model, tokenizer, template, test, asked):
    """All of it, for a row of the table: probes and twins, bits per byte, next turns, fluency of replies.

    Replies are made in the number format that training has, scores in that of the model.
    """
    talker = copy.deepcopy(model).to(autocast_dtype(model.token_embedding.weight.device) or torch.float32)
    verdicts, twins = ask(talker, tokenizer, template, asked)
    adapted, triples = bits(model, tokenizer, template, test), next_turns(test)
    replies = reply(talker, tokenizer, [context for context, *_ in triples[:60]], 40, template=template)
    kinds = {}
    for probe, said in zip(asked, verdicts, strict=True):
        kinds.setdefault(probe["kind"], []).append(said[0])
    likelier = [str(one) for one in prefers_true(model, tokenizer, template, triples)]
    return {
        "probes": share(verdicts), "other": share(verdicts, "other"), "both": share(verdicts, "both"),
        "twins": share(twins), "kinds": {kind: "".join(said) for kind, said in kinds.items()},
        "bits_per_byte": round(adapted.bits_per_byte, 4),
        "bits_per_byte_interval": [round(end, 4) for end in adapted.bits_per_byte_interval],
        "next_turn": share(likelier, "True"), "fluency": fluency(replies), "replies": replies[:6],
    }  # fmt: skip
