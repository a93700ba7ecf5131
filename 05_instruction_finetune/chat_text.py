"""Between texts and token ids, for chat.py: messages to a prompt that fits the context, tokens to text as it comes."""

import codecs
from bisect import bisect_left
from dataclasses import dataclass

from shared.conversations import CHATML, COURSE, encode_conversation, jinja
from shared.instructions import ALPACA, ALPACA_CHAT_TEMPLATE, format_prompt


class TooLong(ValueError):
    """What must stay of a conversation has no room in the context."""


# --- messages to a prompt


def is_chatml(tokenizer):
    """True where turns are marked by <|im_start|> and <|im_end|>, as in SmolLM2's encoding."""
    return {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_tokens_set


def end_ids(tokenizer):
    """The ids with which an answer ends."""
    return frozenset({tokenizer.eot_token, getattr(tokenizer, "end_of_turn", tokenizer.eot_token)})


def as_turns(messages):
    return [{"role": role, "content": text} for role, text in messages]


def chatml_tokens(tokenizer, messages):
    """The prompt of [(role, text), ...] in ChatML, with the system line of SmolLM2 where there is none.

    The marks are tokens, so that no text can imitate one.
    """
    return encode_conversation(as_turns(messages), tokenizer, CHATML, prompt=True)[0]


def alpaca_tokens(tokenizer, messages):
    """The same in the form of lesson 5.1; the words of the system stand before the first instruction."""
    system = [text for role, text in messages if role == "system"]
    turns = [(role, text) for role, text in messages if role != "system"] or [("user", "")]
    if system and turns[0][0] == "user":
        turns[0] = "user", "\n\n".join(filter(None, [*system, turns[0][1]]))
    instruction, mark, answer = format_prompt({"instruction": "", "input": ""}).partition("### Instruction:\n")
    with_input = format_prompt({"instruction": "", "input": "x"}).partition("### Instruction:\n")[0]
    text, ids = with_input if "### Input:\n" in turns[0][1] else instruction, []
    for role, content in turns:
        if role == "assistant":
            ids += tokenizer.encode_ordinary(text + ALPACA.answer + content) + [tokenizer.eot_token]
            text = ""
        else:
            text += f"{mark}{content}\n\n"
    return ids + tokenizer.encode_ordinary(text + ALPACA.answer)


def course_tokens(tokenizer, messages):
    """The same in the form of lesson 5.6."""
    return encode_conversation(as_turns(messages), tokenizer, COURSE, prompt=True)[0]


STOPS = {  # where a model goes on to ask itself
    chatml_tokens: (), course_tokens: ("\nuser:\n",),
    alpaca_tokens: ("\n### Instruction:", "\n### Input:", "\n### Response:"),
}  # fmt: skip


def form_of(tokenizer, chat_template):
    """(how a model is asked: one of the three functions above; whether it is known to have been trained so).

    `chat_template` is the one in its folder. A model without a known form is asked in that of lesson 5.1.
    """
    known = {jinja(COURSE): course_tokens, jinja(COURSE, generation=True): course_tokens,
             ALPACA_CHAT_TEMPLATE: alpaca_tokens}  # fmt: skip
    if chat_template in known:  # first: SmolLM2, which has marks for ChatML, may have been trained on another form
        return known[chat_template], True
    return (chatml_tokens, True) if is_chatml(tokenizer) else (alpaca_tokens, False)


def fitted_prompt(tokenizer, messages, room, wanted, form):
    """(prompt of at most `room` tokens, how many messages were left out): the oldest turns go, the system stays.

    `form`: see `form_of`. `room` shrinks by `wanted`, the place for an answer, where a part of the conversation can
    make it. Raises TooLong where the words of the system and the last turn do not fit by themselves.
    """
    system = [message for message in messages if message[0] == "system"]
    talk = [message for message in messages if message[0] != "system"]
    starts = [0] + [i for i in range(1, len(talk)) if talk[i][0] == "user" and talk[i - 1][0] == "assistant"]

    def tokens_from(turn):
        return form(tokenizer, system + talk[starts[turn] :])

    first = bisect_left(range(len(starts) - 1), True, key=lambda turn: len(tokens_from(turn)) <= room - wanted)
    ids = tokens_from(first)
    if len(ids) > room:
        raise TooLong(f"the system message and the last turn have {len(ids)} tokens; there is room for {room}")
    return ids, starts[first]


# --- tokens to text


@dataclass
class Piece:
    """What one token adds to a text. A character of several tokens belongs to the last of them."""

    text: str
    token: int
    raw: bytes
    logprob: float | None = None
    top: tuple = ()  # the most likely tokens: (id, log-probability)


class TextStream:
    """The text of an answer, token by token: bytes wait until they are whole characters, words until no `stops`
    can begin with them. `stopped` is true once one of these has come; it is cut off, with all after it.
    """

    def __init__(self, tokenizer, stops=(), n_top=None):
        self.tokenizer, self.stops, self.n_top = tokenizer, tuple(stops), n_top
        self.special = {tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.stopped = [], False

    def bytes_of(self, token):
        """The bytes of a token in an answer; none of a mark such as <|im_start|>."""
        return b"" if token in self.special else self.tokenizer.decode_single_token_bytes(token)

    def name_of(self, token):
        """The bytes by which a token is shown among others: of a mark too."""
        return self.tokenizer.decode_single_token_bytes(token)

    def begin_with(self, tokens):
        """What was said before: the last of these tokens may be the beginning of a character."""
        self.decoder.decode(b"".join(map(self.bytes_of, tokens)))

    def feed(self, token, logprobs=None):
        """Take one more token, with its log-probabilities [V] or None; the pieces that are now certain."""
        raw = self.bytes_of(token)
        piece = Piece(self.decoder.decode(raw), token, raw)
        if logprobs is not None:
            top = logprobs.topk(min(self.n_top, len(logprobs))) if self.n_top else None
            piece.logprob = max(-9999.0, logprobs[token].item())
            if top:
                piece.top = tuple((i, max(-9999.0, x)) for i, x in zip(top.indices.tolist(), top.values.tolist()))
        self.held.append(piece)
        return self._release()

    def finish(self):
        """The pieces that were still held back, when no more tokens come."""
        if self.held:
            self.held[-1].text += self.decoder.decode(b"", final=True)
            self._cut()
        return self._take(len(self.held))

    def _cut(self):
        """Cut the held text where a stop begins in it."""
        text = "".join(piece.text for piece in self.held)
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if not found:
            return False
        left, self.stopped = min(found), True
        for i, piece in enumerate(self.held):
            if left <= 0:
                del self.held[i:]
                break
            piece.text = piece.text[:left]
            left -= len(piece.text)
        return True

    def _release(self):
        if self._cut():
            return self._take(len(self.held))
        if self.decoder.getstate()[0]:
            return []  # in the middle of a character
        text = "".join(piece.text for piece in self.held)
        safe, n, length = len(text) - _may_begin(text, self.stops), 0, 0
        for i, piece in enumerate(self.held, 1):
            length += len(piece.text)
            n = i if length <= safe else n
        return self._take(n)

    def _take(self, n):
        taken, self.held = self.held[:n], self.held[n:]
        return taken


def _may_begin(text, stops):
    """How many characters at the end of `text` a stop may begin with."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
