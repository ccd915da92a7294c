"""A network of all that makes the rest of a network hard to run alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """As in a ResNet: one ReLU module that runs before and after the layer, a sum in place, a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        out += self.shortcut(x)
        return self.relu(out)


class Pair(nn.Module):
    """Gives a tuple: its parts, not itself, can be handed out again."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(6, 6, 1)
        self.right = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.pair = Pair()
        self.block = Block(6)
        self.last = nn.Conv2d(6, 8, 1)
        self.act = nn.ReLU(inplace=True)
        self.classify = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        left, right = self.pair(self.stem(images))
        x = self.block(left * torch.sigmoid(right))
        return self.classify(self.act(self.last(x)).mean(dim=(2, 3)))
