"""What a user says of the images that a model takes: `--size`, `--mean`, `--std`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from camkit.config import RunConfig
from camkit.errors import UsageError

SMALL = 1e-6  # the least standard deviation
SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


@dataclass(frozen=True)
class View:
    """The images that a model takes; None: as belongs to the model.

    Attributes:
        size: (H, W), in pixels.
        mean, std: per channel, in units of [0, 1].
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, config: RunConfig) -> View:
        """By a run's options.

        Raises:
            UsageError: one of them cannot be read.
        """
        return cls(
            image_size(config.size), _numbers("mean", config.mean, 0), _numbers("std", config.std, SMALL)
        )


def image_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of `224x320`, or of `224`, which is both sides.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    sides = SIZE.fullmatch(text.strip().lower())
    if sides is None:
        raise UsageError(f"--size {text}: expected HxW in pixels, as 224x320")
    return int(sides[1]), int(sides[2] or sides[1])


def _numbers(name: str, text: str | None, least: float) -> tuple[float, ...] | None:
    """Numbers from `least` to 1 with commas between them, one per channel."""
    if text is None:
        return None
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(least <= number <= 1 for number in numbers):
        raise UsageError(
            f"--{name} {text}: expected three numbers from 0 to 1, as 0.485,0.456,0.406, or one for grey "
            "images"
        )
    return numbers
