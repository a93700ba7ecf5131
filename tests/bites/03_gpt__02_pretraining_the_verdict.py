"""What is broken in lesson 3.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the logarithm of the mean, not the mean of the logarithms", find="assert_close(-right.log().mean(),",
             replace="assert_close(-right.mean().log(),"),
    Mutation("the gradients are not set to zero", find="            optimizer.zero_grad()\n", replace="",
             cell_contains="def fit_better(", skip_to="from shared.training import train"),
    Mutation("ignored targets count", find="(targets != IGNORE).sum().clamp(min=1)", replace="targets.numel()"),
    Mutation("nothing that counts is 0 / 0", find=".sum().clamp(min=1)", replace=".sum()"),
    Mutation("every batch weighs the same in the evaluation", find="total += loss_fn(model, *batch).item() * n",
             replace="total, n = total + loss_fn(model, *batch).item(), 1"),
    Mutation("the model stays in evaluation mode", find="with evaluating(model), mixed",
             replace="model.eval()\n    with torch.no_grad(), mixed"),
    Mutation("a copied run may be broken", find="[end - longest - 1 : end] in source",
             replace="[end - 1 : end] in source"),
    Mutation("norms and biases decay too", find="if p.dim() < 2], \"weight_decay\": 0.0}",
             replace="if p.dim() < 2], \"weight_decay\": weight_decay}"),
    Mutation("the rate does not come down", find="0.5 * (1 + math.cos(math.pi * min(1.0, progress)))", replace="1.0"),
    Mutation("the loop forgets its warmup", find="lr, warmup_steps, min_lr)", replace="lr, 0, min_lr)",
             skip_to="from shared.training import train"),
    Mutation("the loop clips to another norm", find="model.parameters(), clip)",
             replace="model.parameters(), 0.01 * clip)", skip_to="from shared.training import train"),
    Mutation("nothing is learned: the text is read twice", find="for epoch in range(EPOCHS):",
             replace="for epoch in range(2):"),
]

SMALLER = {  # the first runs keep their steps: with fewer the model does not recite the bundled text
    "epochs=math.ceil(run.steps / len(loader))": "epochs=2",
    "fn(moving, EPOCHS, 1e-3)\n    assert len(val_loss) == EPOCHS":
        "fn(moving, 4, 1e-3)\n    assert len(val_loss) == 4",
    "n, tried = EPOCHS // 2, fn(0.3)": "n, tried = 2, fn(0.3)",
    "drop_rate=rate)).to(device), EPOCHS // 2": "drop_rate=rate)).to(device), 2",
}
LEFT_OUT = ["pair = {}", "(warmup_steps, run), colour in zip"]
WRONG_ANSWERS = {
    "bits_per_byte": """
        def bits_per_byte(loss, text, n_tokens):
            return loss * n_tokens / math.log(2) / len(text)  # characters, not bytes
    """,
    "with_dropout": """
        def with_dropout(rate):
            seed_everything(0)
            return fit(GPTModel(config).to(device), 2, 1e-3)  # the rate does not reach the model
    """,
    "fit_moving": """
        def fit_moving(model, epochs, lr):
            optimizer, val_losses = torch.optim.AdamW(model.parameters(), lr=lr), []
            for epoch in range(epochs):
                for inputs, targets in create_dataloader(train_ids, T, B, seed=epoch):  # the windows do not move
                    next_token_loss(model, inputs.to(device), targets.to(device)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                val_losses.append(mean_loss(model, val_loader))
            return val_losses
    """,
}
