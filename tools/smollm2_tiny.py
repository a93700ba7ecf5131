"""Make the stand-in for SmolLM2: a tiny model of the same form, for machines that can fetch nothing.

    python -m tools.smollm2_tiny

It learns from the texts written for this course (shared/data/samples), every tenth of them held out, and is written as
shared/data/samples/smollm2-tiny.gguf in the number formats of the real file. The last line says what it cost and
whether it beats counted bigrams on the texts that were held out.
"""

import json
import math
import time

import torch

from shared.batches import create_dataloader
from shared.bigrams import bigram_loss
from shared.data.places import SAMPLES
from shared.gguf import llama_settings, write_gguf
from shared.llama import LlamaConfig, LlamaModel
from shared.llama_files import to_gguf
from shared.loss import mean_loss
from shared.runtime import seed_everything
from shared.smollm_tokenizer import SMOLLM_SPLIT, SmolLMEncoding
from shared.tokenizer import BPETokenizer
from shared.training import train

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts():
    """All texts of the course's samples, each as one string."""
    found = (SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8").split("\n\n")
    for name in ("web_pages.jsonl", "wikitext2.jsonl", "lambada.jsonl"):
        for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line)["text"])
    for line in (SAMPLES / "sms_messages.tsv").read_text(encoding="utf-8").splitlines():
        found.append(line.partition("\t")[2])
    for entry in json.loads((SAMPLES / "instructions.json").read_text(encoding="utf-8")):
        asked = "\n".join(filter(None, (entry["instruction"], entry["input"])))
        turns = (("system", SYSTEM), ("user", asked), ("assistant", entry["output"]))
        found.append("".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns))
    return found


def main():
    seed_everything(0)
    torch.set_num_threads(1)
    parts = {"train": [], "held out": []}
    for i, text in enumerate(texts()):
        parts["held out" if i % 10 == 9 else "train"].append(text)
    bpe = BPETokenizer().train("\n".join(parts["train"]), 256 + 768 + len(SPECIAL), SPECIAL)
    tokens = {token: i + len(SPECIAL) for i, token in enumerate(bpe.tokens)}  # the special ones come first, as there
    encoding = SmolLMEncoding("smollm2-tiny", tokens, {token: i for i, token in enumerate(SPECIAL)})
    ids = {name: [i for text in part for i in encoding.encode(text, allowed_special="all") + [0]]
           for name, part in parts.items()}  # fmt: skip
    config = LlamaConfig(encoding.n_vocab, 512, emb_dim=128, n_heads=4, n_kv_heads=2, n_layers=4, hidden_dim=384,
                         rope_base=100_000.0)  # fmt: skip
    model, started = LlamaModel(config), time.time()
    loader, held = (create_dataloader(part, 128, batch_size=16, shuffle=name == "train") for name, part in ids.items())
    history = train(model, loader, held, epochs=14, lr=2e-3, warmup_steps=40, eval_every=100, progress=False)
    print([round(loss, 2) for loss in history.val_loss])
    kinds = {name: "Q8_0" if name.startswith("token_embd") else "Q4_1" for name, tensor in to_gguf(model).items()
             if tensor.dim() == 2}  # fmt: skip
    settings = llama_settings("smollm2-tiny", config, encoding, TEMPLATE)
    write_gguf(SAMPLES / "smollm2-tiny.gguf", "llama", settings, to_gguf(model), kinds)
    bigrams = bigram_loss(ids["train"], ids["held out"], config.vocab_size)
    print(f"{len(ids['train']):,} tokens, {time.time() - started:.0f} s; held out: loss {mean_loss(model, held):.3f}, "
          f"bigrams {bigrams:.3f}, ln V {math.log(config.vocab_size):.2f}; "
          f"{(SAMPLES / 'smollm2-tiny.gguf').stat().st_size:,} bytes; split {SMOLLM_SPLIT[:6]}...")  # fmt: skip


if __name__ == "__main__":
    main()
