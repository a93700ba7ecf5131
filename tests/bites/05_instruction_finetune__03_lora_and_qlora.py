"""What is broken in lesson 5.3, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("alpha is not divided by the rank", find="return self.alpha / len(self.A)", replace="return self.alpha"),
    Mutation("B does not begin at zero", find="nn.Parameter(torch.zeros(base.out_features, rank",
             replace="nn.Parameter(torch.ones(base.out_features, rank"),
    Mutation("what is no adapter trains too", find="    model.requires_grad_(False)\n", replace="    pass\n"),
    Mutation("a target that matches nothing passes", find="        if not names:\n", replace="        if False:\n"),
    Mutation("merging adds the update twice", find="layer.weight.float() + adapter.update()",
             replace="layer.weight.float() + 2 * adapter.update()"),
    Mutation("the levels go too far out", find="round(1 - (1 / 32 + 1 / 30) / 2, 7)", replace="1 - 1 / 64"),
    Mutation("the scale is the mean size", find="blocks.abs().amax(dim=1)", replace="blocks.abs().mean(dim=1)"),
    Mutation("the two codes of a byte change places", find="codes[:, ::2] << 4 | codes[:, 1::2]",
             replace="codes[:, 1::2] << 4 | codes[:, ::2]"),
    Mutation("the mean of the scales is not added again", find="[: len(fine)] + coarse[-1]", replace="[: len(fine)]"),
    Mutation("the gradient leaves out the weight's signs", find="gradient @ ctx.layer.dequantise(gradient.dtype)",
             replace="gradient @ ctx.layer.dequantise(gradient.dtype).abs()"),
    Mutation("the measured bytes forget the moments", find='"optimizer": sum(moments)}', replace='"optimizer": 0}'),
]

SMALLER = {
    "items=120, held_out=71, smol_items=64, smol_asked=14": "items=64, held_out=36, smol_items=8, smol_asked=7",
    'load_base("smollm2")': '__import__("shared.checkpoints").checkpoints.load_gguf('
                            'ROOT / "shared/data/samples/smollm2-tiny.gguf")',
    "tried = [0, 1, 4, 16, 256]": "tried = [0, 16, 256]",
    "some_of(narrow_training, 64)": "some_of(narrow_training, 40)",
}
LEFT_OUT = ['plt.axvline(8, color="#b86e00"']
WRONG_ANSWERS = {
    "largest_rank": """
        def largest_rank(widths, budget):
            return budget // sum(D + E for D, E in widths)  # the layers' own bound is forgotten
    """,
    "better_levels": """
        def better_levels(values, levels, size):
            levels = levels.clone()
            codes, absmax = quantise_blocks(values, levels, size)
            scaled = values.view(-1, size) / absmax[:, None]
            for k in range(1, 15):
                levels[k] = scaled[codes == k].mean()
            return levels  # once, not 20 times
    """,
    "loss_at": """
        def loss_at(rank, lr):
            seed_everything(53)
            copied = apply_lora(copy.deepcopy(base), 8, 16)  # rank is forgotten
            train(copied, instruction_loader(less, 8), lr=lr, **settings)
            return mean_loss(copied, held_out, answer_loss)
    """,
}
