"""Conversations for a model: chat templates, masks, what fits into a context, replies.

A conversation is a list of turns {"role", "content"} (see shared/conversation_files.py).
Shapes: n tokens of one conversation.
"""

import json
from dataclasses import dataclass

import torch
from torch.utils.data import BatchSampler, Dataset

from shared.batches import as_list
from shared.generation import generate
from shared.tokenizer import END_OF_TEXT


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation becomes text.

    `opening` begins a turn and has a place for {role}; `closing` ends one of the system or the user. A turn of the
    assistant ends with `end`, one special token, which the model learns to write; `after` follows. `system` is said
    first where a conversation has no system turn of its own.
    """

    opening: str
    closing: str
    end: str
    after: str
    system: str | None = None


# ChatML, with the system line of SmolLM2-Instruct; and the course's own form, for an encoding whose only special token
# is <|endoftext|>.
CHATML = ChatTemplate("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_end|>", "\n",
                      "You are a helpful AI assistant named SmolLM, trained by Hugging Face")  # fmt: skip
COURSE = ChatTemplate("{role}:\n", "\n", END_OF_TEXT, "\n")


def pieces(conversation, template, prompt=False):
    """[(text, is it a mark of the template?, does it count in the loss?), ...] of a conversation, in order.

    With `prompt` the assistant's next turn is opened.
    """
    turns = as_list(conversation)
    if template.system is not None and (not turns or turns[0]["role"] != "system"):
        turns = [{"role": "system", "content": template.system}, *turns]
    parts = []
    for turn in turns:
        spoken = turn["role"] == "assistant"
        parts += [(template.opening.replace("{role}", turn["role"]), True, False), (turn["content"], False, spoken)]
        parts += [(template.end, True, True)] if spoken else []
        parts.append((template.after if spoken else template.closing, True, False))
    return parts + ([(template.opening.replace("{role}", "assistant"), True, False)] if prompt else [])


def render(conversation, template, prompt=False):
    """The conversation as the text that the model is shown."""
    return "".join(text for text, _, _ in pieces(conversation, template, prompt))


def encode_conversation(conversation, tokenizer, template, prompt=False):
    """(ids, counts): the tokens of a conversation and, for each, whether it counts in the loss: two lists of n.

    Only the template's own marks become special tokens: what people write is encoded as ordinary text, so that nobody
    can end a turn by typing <|im_end|>. The assistant's words and their end count.
    """
    ids, counts = [], []
    for text, is_mark, does_count in pieces(conversation, template, prompt):
        piece = tokenizer.encode(text, allowed_special="all") if is_mark else tokenizer.encode_ordinary(text)
        ids += piece
        counts += [does_count] * len(piece)
    return ids, counts


def fit(conversation, tokenizer, max_tokens, template, prompt=False):
    """The conversation, or what is left of it when the oldest turns are dropped until it has at most `max_tokens`.

    The system line stays, and what is left begins with the user. Raises ValueError where the newest user turn and what
    follows it do not fit.
    """
    begins = [i for i, turn in enumerate(conversation) if turn["role"] == "user"]
    head = conversation[: begins[0]] if begins else []
    for start in begins or [0]:
        left = head + conversation[start:]
        n = len(encode_conversation(left, tokenizer, template, prompt)[0])
        if n <= max_tokens:
            return left
    raise ValueError(f"the last turn has {n} tokens with the system line; at most {max_tokens} fit into the context")


class ConversationData(Dataset):
    """Conversations as (ids [n], counts [n]), each of at most `max_tokens`, for `instruction_loader`.

    Longer ones lose their oldest turns; those whose last turns do not fit are left out. `shortened` and `left_out` hold
    the places of both.
    """

    def __init__(self, conversations, tokenizer, max_tokens, template):
        self.items, self.shortened, self.left_out = [], [], []
        for i, conversation in enumerate(conversations):
            try:
                left = fit(conversation, tokenizer, max_tokens, template)
            except ValueError:
                self.left_out.append(i)
                continue
            if len(left) < len(conversation):
                self.shortened.append(i)
            ids, counts = encode_conversation(left, tokenizer, template)
            self.items.append((torch.tensor(ids), torch.tensor(counts)))
        if not self.items:
            raise ValueError(f"none of {len(conversations)} conversations fits into {max_tokens} tokens")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def check_masks(data, tokenizer, template):
    """Raises ValueError, naming the item, unless in each of `data`, (ids [n], counts [n]), something counts, each run
    of tokens that count ends with the template's end, and the first token does not come twice."""
    end = tokenizer.encode_single_token(template.end)
    for i, (ids, counts) in enumerate(data):
        if not counts[1:].any():
            raise ValueError(f"item {i}: no token counts, so nothing is learned from it")
        last = counts & ~torch.cat([counts[1:], torch.tensor([False])])
        if (ids[last] != end).any():
            raise ValueError(f"item {i}: what counts does not end with {template.end}, so the model learns no end")
        if len(ids) > 1 and ids[0] == ids[1]:
            raise ValueError(f"item {i}: it begins twice, with token {ids[0].item()}")


def reply(model, tokenizer, conversations, max_new_tokens=60, *, template, batch_size=16, **sampling):
    """The assistant's next turn in each of `conversations`, which end with the user: a list of texts, in their order.

    `sampling` are settings of `generate`. Oldest turns are dropped where they leave no room for `max_new_tokens` in the
    context. Raises ValueError for a conversation that does not end with the user, or whose last turn does not fit.
    """
    prompts, end = [], tokenizer.encode_single_token(template.end)
    for i, conversation in enumerate(as_list(conversations)):
        if not conversation or conversation[-1]["role"] != "user":
            raise ValueError(f"conversation {i} does not end with the user: there is nothing to reply to")
        room = model.config.context_length - max_new_tokens
        left = fit(conversation, tokenizer, room, template, prompt=True)
        prompts.append(encode_conversation(left, tokenizer, template, prompt=True)[0])
    order, replies = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    for rows in BatchSampler(order, batch_size, drop_last=False):
        longest, asked = max(len(prompts[i]) for i in rows), [prompts[i] for i in rows]
        made = generate(model, asked, max_new_tokens, eos_id=end, n_vocab=tokenizer.n_vocab, **sampling)
        for i, new in zip(rows, made[:, longest:].tolist(), strict=True):
            new = new[: new.index(end)] if end in new else new
            said = tokenizer.decode(new).partition("\n" + template.opening.replace("{role}", "user"))[0]
            replies[i] = said.strip()
    return replies


def jinja(template, generation=False):
    """The template in Jinja, the language of `chat_template` in Hugging Face's tokenizers.

    With `generation` it also says which text is the assistant's (in transformers' {% generation %}, for
    `return_assistant_tokens_mask` and trl); other programs do not know these marks.
    """
    before, after = (json.dumps(part) for part in template.opening.split("{role}"))
    begin, stop = ("{% generation %}", "{% endgeneration %}") if generation else ("", "")
    system = render([{"role": "system", "content": template.system or ""}], template)
    first = f"{{% if loop.first and message['role'] != 'system' %}}{{{{ {json.dumps(system)} }}}}{{% endif %}}"
    said = f"{{{{ message['content'] + {json.dumps(template.end)} }}}}"
    return (
        f"{{% for message in messages %}}{first if template.system is not None else ''}"
        f"{{{{ {before} + message['role'] + {after} }}}}"
        f"{{% if message['role'] == 'assistant' %}}{begin}{said}{stop}{{{{ {json.dumps(template.after)} }}}}"
        f"{{% else %}}{{{{ message['content'] + {json.dumps(template.closing)} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {before} + 'assistant' + {after} }}}}{{% endif %}}"
    )
