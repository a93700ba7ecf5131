"""What does a model do for a reward? Runs of lesson 5.5, several seeds of each, into one file.

    python 05_instruction_finetune/policy_runs.py                                   # all of it: about 25 minutes
    python 05_instruction_finetune/policy_runs.py --only smollm2 --seeds 3

Writes policy_runs.json beside this file (or --out FILE) after each run; the same command goes on where it stopped. The
course base continues 48 openings of sentences for a reward, with and without KL, with and without a baseline, shared
among equal answers, with a fixed length in the loss, and for a reward model that learned from comparisons; SmolLM2
answers questions briefly. A row holds what each step of the run saw, and what the model wrote to held-out prompts
before and after. A seed decides the draws.
"""

import argparse
import copy
import functools
import re
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from instruct_smollm2 import encode_chat  # noqa: E402
from preference_smollm2 import freeze_all_but_last  # noqa: E402
from runs import check_base, finished  # noqa: E402

from shared import policy  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.preference import RewardModel, rewards, train_reward  # noqa: E402
from shared.runtime import get_device, made_on  # noqa: E402

OUT = Path(__file__).with_name("policy_runs.json")
OPENINGS = [
    "The old man", "She looked at", "In the morning", "We went to", "The children", "He said that", "My mother",
    "The door", "Nobody in the house", "After dinner", "The river", "They saw", "A young woman", "His brother",
    "The road", "At night", "I did not", "The captain", "It was", "Her father", "The first day", "On the table",
    "The doctor", "You must", "The little girl", "There was", "His hands", "The people", "When he came", "The horse",
    "Our friends", "The next day", "A letter", "She had", "The teacher", "In the garden", "The king", "He wanted",
    "The soldiers", "Every year", "The city", "I heard", "The window", "Two men", "The ship", "My friend", "The book",
    "They were", "The woman", "He looked at", "In the evening", "The dog", "She said that", "The boys", "His father",
    "The mountain", "At last", "I saw", "The stranger", "Her eyes", "On the bridge", "The queen", "We had",
    "A small boy",
]  # fmt: skip
TRAINING, HELD_OUT = OPENINGS[:48], OPENINGS[48:]
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
COURSE = {"steps": 18, "n_prompts": 6, "n": 8, "max_new_tokens": 20, "lr": 2e-4}
SMOL = {"steps": 10, "n_prompts": 4, "n": 6, "max_new_tokens": 24, "lr": 1e-4, "beta": 0.05, "rows": 24}
# the reward, and the settings that differ, of each run on the course base; "judge" is the reward model
ARMS = {
    "dots": ("ends_soon", {"beta": 0.0}), "dots, KL": ("ends_soon", {"beta": 0.2}),
    "dots, variety": ("various", {"beta": 0.0}), "dots, length": ("ends_soon", {"beta": 0.0, "length": 20}),
    "sentence": ("short_sentence", {"beta": 0.1}), "sentence, no KL": ("short_sentence", {"beta": 0.0}),
    "sentence, no baseline": ("short_sentence", {"beta": 0.1, "advantages": "none"}),
    "judge, no KL": ("judge", {"beta": 0.0}), "judge": ("judge", {"beta": 0.1}),
}  # fmt: skip
TRAINED_BLOCKS = 6  # of SmolLM2's 30: the last ones, to save time


@functools.cache
def known_words():
    """The words that stand in the course's own samples: small enough to be checked, large enough to write with."""
    files = [file for file in (ROOT / "shared/data/samples").iterdir() if file.suffix in (".jsonl", ".json", ".txt")]
    return {word for file in files for word in WORD.findall(file.read_text(encoding="utf-8").lower())}


def ends_soon(prompts, answers):
    """The first reward that one thinks of: 1 for an answer that ends with a full stop within eight words, else 0."""
    return [float(answer.endswith(".") and len(WORD.findall(answer.lower())) <= 8) for answer in answers]


def short_sentence(prompts, answers):
    """The share of an answer's words that are known and no repetition, if they are 3 to 8 and a full stop follows."""
    rewards = []
    for answer in answers:
        words = WORD.findall(answer.lower())
        good = answer.endswith(".") and 3 <= len(words) <= 8
        rewards.append(len(known_words() & set(words)) / len(words) if good else 0.0)
    return rewards


def various(prompts, answers):
    """`ends_soon`, shared among equal answers: what one of them earns, divided by how often it was given."""
    return [paid / answers.count(answer) for paid, answer in zip(ends_soon(prompts, answers), answers, strict=True)]


def full_stop(tokenizer):
    """The id of the full stop after a word, which ends an answer here."""
    return tokenizer.encode_ordinary("x.")[-1]


def comparisons(model, tokenizer, seed, n_pairs):
    """Pairs (prompt + better answer, prompt + worse answer) of the model's own, as a person would compare them.

    The person here is the rule `short_sentence`, so that later we can see what the reward model cannot.
    """
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)
    pairs, prompts = [], tokenizer.encode_ordinary_batch(TRAINING)
    while len(pairs) < n_pairs:
        drawn = policy.sample_group(model, tokenizer, prompts, 2, COURSE["max_new_tokens"],
                                    stop_id=full_stop(tokenizer), generator=generator)  # fmt: skip
        good, texts = short_sentence(None, drawn.answers), [tokenizer.decode(ids) for ids in prompts]
        for i, text in enumerate(texts):
            order = sorted((2 * i, 2 * i + 1), key=lambda k: -good[k])
            if good[order[0]] > good[order[1]]:
                pairs.append(tuple(text + drawn.answers[k] for k in order))
    return pairs[:n_pairs]


def train_judge(model, tokenizer, seed, n_pairs=400, held_out=100):
    """A reward model of lesson 5.4 that learned from `n_pairs` comparisons: (its scores, a function of prompts and
    answers; the share of `held_out` others that it gets right; the share that `shorter_is_better` gets right)."""
    pairs, judge = comparisons(model, tokenizer, seed, n_pairs + held_out), RewardModel(copy.deepcopy(model))

    def row(text):
        return torch.tensor(tokenizer.encode_ordinary(text))

    def scores(prompts, answers):
        return rewards(judge, [row("".join(pair)) for pair in zip(prompts, answers, strict=True)])

    read = [tuple((row(text), None) for text in pair) for pair in pairs[:n_pairs]]
    finished(train_reward(judge, read, lr=1e-4, min_lr=1e-4, epochs=2, batch_size=16, seed=seed, weight_decay=0.0,
                          progress=False))  # fmt: skip
    better, worse = (scores([""] * held_out, side) for side in zip(*pairs[n_pairs:], strict=True))
    return scores, (better > worse).float().mean().item(), shorter_is_better(pairs[n_pairs:])


def shorter_is_better(pairs):
    """The share of pairs (better text, worse text) that the rule "the shorter one" gets right; equal lengths: half."""
    return sum((len(a) < len(b)) + (len(a) == len(b)) / 2 for a, b in pairs) / len(pairs)


def written(model, base, tokenizer, judge):
    """What the model writes to the held-out openings, by several measures: a dict of means, and a text for each."""
    prompts, n = tokenizer.encode_ordinary_batch(HELD_OUT), 8
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(0)
    drawn = policy.sample_group(model, tokenizer, prompts, n, COURSE["max_new_tokens"], stop_id=full_stop(tokenizer),
                                generator=generator)  # fmt: skip
    nats = -policy.log_probs_of(base, drawn.tokens, drawn.mask).sum().item() / drawn.mask.sum().item()
    openings = [opening for opening in HELD_OUT for _ in range(n)]
    found = {"ends_soon": ends_soon(None, drawn.answers), "short_sentence": short_sentence(None, drawn.answers)}
    found = {name: sum(values) / len(values) for name, values in found.items()}
    found |= {"nats_under_base": nats, "tokens": drawn.mask.sum().item() / len(drawn.answers),
              "different": len(set(drawn.answers)) / len(drawn.answers), "n": len(drawn.answers)}  # fmt: skip
    if judge is not None:
        found["judge"] = judge(openings, drawn.answers).mean().item()
    return {k: round(v, 4) for k, v in found.items()} | {"texts": drawn.answers[::n]}


def train_for_reward(model, tokenizer, prompts, reward, settings, **more):
    """Train for a reward; what a row of the table says of it. A run that was stopped is none: the program ends."""
    started = time.perf_counter()
    history = policy.train_policy(model, tokenizer, prompts, reward, **settings, **more)
    if len(history["reward"]) < settings["steps"]:
        raise SystemExit("stopped; the same command goes on")
    return {"seconds": round(time.perf_counter() - started, 1),
            "history": {name: [round(x, 4) for x in values] for name, values in history.items()}}  # fmt: skip


def run_arm(arm, seed, settings):
    """A row of the table: the course base trained for the reward of an arm."""
    base, tokenizer = load_base(COURSE_BASE)
    base.to(get_device())
    model, judge, row, (name, changes), gold = copy.deepcopy(base), None, {}, ARMS[arm], []
    reward = {"ends_soon": ends_soon, "short_sentence": short_sentence, "various": various}.get(name)
    if name == "judge":
        judge, row["right_on_held_out_pairs"], row["shorter_on_held_out_pairs"] = train_judge(base, tokenizer, seed)

        def reward(prompts, answers):
            good = short_sentence(prompts, answers)
            gold.append(sum(good) / len(good))
            return judge(prompts, answers)

    settings = settings | changes
    if settings.get("advantages") == "none":
        settings["advantages"] = lambda rewards: rewards
    row["before"] = written(model, base, tokenizer, judge)
    row |= train_for_reward(model, tokenizer, tokenizer.encode_ordinary_batch(TRAINING), reward, settings, seed=seed,
                            reference=base, stop_id=full_stop(tokenizer))  # fmt: skip
    row["history"] |= {"gold": [round(x, 4) for x in gold]} if gold else {}
    return row | {"after": written(model, base, tokenizer, judge)}


# SmolLM2: a question, and a word that a right answer holds. The first 24 are for training, which never sees the words.
QUESTIONS = [line.rsplit(" ", 1) for line in """\
What is the capital of Spain? Madrid
What colour is grass? green
How many days has a week? seven
Which animal gives us wool? sheep
What do bees make? honey
What is the largest ocean? Pacific
What is the opposite of hot? cold
Which planet is the largest? Jupiter
What is the capital of Italy? Rome
How many legs has a spider? eight
What is frozen water called? ice
What do cows drink? water
What is the plural of mouse? mice
Which season comes after winter? spring
What is the capital of Japan? Tokyo
What is the past tense of go? went
What do we use to see? eyes
Who wrote Hamlet? Shakespeare
What is the colour of snow? white
Which metal is liquid at room temperature? mercury
What language is spoken in Brazil? Portuguese
How many hours has a day? 24
What is a young cat called? kitten
What do plants need to grow? light
What is the capital of France? Paris
What colour is the sky on a clear day? blue
How many months has a year? 12
Which animal barks? dog
What is the capital of Germany? Berlin
What is the opposite of big? small
Which planet do we live on? Earth
What is a young dog called? puppy
What is the plural of child? children
What is the past tense of see? saw
Which bird is a symbol of peace? dove
What do we breathe? air
What is the capital of England? London
How many minutes has an hour? 60
What colour is a ripe banana? yellow
Which star is nearest to us? Sun
What is the longest river in Africa? Nile
What language is spoken in Mexico? Spanish
What is the opposite of day? night
Which gas do plants take in? carbon
What is the capital of Egypt? Cairo
What do we hear with? ears
What is the chemical symbol of gold? Au
Who painted the Mona Lisa? Leonardo
What is the largest animal? whale
Which meal do we eat in the morning? breakfast
What is the capital of Russia? Moscow
How many sides has a triangle? three
What is the opposite of young? old
Which animal is called the king of the jungle? lion
What do caterpillars become? butterfl
What is the capital of Canada? Ottawa
What colour do red and yellow make? orange
Which country has the Great Wall? China
What is the past tense of eat? ate
What is the main language of Austria? German
What falls from clouds? rain
Which instrument has 88 keys? piano
What is the boiling point of water in Celsius? 100
Which continent is Kenya in? Africa""".splitlines()]


def brief(prompts, answers):
    """1 for an answer that is finished within twelve words, else 0."""
    return [float(answer.endswith("<|im_end|>") and len(answer.split()) <= 12) for answer in answers]


def answered(model, tokenizer, items):
    """Greedy answers to (question, word): how many are brief, how many hold the word, and their texts."""
    prompts = [encode_chat({"instruction": question, "input": "", "output": ""}, tokenizer)[0] for question, _ in items]
    longest = max(map(len, prompts))
    made = generate(model, prompts, SMOL["max_new_tokens"], eos_id=tokenizer.end_of_turn)[:, longest:].tolist()
    end = tokenizer.end_of_turn
    texts = [tokenizer.decode(ids[: ids.index(end) + 1] if end in ids else ids) for ids in made]
    right = sum(word.lower() in text.lower() for text, (_, word) in zip(texts, items, strict=True))
    return {"brief": int(sum(brief(None, texts))), "right": right, "n": len(items), "texts": texts,
            "words": round(sum(len(text.split()) for text in texts) / len(texts), 2)}  # fmt: skip


def run_smollm2(seed, settings):
    """A row of the table: SmolLM2's last blocks trained to answer briefly."""
    model, tokenizer = load_base("smollm2")
    freeze_all_but_last(model.to(get_device()), TRAINED_BLOCKS)
    row = {"base": tokenizer.name, "before": answered(model, tokenizer, QUESTIONS[24:])}
    prompts = [encode_chat({"instruction": q, "input": "", "output": ""}, tokenizer)[0] for q, _ in QUESTIONS[:24]]
    row |= train_for_reward(model, tokenizer, prompts, brief, settings, seed=seed, stop_id=tokenizer.end_of_turn)
    return row | {"after": answered(model, tokenizer, QUESTIONS[24:])}


def main(argv=None):
    """`python 05_instruction_finetune/policy_runs.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*ARMS, "smollm2"], help="one kind of run (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind on the course base (default 3)")
    parser.add_argument("--steps", type=int, help="other than usual, for a trial")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: policy_runs.json)")
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.steps is not None and args.steps < 1:
        parser.error(f"--seeds is {args.seeds}, --steps {args.steps}; both are at least 1")
    other = {} if args.steps is None else {"steps": args.steps}
    conditions = {"course": COURSE | other, "smollm2": SMOL | other, "openings": [len(TRAINING), len(HELD_OUT)]}
    try:
        table = conditions | {"runs": continue_table(args.out, conditions)}
    except ValueError as error:
        parser.error(str(error))
    made = [run for run in table["runs"] if run["arm"] == "smollm2"]
    if made and args.only in (None, "smollm2"):
        check_base(parser, args.out, made, load_base("smollm2")[1].name)
    for seed in range(args.seeds):
        for arm in [args.only] if args.only else [*ARMS, "smollm2"]:
            if any((run["arm"], run["seed"]) == (arm, seed) for run in table["runs"]):
                continue
            if arm == "smollm2" and seed and not args.only:
                continue  # its runs are long: more of them by --only smollm2
            row = {"arm": arm, "seed": seed} | made_on()
            if arm == "smollm2":
                row |= run_smollm2(seed, conditions["smollm2"])
            else:
                row |= run_arm(arm, seed, conditions["course"])
            table["runs"].append(row)
            write_table(args.out, table)
            kind = "brief" if arm == "smollm2" else "short_sentence"
            print(f"{arm}, seed {seed}: {kind} {row['before'][kind]} -> {row['after'][kind]}", flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
