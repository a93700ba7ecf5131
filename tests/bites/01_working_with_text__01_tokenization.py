"""What must not go unnoticed in lesson 1.1."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("a merged token is kept beside its parts", find="            merged[-1] = new_id\n",
             replace="            merged.append(new_id)\n"),
    Mutation("the slow trainer takes the rarest pair", replace="(counts[pair], pair)",
             find="(-counts[pair], pair)", cell_contains="def learn_merges_slowly"),
    Mutation("a word counts once, however often it occurs", find="counts[pair] += n\n", replace="counts[pair] += 1\n"),
    Mutation("the old neighbours keep their counts", find="counts[p] -= times[w]", replace="counts[p] -= 0",
             cell_contains="def learn_with_counts"),
    Mutation("stale entries of the heap are believed", find="if n != -counts[pair]:", replace="if False:"),
    Mutation("a new pair goes into the heap with half its promise", find="heapq.heappush(heap, (n, p))",
             replace="heapq.heappush(heap, (n // 2, p))"),
    Mutation("GPT-2's split without the space before a word", find=r"| ?\p{L}+|", replace=r"|\p{L}+|"),
    Mutation("the merge learned last goes first", find="first = min(known, key=merges.get)",
             replace="first = max(known, key=merges.get)"),
    Mutation("GPT-2's bytes keep their own order", find="[byte_ids[b] for b in piece.encode(\"utf-8\")], merges)",
             replace="[*piece.encode(\"utf-8\")], merges)", cell_contains="def encode(text, merges, byte_ids"),
    Mutation("half a character is dropped", find='.decode("utf-8", errors="replace")',
             replace='.decode("utf-8", errors="ignore")', cell_contains="def decode(ids, tokens)"),
    Mutation("the training learns from special tokens", find=" if part not in special_tokens]", replace="]"),
    Mutation("special tokens need no permission", find="if token in text and token not in allowed:",
             replace="if False:"),
]

WRONG_ANSWERS = {
    "complete_part": """
    def complete_part(data):
        return data.decode("utf-8", errors="ignore"), b""  # loses the first half of each character
    """,
    "split_numbers": r"""
    def split_numbers(text):
        return regex.findall(GPT2_SPLIT.replace(r" ?\p{N}+", r" ?\p{N}{1,3}"), text)  # from the left
    """,
    "tokens_per_byte": """
    def tokens_per_byte(vocab_size):
        cut = len(story) * 4 // 5
        encoder = BPETokenizer().train(story, vocab_size)  # has seen the last fifth
        return [len(encoder.encode_ordinary(part)) / len(part.encode("utf-8")) for part in (story[:cut], story[cut:])]
    """,
}
