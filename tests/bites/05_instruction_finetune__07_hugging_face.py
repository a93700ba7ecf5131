"""What is broken in lesson 5.7, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the template says another role", find="jinja(COURSE, generation=True))\ntheir_tokenizer",
             replace="jinja(COURSE, generation=True).replace(\"message['role']\", \"'user'\", 1))\ntheir_tokenizer"),
    Mutation("their model draws its words", find="max_new_tokens=24, do_sample=False",
             replace="max_new_tokens=24, do_sample=True"),
    Mutation("the prompt counts", find="labels = [ids.masked_fill(~counts, IGNORE) for ids, counts in rows]",
             replace="labels = [ids for ids, counts in rows]"),
    Mutation("the filling counts", find="padded(labels, padding_value=IGNORE)", replace="padded(labels)"),
    Mutation("the weights of the parts are those of one row", find="(batch[\"labels\"][:, 1:] != IGNORE).sum()\nwith",
             replace="(batch[\"labels\"][:1, 1:] != IGNORE).sum()\nwith"),
    Mutation("their order is shuffled", find="return SequentialSampler(self.train_dataset)",
             replace="return torch.utils.data.RandomSampler(self.train_dataset)"),
    Mutation("another beta", find="adam_beta2=0.95", replace="adam_beta2=0.96", cell_contains="SAME = dict("),
    Mutation("another rate", find="learning_rate=2e-4", replace="learning_rate=2.02e-4",
             cell_contains="SAME = dict("),
    Mutation("trl counts everything", find="sft = sft_trainer(assistant_only_loss=True)",
             replace="sft = sft_trainer()"),
    Mutation("A begins elsewhere", find="theirs.lora_A[\"default\"].weight.data.copy_(adapter.A)", replace="pass"),
    Mutation("alpha is forgotten", find="\"lora_alpha\": 16, ", replace=""),
    Mutation("our adapter is that of nobody", find="in_ours = load_adapter(copy.deepcopy(base), folder / \"theirs\")",
             replace="in_ours = apply_lora(copy.deepcopy(base))"),
    Mutation("the rows are filled on the other side", find="padding_side=side, ",
             replace="padding_side=\"right\", "),
    Mutation("the adapters are dropped, not merged", find="script.model.merge_and_unload()",
             replace="script.model.unload()"),
    Mutation("going on from nothing", find="resume=str(kept)", replace="resume=None"),
    Mutation("the untrained model is handed over", find="sft.save_model(str(folder / \"tuned\"))",
             replace="their_base.save_pretrained(folder / \"tuned\")\nhanded_over = their_tokenizer.save_pretrained("
                     "folder / \"tuned\")"),
]  # fmt: skip

SMALLER = {  # three steps in place of ten, and no bitsandbytes, which peft imports where it is
    "logging.getLogger(\"bitsandbytes\").setLevel(logging.ERROR)": "sys.modules[\"bitsandbytes\"] = None",
    "for chat in chats[20:40]]": "for chat in chats[20:24]]",
    "Run(conversations=20, smol_steps=2": "Run(conversations=6, smol_steps=2",
    "len(our_losses) == 10 and our_losses[-1] < our_losses[0] - 0.5": "len(our_losses) == 3",
    " and lora_losses[-1] < lora_losses[0] - 0.2": "",
    "save_steps=5, max_steps=5": "save_steps=2, max_steps=2",
    "folder / \"runs/checkpoint-5\", trainer.losses[5:]": "folder / \"runs/checkpoint-2\", trainer.losses[2:]",
}
LEFT_OUT = ["by_default = {", "distances = {", "scales = {", "idle = torch.optim", "plain = transformers",
            "smol, smol_tokenizer = load_base", "question = [{", "short_chats = sorted(",
            "longer = sft_trainer("]
WRONG_ANSWERS = {
    "verdict": """
        def verdict(ids, labels):
            counts = [label != IGNORE for label in labels]
            if all(counts):
                return "prompt"  # a single token of the prompt is not seen
            return "fine" if counts[ids.index(tokenizer.eot_token)] else "end"
    """,
    "stopped": """
        def stopped(fitted):
            some = [fit(chat, tokenizer, 64, COURSE) if fitted else chat for chat in chats[:20]]
            rows = datasets.Dataset.from_list([{"messages": chat} for chat in some])
            return ends(sft_trainer(rows, max_length=64, assistant_only_loss=True).model)  # .train() is forgotten
    """,
    "step_loss": """
        def step_loss(model, parts):
            return sum(model(**part).loss.item() for part in parts) / len(parts)  # a mean of means
    """,
}
