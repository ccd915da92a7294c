"""EigenCAM, EigenGradCAM and KPCA-CAM, against grad-cam's and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import Given, noise
from torch import nn

from camkit.entries import METHODS

A = noise(3, 6, 4, 5, seed=1) + torch.linspace(-1, 1, 5)


def given(activation: torch.Tensor) -> Given:
    return Given(activation, noise(*activation.shape, seed=2).to(activation), torch.zeros_like(activation))


def agreement(found: torch.Tensor, expected: np.ndarray) -> torch.Tensor:
    """Cosine of each map with the peer's, whose sign is open: 1 or -1."""
    return nn.functional.cosine_similarity(found.flatten(1), torch.as_tensor(expected).to(found).flatten(1))


class TestComponents:
    @pytest.mark.parametrize("shape", [(3, 6, 4, 5), (3, 40, 4, 5)], ids=["P > C", "P < C"])
    @pytest.mark.parametrize("name", ["eigencam", "kpcacam", "eigengradcam"])
    @pytest.mark.peers
    def test_grad_cams_up_to_the_sign(self, name: str, shape: tuple[int, ...]) -> None:
        pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam.utils import svd_on_activations as peer

        traced = given(noise(*shape, seed=1).double())
        features = traced.activation * (traced.gradient if name == "eigengradcam" else 1)
        function = peer.get_2d_projection_kernel if name == "kpcacam" else peer.get_2d_projection
        expected = torch.as_tensor(function(features.numpy())).double()
        found = METHODS[name].function(traced)
        sign = agreement(found, expected).sign()[:, None, None]
        torch.testing.assert_close(found * sign, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["eigencam", "kpcacam", "eigengradcam"])
    def test_the_sign_is_that_of_the_sum_over_channels(self, name: str) -> None:
        traced = given(A)
        features = traced.activation * (traced.gradient if name == "eigengradcam" else 1)
        found = METHODS[name].function(traced)
        total = features.sum(dim=1)
        for one, other in zip(found, total, strict=True):
            assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.01
        mirrored = Given(-traced.activation, traced.gradient, traced.hvp)
        torch.testing.assert_close(METHODS[name].function(mirrored), -found, rtol=1e-4, atol=1e-4)

    def test_eigencam_by_hand(self) -> None:
        """Channels that move together along (3, 4): the projection on it is 5 times the move."""
        move = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
        first = Given(torch.stack([3 * move + 7, 4 * move - 9])[None], torch.ones(1), torch.ones(1))
        found = METHODS["eigencam"].function(first)
        torch.testing.assert_close(found, 5 * move[None], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["eigencam", "kpcacam"])
    def test_an_image_that_is_not_finite_has_no_map_and_costs_no_other_its_own(self, name: str) -> None:
        broken = A.clone()
        broken[1, 2, 3, 4] = torch.inf
        found, whole = METHODS[name].function(given(broken)), METHODS[name].function(given(A))
        assert found[1].isnan().all()
        torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])

    @pytest.mark.parametrize("name", ["eigencam", "kpcacam"])
    def test_a_constant_activation_gives_a_constant_map(self, name: str) -> None:
        found = METHODS[name].function(given(torch.full((2, 3, 4, 5), 2.0)))
        assert (found.abs() < 1e-3).all()

    def test_large_kernels_are_decomposed_image_by_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = METHODS["kpcacam"].function(given(A))
        monkeypatch.setattr("camkit.methods.components.KERNEL_CHUNK", 1)
        torch.testing.assert_close(METHODS["kpcacam"].function(given(A)), whole)

    def test_of_a_large_kernel_the_first_component_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """That of numpy's whole decomposition, which takes minutes where there are more positions still."""
        spread = noise(2, 6, 5, 5, seed=1).repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)
        traced = given(spread + 0.1 * noise(2, 6, 35, 35, seed=3))
        flat = traced.activation.double().flatten(2).numpy()
        flat -= flat.mean(axis=2, keepdims=True)
        monkeypatch.setattr("camkit.methods.components._leading_of_all", lambda _: pytest.fail("of all"))
        found = METHODS["kpcacam"].function(traced)
        for one, features in zip(found, flat, strict=True):
            kernel = np.tanh(features.T @ features / 6 + 1)
            kernel -= kernel.mean(axis=0)
            kernel -= kernel.mean(axis=1, keepdims=True)
            values, vectors = np.linalg.eigh(kernel)
            expected = np.sqrt(values[-1]) * vectors[:, -1]
            assert abs(np.corrcoef(one.flatten(), expected)[0, 1]) == pytest.approx(1, abs=1e-6)
            assert np.linalg.norm(one) == pytest.approx(values[-1] ** 0.5, rel=1e-4)

    def test_a_large_constant_activation_gives_a_constant_map(self) -> None:
        found = METHODS["kpcacam"].function(given(torch.full((1, 3, 33, 33), 2.0)))
        assert (found.abs() < 1e-3).all()
