"""The search of scripts/shapley_search.py where the rest of the network is attention: two small transformers.

    python scripts/shapley_digits.py

Trains a ViT and a Swin on scikit-learn's digits (in the extra `test`), which needs no download, and writes
results/shapley/search_digits.csv.gz. One thread, a fixed seed: a machine gives the same file on each run, in
about ten minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from shapley_search import measured, write
from sklearn.datasets import load_digits
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.config import MethodOptions
from camkit.network.passes import Network
from camkit.network.trace import Trace
from camkit.network.utilities import rest

OUT = Path("results/shapley/search_digits.csv.gz")
SEED = 0
SIDE, CLASSES = 28, 10  # the digits have 8 x 8 pixels and are enlarged
TRAINED = 1400  # of 1,797 digits; the others are held out
EXPLAINED = 48
BUDGET = 32  # permutations of the yardstick: every coalition is a pass
EPOCHS, BATCH_SIZE, RATE = 30, 25, 2e-3
# First the paper's layer for transformers, the last block's norm1; behind the other one, attention mixes
# positions several times. 7 x 7 positions each, but 14 x 14 in Swin's first stage.
LAYERS = {
    "vit": ("blocks.3.norm1", "blocks.1.norm1"),
    "swin": ("layers.1.blocks.1.norm1", "layers.0.blocks.1.norm1"),
}


def untrained(name: str) -> nn.Module:
    """A ViT of 4 blocks with a class token, or a Swin of 2 stages with 2 blocks each."""
    torch.manual_seed(SEED)
    if name == "vit":
        return VisionTransformer(
            img_size=SIDE, patch_size=4, num_classes=CLASSES, embed_dim=64, depth=4, num_heads=4
        )
    return SwinTransformer(
        img_size=SIDE, patch_size=2, num_classes=CLASSES, embed_dim=32, depths=(2, 2), num_heads=(2, 4)
    )


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    steps = EPOCHS * len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for some in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
            schedule.step()


def search(network: Network, name: str, images: Tensor, ids: Sequence[str]) -> list[dict[str, object]]:
    """The rows of the network's layers; beside the candidates, how far each game is from an additive one."""
    rows = []
    passed = network.trace(images, LAYERS[name])
    for layer in LAYERS[name]:
        trace = Trace(
            images, ids, lambda: images, passed.logits.argmax(dim=1), SEED, 0, network, None,
            MethodOptions(budget=BUDGET), rest, layer, passed,
        )  # fmt: skip
        rows += measured(f"{name} {layer}", trace)
        rows += [
            {
                "layer": f"{name} {layer}",
                "map": "non-additivity of the game, squared",
                "image": image,
                "square": value**2,
            }
            for image, value in zip(ids, trace.game.nonadditivity.tolist(), strict=True)
        ]
    return rows


def main() -> None:
    torch.set_num_threads(1)
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # from 0 to 16 in the file
    images = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target)
    rows = []
    for name in LAYERS:
        model = untrained(name)
        train(model, images[:TRAINED], labels[:TRAINED])
        network = Network(model, torch.device("cpu"))
        right = network.logits(images[TRAINED:]).argmax(dim=1) == labels[TRAINED:]
        print(f"{name}: {right.float().mean():.3f} of {len(right)} held-out digits right", flush=True)
        explained = range(TRAINED, TRAINED + EXPLAINED)
        rows += search(network, name, images[TRAINED : TRAINED + EXPLAINED], [str(i) for i in explained])
    write(rows, OUT)


if __name__ == "__main__":
    main()
