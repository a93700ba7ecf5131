"""Which part of the training loop matters on a short story? Eight recipes, five seeds each, all results into one file.

    python 03_gpt/recipes.py

Writes recipes.json beside this file: about five minutes on one CPU core. Lesson 3.2 draws it. A seed decides the first
weights and the order of the batches; all recipes share them, so that a column of five seeds can be compared in pairs.
"""

import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from shared.batches import create_dataloader  # noqa: E402
from shared.bigrams import bigram_loss  # noqa: E402
from shared.data import fetch  # noqa: E402
from shared.files import write_atomically  # noqa: E402
from shared.gpt import GPTConfig, GPTModel  # noqa: E402
from shared.loss import mean_loss, next_token_loss  # noqa: E402
from shared.runtime import made_on, seed_everything  # noqa: E402
from shared.tokenizer import load_tokenizer  # noqa: E402
from shared.training import learning_rate, make_optimizer  # noqa: E402

OUT = Path(__file__).with_name("recipes.json")
EPOCHS, CONTEXT, BATCH = 24, 64, 4
# lr: the highest rate; warmup: steps; cosine: from the highest rate down to 0; clip: the largest gradient norm
RECIPES = {
    "SGD, rate 0.1": {"lr": 0.1, "sgd": True},
    "AdamW, rate 0.001": {"lr": 1e-3},
    "rate 0.003": {"lr": 3e-3},
    "rate 0.003, clipping": {"lr": 3e-3, "clip": 1.0},
    "rate 0.003, warmup": {"lr": 3e-3, "warmup": 60},
    "rate 0.003, warmup, cosine": {"lr": 3e-3, "warmup": 60, "cosine": True},
    "rate 0.003, all three": {"lr": 3e-3, "warmup": 60, "cosine": True, "clip": 1.0},
    "rate 0.001, all three": {"lr": 1e-3, "warmup": 60, "cosine": True, "clip": 1.0},
}


def run(model, train_loader, valid_loader, lr, sgd=False, warmup=0, cosine=False, clip=None):
    """(training loss of each epoch, validation loss after it): lesson 3.2's loop, in float32."""
    optimizer = torch.optim.SGD(model.parameters(), lr) if sgd else make_optimizer(model, lr)
    train_losses, valid_losses, step = [], [], 0
    for _ in range(EPOCHS):
        losses = []
        for inputs, targets in train_loader:
            rate = learning_rate(step, EPOCHS * len(train_loader), lr, warmup, final=0.0 if cosine else lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = next_token_loss(model, inputs, targets)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
        train_losses.append(sum(losses) / len(losses))
        valid_losses.append(mean_loss(model, valid_loader))
    return train_losses, valid_losses


def main():
    """`python 03_gpt/recipes.py`: run them all and write the table."""
    torch.set_num_threads(1)  # small matrices are faster on one
    file = fetch("the_verdict")
    ids = torch.tensor(load_tokenizer("gpt2").encode_ordinary(file.read_text(encoding="utf-8")))
    used, ids = ids.unique(return_inverse=True)  # only the tokens that occur, renumbered
    cut = len(ids) * 9 // 10
    config = GPTConfig(len(used), CONTEXT, emb_dim=128, n_heads=4, n_layers=2)
    table = made_on() | {"text": file.name, "tokens": len(ids), "epochs": EPOCHS,
                         "bigrams": round(bigram_loss(ids[:cut], ids[cut:], len(used)), 3), "runs": {}}  # fmt: skip
    valid_loader = create_dataloader(ids[cut:], CONTEXT, BATCH, shuffle=False, drop_last=False)
    for name, recipe in RECIPES.items():
        table["runs"][name], started = [], time.perf_counter()
        for seed in range(5):
            seed_everything(seed)
            model, loader = GPTModel(config), create_dataloader(ids[:cut], CONTEXT, BATCH, seed=seed)
            train_losses, valid_losses = run(model, loader, valid_loader, **recipe)
            result = {"training": round(train_losses[-1], 3), "validation": round(min(valid_losses), 3)}
            table["runs"][name].append(result)
        print(f"{name:27} {time.perf_counter() - started:3.0f} s", *table["runs"][name], flush=True)
    with write_atomically(OUT) as part:
        Path(part).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
