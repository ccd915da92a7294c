"""The section `cheaper` of scripts/gpu.py: what could bring bare passes below today's floor.

Also by itself, on a CPU (results/speed/README.md):

    OMP_NUM_THREADS=1 python3 scripts/gpu_cheaper.py tf_efficientnet_lite0 --batch-size 16
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click  # noqa: E402
import torch  # noqa: E402
from gpu_fast import QUICK, Row, Scale, bare, seconds_of  # noqa: E402
from speed_jobs import Setting  # noqa: E402
from torch import Tensor  # noqa: E402

from camkit.data.items import sample_items  # noqa: E402
from camkit.network.folding import folded  # noqa: E402
from camkit.network.loading import load_model  # noqa: E402
from camkit.network.numerics import numerics  # noqa: E402

SMALL_BATCHES, TOGETHER = (1, 8, 32), (2, 8)


def ratio(first: Callable[[], None], second: Callable[[], None], device: torch.device, repeat: int) -> str:
    """The median of second / first, taken in turns, and its range; on a CPU of its own time."""
    with numerics(tf32=False, deterministic=False):
        first()
        second()
        found = sorted(_seconds(second, device) / _seconds(first, device) for _ in range(repeat))
    return f"{median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f} in {repeat})"


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        return seconds_of(work, device, times=2)
    started = time.process_time()
    work()
    return time.process_time() - started


def cheaper(setting: Setting, scale: Scale) -> Iterator[Row]:
    """A few models, in the largest batch."""
    for name in scale.few:
        size, repeat = max(scale.sizes), 3 * scale.repeat
        yield from tried(name, "random", torch.device(setting.device), size, repeat, quick=scale is QUICK)


def tried(
    name: str, weights: str, device: torch.device, size: int, repeat: int, quick: bool = False
) -> Iterator[Row]:
    """Seconds of passes that were changed in some way, as shares of those as they are."""
    loaded = load_model(name, weights)
    model = loaded.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape = loaded.preprocess.shape
    photos = torch.stack(
        [loaded.preprocess.pixels(Path(str(one.source)).read_bytes()) for one in sample_items()]
    )
    images = loaded.preprocess.normalise(photos.repeat(-(-size // len(photos)), 1, 1, 1)[:size].to(device))
    images = images.contiguous(memory_format=torch.channels_last)
    plain = partial(bare, model, images)
    other = folded(model, images)
    if other is not None:
        with torch.inference_mode(), numerics(tf32=False, deterministic=False):
            gap = (model(images).softmax(dim=1) - other(images).softmax(dim=1)).abs().max().item()
        note = f"a probability moves by {gap:.1e} at most"
        yield Row(
            f"{name}: batch norm folded", ratio(plain, partial(bare, other, images), device, repeat), note
        )
    if quick:  # the compiler alone takes a minute
        return
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    try:
        made = torch.compile(model, mode=mode, dynamic=False)
        found = ratio(plain, partial(bare, made, images), device, repeat)  # type: ignore[arg-type]
        yield Row(f"{name}: torch.compile, {mode}", found, f"batch {size}")
    except Exception as error:  # no compiler, or one that fails: it is said, and the rest goes on
        yield Row(f"{name}: torch.compile, {mode}", "failed", str(error).splitlines()[0])
    torch._dynamo.reset()
    for small in SMALL_BATCHES:
        part = torch.rand(small, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for many in TOGETHER:
            whole = part.repeat(many, 1, 1, 1).contiguous(memory_format=torch.channels_last)

            def apart(part: Tensor = part, many: int = many) -> None:
                for _ in range(many):
                    bare(model, part)

            case = f"{name}: {many} batches of {small} as one"
            yield Row(case, ratio(apart, partial(bare, model, whole), device, repeat))


@click.command()
@click.argument("model")
@click.option("--weights", default="pretrained", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repetitions", default=9, show_default=True)
def main(model: str, weights: str, device: str, batch_size: int, repetitions: int) -> None:
    """What could make the passes of one model cheaper; ratios below 1 are cheaper."""
    for row in tried(model, weights, torch.device(device), batch_size, repetitions):
        click.echo(f"{row.case:60} {row.result:34} {row.note}")


if __name__ == "__main__":
    main()
