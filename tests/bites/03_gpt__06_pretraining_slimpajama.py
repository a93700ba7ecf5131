"""What is broken in lesson 3.6, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the first of two equal lines counts as repeated", find="repeated += len(line) * (line in seen)",
             replace="repeated += len(line) * (lines.count(line) > 1)"),
    Mutation("shared shingles over those of one text", find="return len(a & b) / len(a | b)",
             replace="return len(a & b) / len(a)"),
    Mutation("all 128 numberings are the same", find="mix(values ^ salt).min() for salt in SALTS",
             replace="mix(values ^ SALTS[0]).min() for salt in SALTS"),
    Mutation("bands and rows are mixed up", find="return 1 - (1 - s**rows) ** bands",
             replace="return 1 - (1 - s**bands) ** rows"),
    Mutation("a band is 16 minima instead of 8", find=".reshape(16, 8).all(1)", replace=".reshape(8, 16).all(1)"),
    Mutation("one equal minimum makes a band equal", find=".reshape(16, 8).all(1)", replace=".reshape(16, 8).any(1)"),
    Mutation("minima are not independent", find="slow = {text: minima(text)", replace="slow = {text: minhash(text)"),
    Mutation("every band of the script's must agree", find="np.any(band_keys(minhash(a))",
             replace="np.all(band_keys(minhash(a))"),
    Mutation("near duplicates are kept", find="        pairs_found.append((unique[same[0]], text))\n        continue",
             replace="        pairs_found.append((unique[same[0]], text))"),
    Mutation("documents are cut at the wrong place", find="starts = [0, *(ends[:-1] + 1)]",
             replace="starts = [0, *ends[:-1]]"),
    Mutation("the resumed run begins anew with another seed", find='"--eval-every", 20, "--resume")',
             replace='"--eval-every", 20, "--resume", "--seed", 1)'),
    Mutation("the corrected fit has Hoffmann's exponent for the tokens", find="2085.43, 0.3478, 0.3658",
             replace="2085.43, 0.3478, 0.28"),
    Mutation("a token costs only the forward pass", find="return 6 * n_parameters * n_tokens / (chips",
             replace="return 2 * n_parameters * n_tokens / (chips"),
]

SMALLER = {"8, 80_000, (16, 32, 64)": "8, 20_000, (16, 32, 64)"}
LEFT_OUT = ["reached_loss = evaluated", "runs = {width:", "np.polyfit(", "base, base_tokenizer = "]
WRONG_ANSWERS = {
    "mostly_bullets": """
        def mostly_bullets(text):
            lines = text.split("\\n")  # blank lines count
            return sum(line.lstrip().startswith(("-", "*", "•")) for line in lines) > 0.9 * len(lines)
    """,
    "tokens_for": """
        def tokens_for(money, price, n_parameters, peak, mfu):
            return money / price * peak * mfu / (6 * n_parameters)  # hours taken for seconds
    """,
    "shares": """
        def shares(bands):
            agree = np.array([(slow[a] == slow[b]).reshape(-1, bands).all(1).any() for a, b in pairs])  # rows of bands
            return agree[true > 0.8].mean(), agree[true < 0.5].mean()
    """,
}
