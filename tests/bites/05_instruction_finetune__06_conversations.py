"""What is broken in lesson 5.6, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("what counts is the user's", find='spoken = turn["role"] == "assistant"',
             replace='spoken = turn["role"] == "user"'),
    Mutation("the template's system line is forgotten", find="if template.system is not None and (",
             replace="if template.system is None and ("),
    Mutation("the end does not count", find="(template.end, True, True)", replace="(template.end, True, False)"),
    Mutation("people may type the marks", find=" if is_mark else tokenizer.encode_ordinary(text)", replace=""),
    Mutation("a zero mask passes", find="if not counts[1:].any():", replace="if not len(counts):"),
    Mutation("a lost end passes", find="if (ids[last] != end).any():", replace="if (ids[last] < 0).any():"),
    Mutation("a doubled beginning passes", find="len(ids) > 1 and ids[0] == ids[1]",
             replace="len(ids) > 1 and ids[0] == ids[-1]"),
    Mutation("the system line is dropped with the oldest turns", find="left = head + conversation[start:]",
             replace="left = conversation[start:]"),
    Mutation("replies come back sorted by length", find="replies[i] = said.strip()",
             replace="replies[order.index(i)] = said.strip()"),
    Mutation("the assistant may begin", find='return "it begins with the assistant"', replace="return None"),
    Mutation("what is there twice counts twice", find="seen[key] = i", replace="seen[i] = i"),
    Mutation("joining takes turns that are apart", find='key=lambda turn: turn["role"])',
             replace="key=lambda turn: True)"),
    Mutation("what looks similar is replaced", find='unicodedata.normalize("NFC"',
             replace='unicodedata.normalize("NFKC"'),
    Mutation("the wrong digits are doubled", find="int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))",
             replace="int(d) * (2 - i % 2) for i, d in enumerate(reversed(digits))"),
    Mutation("any long number is a card", find=" and groups in usual and luhn(digits)", replace=" and groups in usual"),
    Mutation("any seven digits are a telephone", find="return 7 <= len(digits) <= 15 and (formed or",
             replace="return 7 <= len(digits) <= 15 or (formed and"),
]

SMALLER = {
    'data.places.data_dir() / "lesson-5.6"': "Path(__import__('tempfile').mkdtemp())",
    "data.places.data_dir() / f\"{tokenizer.name}-{'my_chats' if mine else 'airline'}\"":
        "Path(__import__('tempfile').mkdtemp())",
    "epochs=4, batch_size=4, threads=2, new_tokens=40": "epochs=2, batch_size=4, threads=2, new_tokens=16",
    "(1e-3, 60) if": "(1e-3, 8) if",
    'domains.parts("airline", mine, speakers)':
        '[part[:n] for part, n in zip(domains.parts("airline", mine, speakers), (44, 3, 5))]',
    'stranger = domains.parts("help_desk")[2]': 'stranger = domains.parts("help_desk")[2][:4]',
    'unseen, _ = domains.parts("airline")': 'unseen, _ = domains.parts("airline"); unseen = unseen[:3]',
    "read_here[:16], course_tokenizer, 512": "read_here[:8], course_tokenizer, 128",
}
LEFT_OUT = ["live = {}", "figure, axis = plt.subplots(figsize=(7.5", "reference = domains.fluency",
            "search = sorted(", "data.load(name)", "columns = {"]  # fmt: skip
WRONG_ANSWERS = {
    "last_exchanges": """
        def last_exchanges(conversation, n):
            return conversation[-(2 * n - 1) :]  # the system line is lost
    """,
    "bits_after_training": """
        def bits_after_training(everything):
            fresh, _ = load_base(COURSE_BASE)
            train(fresh, instruction_loader(few, 4), loss_fn=answer_loss, lr=1e-3, warmup_steps=2, progress=False)
            return domains.bits(fresh, course_tokenizer, COURSE, unseen).bits_per_byte  # `everything` is forgotten
    """,
}
