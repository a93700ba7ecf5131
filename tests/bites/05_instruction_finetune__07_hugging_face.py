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
    Mutation("trl counts everything", find="sft = sft_run(assistant_only_loss=True)", replace="sft = sft_run()"),
    Mutation("A begins elsewhere", find="theirs.lora_A[\"default\"].weight.data.copy_(adapter.A)", replace="pass"),
    Mutation("alpha is forgotten", find="\"lora_alpha\": 16, ", replace=""),
    Mutation("our adapter is that of nobody", find="in_ours = load_adapter(copy.deepcopy(base), folder / \"theirs\")",
             replace="in_ours = apply_lora(copy.deepcopy(base))"),
    Mutation("the rows are filled on the other side", find="rows = [pad + ids if side == \"left\" else ids + pad",
             replace="rows = [pad + ids if side != \"left\" else ids + pad"),
    Mutation("the adapters are dropped, not merged", find="script.model.merge_and_unload()",
             replace="script.model.unload()"),
    Mutation("going on from nothing", find="resume=str(folder / \"runs/checkpoint-5\")", replace="resume=None"),
    Mutation("the untrained model is handed over", find="sft.save_model(str(folder / \"tuned\"))",
             replace="their_base.save_pretrained(folder / \"tuned\")\nhanded_over = their_tokenizer.save_pretrained("
                     "folder / \"tuned\")"),
]  # fmt: skip

SMALLER = {"sft_run(steps=6, assistant": "sft_run(steps=2, assistant"}
LEFT_OUT = ["by_default = {", "distance = (", "scales = {", "idle = torch.optim", "plain = transformers",
            "smol, smol_tokenizer = load_base", "question = [{", "short_chats = sorted(",
            "longer = sft_run("]
WRONG_ANSWERS = {
    "verdict": """
        def verdict(ids, labels):
            counts = [label != IGNORE for label in labels]
            if all(counts):
                return "prompt"  # a single token of the prompt is not seen
            return "fine" if counts[ids.index(tokenizer.eot_token)] else "end"
    """,
    "held_out_loss": """
        def held_out_loss(assistant_only):
            trained = sft_run(steps=6, assistant_only_loss=True).model.eval()  # assistant_only is forgotten
            with torch.no_grad():
                return trained(**held_out).loss.item()
    """,
    "step_loss": """
        def step_loss(model, parts):
            return sum(model(**part).loss.item() for part in parts) / len(parts)  # a mean of means
    """,
}
