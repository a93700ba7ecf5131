"""Instructions in the Alpaca format: entries, prompts, batches whose loss counts the answer only, answers.

An entry is a dict with `instruction`, `input` (may be empty) and `output`, all text.
Shapes: B entries, T tokens, n tokens of one entry.
"""

import json
import re
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset

from shared.batches import LengthBuckets, as_list
from shared.files import write_atomically
from shared.generation import generate
from shared.loss import IGNORE
from shared.tokenizer import END_OF_TEXT, valid_unicode


@dataclass(frozen=True)
class Template:
    """How an entry becomes text: `plain` has a place for {instruction}, `with_input` also for {input}.

    `answer` is the mark that the prompt ends with, `end` what may stand after an answer.
    """

    plain: str
    with_input: str
    answer: str
    end: str = END_OF_TEXT


_TASK = "Below is an instruction that describes a task"
_INPUT = ", paired with an input that provides further context"
_REQUEST = "Write a response that appropriately completes the request."

# Stanford Alpaca's two prompts (Taori et al. 2023), and the form of Phi-3 (Abdin et al. 2024), whose marks are plain
# text for GPT-2's encoding.
ALPACA = Template(
    f"{_TASK}. {_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
    f"{_TASK}{_INPUT}. {_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
    answer="### Response:\n",
)
PHI3 = Template(
    "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    "<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
    answer="<|assistant|>\n",
    end="<|end|>",
)

# The Alpaca prompt in the language that transformers' tokenizers use for conversations (Jinja). A message may end with
# an input, after a line "### Input:"; the first message decides on the first sentence.
ALPACA_CHAT_TEMPLATE = (
    f"{{{{ '{_TASK}' }}}}"
    f"{{% if '### Input:\\n' in messages[0]['content'] %}}{{{{ '{_INPUT}' }}}}{{% endif %}}"
    f"{{{{ '. {_REQUEST}\\n\\n' }}}}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token }}"
    "{% else %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)


def check_entries(rows, check=None):
    """Keep the usable rows: (entries, problems), a problem being (row counted from 0, what is wrong with it).

    `response` may stand for `output`; a missing `input` is an empty one. Entries with the instruction and input of an
    earlier one are left out, letter case and spacing aside. `check` makes an entry of a row or raises ValueError; rows
    with other fields need one of their own.
    """
    entries, problems, seen = [], [], {}
    for i, row in enumerate(rows):
        try:
            entry = (check or _checked)(row)
            key = tuple(" ".join(entry[field].split()).casefold() for field in ("instruction", "input"))
            if key in seen:
                raise ValueError(f"same instruction and input as row {seen[key]}")
        except ValueError as error:
            problems.append((i, str(error)))
        else:
            seen[key] = i
            entries.append(entry)
    return entries, problems


def _checked(row):
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object with instruction, input and output")
    output = "response" if "output" not in row and "response" in row else "output"
    entry = {}
    for field, name in (("instruction", "instruction"), ("input", "input"), ("output", output)):
        value = row.get(name)
        if field == "input" and value is None:
            value = ""
        if name not in row and field != "input":
            raise ValueError(f"has no {name}")
        if not isinstance(value, str):
            raise ValueError(f"{name} is {json.dumps(value, default=str)[:40]}, not text")
        if field != "input" and not value.strip():
            raise ValueError(f"{name} is empty")
        entry[field] = valid_unicode(value).strip()
    return entry


def format_prompt(entry, template=ALPACA):
    """The text that a model continues with its answer."""
    form = template.with_input if entry.get("input") else template.plain
    return re.sub(r"\{(instruction|input)\}", lambda place: entry[place[1]], form)  # in one go: braces in a text stay


def extract_response(text, template=ALPACA):
    """The answer in a text that begins with a prompt: from the answer's mark to the end, or to where a new one begins.

    The first mark counts. Without any, the whole text is taken for the answer.
    """
    answer = text.partition(template.answer)[2] if template.answer in text else text
    ends = f"{re.escape(template.end)}|{re.escape(END_OF_TEXT)}"
    next_turn = r"^### (?:Instruction|Input|Response):|^<\|user\|>"  # other headings belong to the answer
    return re.split(f"(?m){ends}|{next_turn}", answer, maxsplit=1)[0].strip()


def encode_entry(entry, tokenizer, template=ALPACA):
    """(ids of the prompt, ids of the answer with <|endoftext|> after it), encoded apart: the prompt's ids are then the
    same with and without an answer."""
    end = "" if template.end == END_OF_TEXT else template.end
    answer = tokenizer.encode_ordinary(entry["output"] + end)
    return tokenizer.encode_ordinary(format_prompt(entry, template)), [*answer, tokenizer.eot_token]


class InstructionData(Dataset):
    """Entries as (ids [n], is_answer [n]), each of at most `max_tokens`.

    Longer ones lose the end of their answer, and with it the <|endoftext|>; where that would leave less than
    `min_answer` tokens of it, the whole entry is left out. `cut` and `left_out` hold the places of those entries.
    """

    def __init__(self, entries, tokenizer, max_tokens, template=ALPACA, min_answer=8):
        self.items, self.cut, self.left_out = [], [], []
        for i, entry in enumerate(entries):
            prompt, answer = encode_entry(entry, tokenizer, template)
            room = max_tokens - len(prompt)
            if room < min(min_answer, len(answer)):
                self.left_out.append(i)
                continue
            if room < len(answer):
                self.cut.append(i)
            ids = torch.tensor((prompt + answer)[:max_tokens])
            self.items.append((ids, torch.arange(len(ids)) >= len(prompt)))
        if not self.items:
            raise ValueError(f"none of {len(entries)} entries fits into {max_tokens} tokens")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate_instructions(batch, mask_prompt=True):
    """[(ids, is_answer), ...] -> inputs [B, T], targets [B, T], one token later, each row as long as the longest.

    Padding does not count (IGNORE), and with `mask_prompt` neither does the prompt, its answer mark included.
    """
    T = max(len(ids) for ids, _ in batch) - 1
    inputs, targets = torch.zeros(len(batch), T, dtype=torch.long), torch.full((len(batch), T), IGNORE)
    for i, (ids, is_answer) in enumerate(batch):
        n = len(ids) - 1
        inputs[i, :n] = ids[:-1]
        targets[i, :n] = ids[1:].masked_fill(~is_answer[1:], IGNORE) if mask_prompt else ids[1:]
    return inputs, targets


def instruction_loader(data, batch_size, *, mask_prompt=True, seed=0):
    """Shuffled batches of `data`, an InstructionData or what `pack` made of one, each of rows of like length."""
    buckets = LengthBuckets([len(ids) for ids, _ in data], batch_size, torch.Generator().manual_seed(seed))
    collate = partial(collate_instructions, mask_prompt=mask_prompt)
    return DataLoader(data, batch_sampler=buckets, collate_fn=collate, generator=buckets.generator)


def answer_loss(model, inputs, targets):
    """`next_token_loss`, with logits for the targets that count only: inputs, targets [B, T] -> [].

    Prompt and padding, most of a batch, never reach the head, the widest layer.
    """
    counts = targets != IGNORE  # [B, T]
    logits = model.head(model.hidden(inputs)[counts]).float()  # [N, V]
    return F.cross_entropy(logits, targets[counts], reduction="sum") / counts.sum().clamp(min=1)


def respond(model, tokenizer, entries, max_new_tokens=100, *, batch_size=32, template=ALPACA, **sampling):
    """The model's answer to each entry, in their order: a list of texts. `sampling` are settings of `generate`.

    Prompts of like length are answered together. One that leaves less room in the context than 32 tokens (or
    `max_new_tokens`, if that is less) loses its oldest tokens.
    """
    context = model.config.context_length
    prompts = [tokenizer.encode_ordinary(format_prompt(entry, template)) for entry in as_list(entries)]
    prompts = [ids[-max(1, context - min(max_new_tokens, 32)) :] for ids in prompts]
    order, answers = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    for rows in BatchSampler(order, batch_size, drop_last=False):
        longest = max(len(prompts[i]) for i in rows)
        output = generate(
            model, [prompts[i] for i in rows], max_new_tokens, eos_id=tokenizer.eot_token, n_vocab=tokenizer.n_vocab,
            **sampling,
        )  # [B, longest + new]  # fmt: skip
        for i, new in zip(rows, output[:, longest:].tolist(), strict=True):
            answers[i] = extract_response(template.answer + tokenizer.decode(new), template)
    return answers


def save_responses(path, entries, responses):
    """Write the entries with their `model_response` as a JSON list, atomically."""
    if len(entries) != len(responses):
        raise ValueError(f"there are {len(entries)} entries and {len(responses)} responses")
    rows = [entry | {"model_response": response} for entry, response in zip(entries, responses, strict=True)]
    with write_atomically(path) as part:
        part.write_text(valid_unicode(json.dumps(rows, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8")
