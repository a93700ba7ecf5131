"""What must not go unnoticed in lesson 1.1."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("a merged token is used twice", find="            i += 2\n", replace="            i += 1\n"),
    Mutation("the slow trainer takes the rarest pair", replace="(counts[pair], pair)",
             find="(-counts[pair], pair)", cell_contains="def learn_merges_slowly"),
    Mutation("stale entries of the heap are believed", find="if counts[pair] != -count or count == 0:",
             replace="if False:"),
    Mutation("counts of the old neighbours are not corrected", find="counts[p] -= times[w]", replace="counts[p] -= 0"),
    Mutation("GPT-2's split without the space before a word", find=r"| ?\p{L}+|", replace=r"|\p{L}+|"),
    Mutation("the merge learned last goes first", find="new_id, i = heapq.heappop(heap)",
             replace="new_id, i = heap.pop(heap.index(max(heap)))"),
    Mutation("merges of what has changed are applied", find="if merges.get((ids[i], ids[j])) != new_id:",
             replace="if ids[i] is None or ids[j] is None:"),
    Mutation("the training learns from special tokens", find=" if part not in special_tokens]", replace="]"),
    Mutation("broken halves of characters are dropped", find='.decode("utf-16", errors="replace")',
             replace='.decode("utf-16", errors="ignore")'),
    Mutation("special tokens need no permission", find="if token in text and token not in allowed:",
             replace="if False:"),
]

WRONG_ANSWERS = {
    "count_word_pairs": """
    def count_word_pairs(words, times):
        counts = Counter()
        for ids in words:
            for pair in pairwise(ids):
                counts[pair] += 1  # forgets how often the word occurs
        return counts
    """,
    "encode_bytes": """
    def encode_bytes(ids, merges):
        i = 0
        while i + 1 < len(ids):  # the first pair from the left, not the one learned first
            if (ids[i], ids[i + 1]) in merges:
                ids = ids[:i] + [merges[ids[i], ids[i + 1]]] + ids[i + 2:]
                i = 0
            else:
                i += 1
        return ids
    """,
    "tokens_per_number": """
    def tokens_per_number(encode, numbers):
        return sum(len(encode(str(number))) for number in numbers) / len(numbers)  # without the space
    """,
}
