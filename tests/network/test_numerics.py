"""Numeric switches, and number formats below float32."""

from __future__ import annotations

import pytest
import torch
from tiny import CPU, TinyNet, noise, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.network.numerics import numerics
from camkit.network.passes import Network


def switches() -> tuple:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_numerics_are_set_and_set_back(
    monkeypatch: pytest.MonkeyPatch, tf32: bool, deterministic: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with pytest.raises(ZeroDivisionError), numerics(tf32, deterministic) as record:
        assert switches()[:5] == (tf32, tf32, False, deterministic, deterministic)
        assert (record["deterministic"], record["cudnn_benchmark"]) == (deterministic, False)
        raise ZeroDivisionError
    assert switches() == before


def test_deterministic_names_what_it_could_not_do() -> None:
    places = torch.tensor([[[[0, 2], [8, 10]]]])
    with numerics(tf32=False, deterministic=True) as record:
        torch.ones(3).cumsum(dim=0)
        assert record["not_deterministic"] == []
        F.max_unpool2d(torch.ones(1, 1, 2, 2), places, 2, output_size=(4, 4))
        assert record["not_deterministic"] == ["max_unpooling2d_forward_out"]


def watch(module: nn.Module, name: str, seen: dict[str, torch.dtype]) -> None:
    """Note the number format of what a forward gives, before any hook sees it."""
    own = module.forward

    def forward(images: Tensor) -> Tensor:
        output = own(images)
        seen[name] = output.dtype
        return output

    module.forward = forward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_below_float32_the_derivatives_stay_float32(dtype: torch.dtype) -> None:
    """The backbone's layers run in the short format; the leaf, and what comes after it, in float32."""
    model = seeded(TinyNet)
    seen: dict[str, torch.dtype] = {}
    for name in ("features.0", "features.3", "fc"):
        watch(model.get_submodule(name), name, seen)
    network = Network(model, CPU, dtype)
    passed = network.trace(noise(2, 3, 64, 64), ["features.3"])
    assert seen == {"features.0": dtype, "features.3": dtype, "fc": torch.float32}
    assert passed.leaves["features.3"].dtype == torch.float32
    assert passed.logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(passed.logits.sum(), passed.leaves["features.3"])
    assert gradient.dtype == torch.float32
    assert network.score(noise(2, 3, 64, 64), torch.tensor([1, 2])).dtype == torch.float32
    assert seen["fc"] == dtype
