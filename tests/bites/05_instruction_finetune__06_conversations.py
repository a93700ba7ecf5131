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
    Mutation("a probe's twin keeps the turn", find='luggage is allowed?", domains.NOTHING)',
             replace='luggage is allowed?",) * 2'),
    Mutation("a probe asks for one value only", find='"Which city do I fly to, again?")[k]',
             replace='"Which city do I fly to, again?")[1]'),
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
    "read_here[:16], course_tokenizer, 512": "read_here[:12], course_tokenizer, 256",
}
LEFT_OUT = ["live = {}", "figure, axis = plt.subplots(figsize=(7.5", "reference = domains.fluency",
            "search = sorted(", "data.load(name)", "columns = {"]  # fmt: skip
WRONG_ANSWERS = {
    "my_probe": """
        def my_probe(first, second, k):
            conversation, twin = (
                [{"role": "user", "content": said}, {"role": "assistant", "content": "Is it Basic or Plus?"},
                 {"role": "user", "content": "Where do I fly to?"}]  # whatever `k` is
                for said in (f"I fly from {first} to {second}.", domains.NOTHING)
            )
            target, other = (first, second)[::1 - 2 * k]
            return {"conversation": conversation, "twin": twin, "target": target, "other": other}
    """,
    "bits_after_training": """
        def bits_after_training(everything):
            fresh, _ = load_base(COURSE_BASE)
            train(fresh, instruction_loader(few, 4), loss_fn=answer_loss, lr=1e-3, warmup_steps=2, progress=False)
            return domains.bits(fresh, course_tokenizer, COURSE, unseen).bits_per_byte  # `everything` is forgotten
    """,
}
