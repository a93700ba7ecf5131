"""A language model as the judge of answers: by what it writes, and by what it finds likely.

The servers that a larger model may run on are in `judge_servers`. Shapes: N questions to the judge.
"""

import contextlib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.evaluation import score_completions
from shared.files import read_json, write_atomically
from shared.runtime import evaluating
from shared.tokenizer import valid_unicode


@dataclass(frozen=True)
class Judgement:
    """`score` from 1 to 5, or None where no number could be read from what the judge wrote; and its `reason`."""

    score: int | None
    reason: str


RUBRIC = """You grade the answer of a language model.

Instruction: {instruction}
Input: {input}
Reference answer: {output}
Answer to grade: {answer}

5: correct, complete, does exactly what was asked. 4: correct with a small flaw. 3: partly correct.
2: mostly wrong, or hardly on the topic. 1: wrong, empty or not understandable.
The reference is one good answer, not the only one. Length alone earns nothing.
Reply with JSON only: {{"reason": "<one sentence>", "score": <1 to 5>}}"""

COMPARISON = """You compare two answers of language models to the same instruction.

Instruction: {instruction}
Input: {input}
Reference answer: {output}
Answer A: {a}
Answer B: {b}

Which is better: more correct, more complete, closer to what was asked? Length alone earns nothing.
Reply with JSON only: {{"reason": "<one sentence>", "better": "A" or "B" or "tie"}}"""


class Judge:
    """A language model as a judge of answers (Zheng et al. 2023): a rubric, 1 to 5, and pairs asked in both orders.

    `ask` is a function from a prompt to the model's text, such as `ollama(...)`; `name` says which model that is. With
    `cache` (a folder), each reply is kept on disk under the hash of name and prompt and never asked for again.
    """

    def __init__(self, ask, name, cache=None):
        self.ask, self.name, self.cache = ask, name, None if cache is None else Path(cache)

    def score(self, entry, answer):
        """`Judgement` of the answer to an entry with `instruction`, `input` and the reference `output`."""
        found, text = self._read(_fill(RUBRIC, entry, answer=answer), lambda found: _score(found.get("score")))
        return Judgement(found, text)

    def compare(self, entry, a, b):
        """1.0 where answer a is better, 0.0 where b is, 0.5 for a tie; None where the judge gave no verdict.

        Asked twice, with the places exchanged: a preference that follows the place and not the answer is a tie.
        """
        verdicts = []
        for first, second in ((a, b), (b, a)):
            prompt = _fill(COMPARISON, entry, a=first, b=second)
            verdicts.append(self._read(prompt, lambda found: _better(found.get("better")))[0])
        if None in verdicts:
            return None
        return verdicts[0] if verdicts[0] == 1 - verdicts[1] else 0.5

    def _read(self, prompt, read):
        """(what `read` makes of the reply, the reason); asks once more where no verdict can be read."""
        for attempt in (prompt, prompt + "\n\nOnly the JSON object, nothing else."):
            reply = self._reply(attempt)
            found = _json_object(reply) or {}
            value = read(found)
            if value is not None:
                return value, valid_unicode(str(found.get("reason", "")))
        return None, reply

    def _reply(self, prompt):
        if self.cache is None:
            return valid_unicode(self.ask(prompt))
        key = hashlib.sha256(f"{self.name}\n{prompt}".encode()).hexdigest()
        file = self.cache / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):  # not there, or damaged: ask (again)
            kept = read_json(file)["reply"]
            if isinstance(kept, str):
                return kept
        self.cache.mkdir(parents=True, exist_ok=True)
        reply = valid_unicode(self.ask(prompt))
        try:
            with write_atomically(file) as part:
                kept = {"judge": self.name, "prompt": prompt, "reply": reply}
                part.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        except OSError as error:  # the reply is paid for
            print(f"a reply of {self.name} could not be kept: {error}")
        return reply


def _fill(form, entry, **answers):
    values = {"instruction": entry["instruction"], "input": entry.get("input") or "(none)", "output": entry["output"]}
    return valid_unicode(form.format(**values, **answers))


def _json_object(text):
    """The last JSON object in a text that has a verdict in it, as a dict; None where there is none.

    What a reasoning model thinks, from <think> to </think>, does not count.
    """
    verdict, thinking, end = None, False, 0
    for place in re.finditer(r"\{|</?think(?:ing)?>", text):
        if place.start() < end:
            continue  # inside the verdict
        if place[0] != "{":
            verdict, thinking = None, place[0][1] != "/"
            continue
        try:
            found, after = json.JSONDecoder().raw_decode(text, place.start())
        except (ValueError, RecursionError):
            continue
        if "score" in found or "better" in found:
            verdict, end = found, after
    return None if thinking else verdict


def _score(value):
    """A whole number from 1 to 5, from 4, 4.0 or "4"; else None."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number in (1, 2, 3, 4, 5) else None


def _better(value):
    return {"a": 1.0, "b": 0.0, "tie": 0.5}.get(str(value).strip().lower())


# What a small model is asked: no reference, no JSON, and its reply is begun for it, so that one token decides.
BETTER = """Which answer to the instruction is better, A or B?

Instruction: {instruction}
Input: {input}

Answer A: {a}

Answer B: {b}"""

GRADE = """Grade the answer to the instruction from 1 (wrong) to 5 (correct and complete).

Instruction: {instruction}
Input: {input}

Answer: {answer}"""


def by_letter(model, tokenizer, asked):
    """Log-odds [N] of the letter A against B as the better one, for each of `asked`: (entry, answer A, answer B)."""
    begun = [_turn(tokenizer, _fill(BETTER, entry, a=a, b=b), "Answer") for entry, a, b in asked]
    losses = _losses(model, tokenizer, begun, (" A", " B"))
    return losses[:, 1] - losses[:, 0]


def by_grade(model, tokenizer, asked):
    """Probabilities [N, 5] of the grades 1 to 5, of these five alone, for each of `asked`: (entry, answer)."""
    begun = [_turn(tokenizer, _fill(GRADE, entry, answer=answer), "Grade: ") for entry, answer in asked]
    return (-_losses(model, tokenizer, begun, "12345")).softmax(dim=1)


def by_likelihood(model, tokenizer, asked):
    """Bits per byte [N] of answers, for each of `asked`: (entry, answer), as the model's own, its end included.

    No question about quality is put: the answer that the model itself would rather give is the better one.
    """
    pairs, sizes = [], []
    for entry, answer in asked:
        question = f"{entry['instruction']}\n{entry.get('input') or ''}".strip()
        pairs.append((_turn(tokenizer, question), [*tokenizer.encode_ordinary(answer), tokenizer.end_of_turn]))
        sizes.append(max(1, len(valid_unicode(answer).encode("utf-8"))))
    with evaluating(model):
        nats = torch.stack([losses.sum() for losses, _ in score_completions(model, pairs)])
    if nats.isnan().any():
        raise FloatingPointError("the judge's loss is NaN; its weights are damaged")
    return nats / torch.tensor(sizes) / math.log(2)


def _turn(tokenizer, said, begun=""):
    """The ids of a conversation in SmolLM2's form: the user said this, and the assistant has begun its reply."""
    marks = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    opened, closed = (tokenizer.encode(mark, allowed_special="all") for mark in marks)
    return [*opened, *tokenizer.encode_ordinary(said), *closed, *tokenizer.encode_ordinary(begun)]


def _losses(model, tokenizer, begun, replies):
    """Losses in nats [N, replies] of each of the replies after each of the texts begun, given as ids."""
    choices = [tokenizer.encode_ordinary(reply) for reply in replies]
    with evaluating(model):
        scored = score_completions(model, [(ids, choice) for ids in begun for choice in choices])
    found = torch.stack([losses.sum() for losses, _ in scored]).view(len(begun), len(choices))
    if found.isnan().any():
        raise FloatingPointError("the judge's loss is NaN; its weights are damaged")
    return found
