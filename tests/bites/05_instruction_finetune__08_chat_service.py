"""What is broken in lesson 5.8, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("a step reads the first token of the answer", find="[0], new[-1:])", replace="[0], new[:1])"),
    Mutation("a static batch ends with its shortest text", find="range(max(lengths[name]",
             replace="range(min(lengths[name]"),
    Mutation("a free row waits for all others", find="waiting.popleft() if waiting else None",
             replace="waiting.popleft() if waiting and not any(rows) else None"),
    Mutation("who is done stays", find="name if name and left[name] else None",
             replace="name if name and left[name] >= 0 else None"),
    Mutation("newcomers cost no pass", find=" + bool(now - before)", replace=""),
    Mutation("a row reads its first token again", find="last = [rows[row].new[-1] for row in which]",
             replace="last = [rows[row].new[0] for row in which]"),
    Mutation("a row that is left is not freed", find="cache.free(row)", replace="pass"),
    Mutation("a full stop ends nothing", find="len(self.new) == self.max_new or self.new[-1] == STOP",
             replace="len(self.new) == self.max_new"),
    Mutation("who came last is served first", find="rows[row] = waiting.popleft()",
             replace="rows[row] = waiting.pop()"),
    Mutation("the scheduler knows no end token", find="end_ids=frozenset([STOP])", replace="end_ids=frozenset()"),
    Mutation("the queue is longer", find="max_waiting=3", replace="max_waiting=4"),
    Mutation("nobody says that the client has left", find="accepted[0].cancel()", replace="pass"),
    Mutation("the model computes in the event loop", find="for work in (in_the_loop, beside_the_loop)",
             replace="for work in (in_the_loop, in_the_loop)"),
    Mutation("the route streams another token", find="queue.put_nowait, token)",
             replace="queue.put_nowait, token and 1)"),
    Mutation("each token has a stream of its own", find="in stream.feed(i)",
             replace="in chat_text.TextStream(small_tokenizer).feed(i)"),
    Mutation("nobody cancels when the client hangs up", find="        work.cancel()", replace="        pass"),
    Mutation("the request draws its tokens", find="\"temperature\": 0} | more", replace="\"temperature\": 2.0} | more"),
    Mutation("probabilities of another question", find="[prompt_of(messages[0][\"content\"])]",
             replace="[prompt_of(\"Who are you?\")]"),
    Mutation("they only seem to come at once", find="\"at once\": [crowd(16)", replace="\"at once\": [crowd(1)"),
    Mutation("an honest page asks", find="headers={\"Origin\": \"https://evil.example\"}", replace="headers={}"),
]  # fmt: skip

SMALLER = {
    "data.fetch(\"smollm2\", sample_ok=False)": "raise data.DownloadError",  # the small model, in all cases
    "generate(small, [callers[0].prompt], 200)": "generate(small, [callers[0].prompt], 100)",
    "in tokens_of(callers[0].prompt, 200)": "in tokens_of(callers[0].prompt, 100)",
    "post_say(200)": "post_say(80)",
    "folder := chat.newest_chat_model()": "folder := None",
    "N_TOKENS = 30": "N_TOKENS = 5",
    "[crowd(1) for _ in range(3)], \"at once\": [crowd(16) for _ in range(3)]":
        "[crowd(1) for _ in range(1)], \"at once\": [crowd(16) for _ in range(1)]",
}
LEFT_OUT = ["together = Scheduler", "Drawing: one answer is many passes", "all_rows = [1, 2", "middle = {",
            "mixes = [{", "static and as your loop served them", "Drawing: two threads and a queue",
            "show_source(Scheduler.step", "for choice in top[:2]", "for number, (begun, ended",
            "somebody still answers"]  # after a fork the server lives in the other process
WRONG_ANSWERS = {
    "admit": """
        def admit(waiting, n_free, now):
            return [name for name, _, _ in sorted(waiting, key=lambda caller: caller[2])[:n_free]]  # nobody's patience
    """,
    "until_stop": """
        def until_stop(pieces, stop):
            shown = []
            for piece in pieces:
                shown.append(piece.partition(stop)[0])
                if stop in piece:  # a stop in two pieces is not seen
                    break
            return shown
    """,
    "long_prompt": """
        def long_prompt(piece):
            scheduler, long = Scheduler(small, 2, 256), Work(long_prompt_ids, 5)  # engine.PIECE stays as it is
            scheduler.submit(Work(short_prompt, 60))
            for _ in range(3):
                scheduler.step()
            scheduler.submit(long)
            counts = []
            while not long.new:
                counts.append(positions_in_step(scheduler))
            return max(counts), len(counts)
    """,
}
