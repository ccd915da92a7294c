"""Methods that need the activation A and the gradient G, both (B, C, h, w); maps are (B, h, w).

They are written for maps before the ReLU: negative values are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import method
from camkit.errors import CamkitError
from camkit.methods.saliency import min_max
from camkit.network.head import classifier_weight
from camkit.network.passes import Network
from camkit.network.seeding import generator
from camkit.network.trace import PixelView, Trace

NOISE_SAMPLES, NOISE_SIGMA = 4, 0.3  # of Smooth GradCAM++; sigma in units of the normalised image
EXPECTED_SAMPLES = 16  # of Expected Grad-CAM


@method(
    "gradcam",
    title="GradCAM",
    groups=("paper", "cheap"),
    source="arXiv 1610.02391, eq. 1 and 2",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam(trace: Trace) -> Tensor:
    """Sum over channels of GAP(G) A."""
    weights = trace.gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (weights * trace.activation).sum(dim=1)


@method(
    "gradcam++",
    title="GradCAM++",
    groups=("paper", "cheap"),
    source="arXiv 1710.11063, eq. 19 and 7",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam_plus_plus(trace: Trace) -> Tensor:
    """Sum over channels of w A with w = sum over positions of alpha ReLU(G).

    alpha = G^2 / (2 G^2 + (sum over positions of A) G^3 + 1e-6), and 0 where G = 0.
    """
    gradient = trace.gradient
    return _plus_plus(trace.activation, gradient, gradient**2, gradient**3)


def _plus_plus(activation: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """GradCAM++'s map from its derivatives of order 1, 2 and 3: powers of G, for u = exp(y)."""
    total = activation.sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    alpha = second / (2 * second + total * third + 1e-6)
    weights = (alpha * first.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1)


@method(
    "xgradcam",
    title="XGradCAM",
    groups=("paper", "cheap"),
    source="arXiv 2008.02312, eq. 8",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def xgradcam(trace: Trace) -> Tensor:
    """Sum over channels of w A with w = (sum of G A) / (sum of A + 1e-7), sums over positions.

    Where a channel's A sums to nearly nothing (layers before the ReLU), the last bits decide its weight.
    """
    activation, gradient = trace.activation, trace.gradient
    total = activation.sum(dim=(2, 3), keepdim=True)
    weights = (gradient * activation / (total + 1e-7)).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1)


@method(
    "layercam",
    title="LayerCAM",
    groups=("paper", "cheap"),
    source="LayerCAM, IEEE TIP 2021, eq. 4 and 5",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def layercam(trace: Trace) -> Tensor:
    """Sum over channels of ReLU(G) A."""
    return (trace.gradient.relu() * trace.activation).sum(dim=1)


@method(
    "gradcam-e",
    title="GradCAM-E",
    groups=("paper", "cheap"),
    source="GradCAM element-wise, as in arXiv 2501.06261",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam_e(trace: Trace) -> Tensor:
    """Sum over channels of ReLU(G A)."""
    return (trace.gradient * trace.activation).relu().sum(dim=1)


@method(
    "hirescam",
    title="HiResCAM",
    groups=("paper", "cheap"),
    source="arXiv 2011.08891, eq. 4",
    value=True,
    uses=("activation", "gradient"),
    cost="1 grad",
)
def hirescam(trace: Trace) -> Tensor:
    """Sum over channels of G A."""
    return (trace.gradient * trace.activation).sum(dim=1)


@method(
    "smoothgradcam++",
    title="Smooth GradCAM++",
    source="arXiv 1908.01224, eq. 9 and 10",
    uses=("activation", "gradient", "passes"),
    cost="4 passes, 4 grads",
)
def smooth_gradcam_plus_plus(trace: Trace) -> Tensor:
    """GradCAM++ with the means D1, D2, D3 of G, G^2, G^3 over 4 noisy images in place of G, G^2 and G^3.

    The noise, N(0, 0.3) on the normalised image, is drawn by (seed, image id, draw, sample). The paper fixes
    neither number: they are torchcam's. It prints D1 in the numerator of alpha; D2 stands there in GradCAM++,
    which without noise this is, and also in torchcam.
    """
    moments = [torch.zeros_like(trace.activation) for _ in range(3)]
    for sample in range(NOISE_SAMPLES):
        gradient = trace.at(trace.images + NOISE_SIGMA * _noise(trace, sample)).gradient
        for order, moment in enumerate(moments, start=1):
            moment += gradient**order / NOISE_SAMPLES
    return _plus_plus(trace.activation, *moments)


@method(
    "expected-gradcam",
    title="Expected Grad-CAM",
    source="arXiv 2406.01274; expected gradients: 1906.10670",
    uses=("activation", "gradient", "passes"),
    cost="16 passes, 16 grads",
)
def expected_gradcam(trace: Trace) -> Tensor:
    """Sum over channels of w A, w = mean of GAP(G) over 16 images x' + t (x + e - x').

    x' is a baseline and t the place on the way from it to the image x: expected gradients. e is noise, N(0,
    0.3): a smoothing by a Gaussian kernel. All three are drawn by (seed, image id, draw, sample), t from U(0,
    1), x' from N(0, 1): the mean and variance of normalised images.

    The paper's weights are the smoothed expectation of perturbed integrated gradients. It leaves the
    distribution of baselines, the kernel and the number of samples to be chosen: those here are camkit's.
    """
    weights = torch.zeros_like(trace.activation[:, :, :1, :1])
    for sample in range(EXPECTED_SAMPLES):
        baseline = _noise(trace, sample, "baseline")
        image = trace.images + NOISE_SIGMA * _noise(trace, sample)
        images = torch.lerp(baseline, image, _drawn(torch.rand, trace, (1, 1, 1), "place", sample))
        weights += trace.at(images).gradient.mean(dim=(2, 3), keepdim=True) / EXPECTED_SAMPLES
    return (weights * trace.activation).sum(dim=1)


def _noise(trace: Trace, sample: int, purpose: str = "noise") -> Tensor:
    """N(0, 1), (B, 3, H, W)."""
    return _drawn(torch.randn, trace, trace.images.shape[1:], purpose, sample)


def _drawn(draw: Callable[..., Tensor], trace: Trace, shape: Sequence[int], *purpose: object) -> Tensor:
    """Random numbers (B, *shape), those of an image from its own stream."""
    streams = [generator(trace.seed, name, trace.draw, *purpose) for name in trace.image_ids]
    return torch.stack([draw(*shape, generator=stream) for stream in streams]).to(trace.images)


def no_similar_classes(network: Network, layer: str) -> str:
    """Why a network has no classes that are similar to another; "" where it has."""
    weight = classifier_weight(network)
    return weight if isinstance(weight, str) else ""


@method(
    "finercam",
    title="FinerCAM",
    groups=("cheap",),
    source="arXiv 2501.11309",
    uses=("activation", "gradient"),
    cost="1 grad",
    lacks=no_similar_classes,
)
def finercam(trace: Trace) -> Tensor:
    """GradCAM of u_c - gamma mean over references d of u_d, u_d being the utility of class d.

    The references are the 3 classes (`--references`) whose weights in the last linear layer have the largest
    cosine with those of c; gamma is 0.6 (`--reference-weight`). With the logit as the utility this is the
    paper's. Both of its implementations that camkit knows choose the classes with the nearest logits instead;
    grad-cam also weighs them by their probabilities, with gamma 1.
    """
    references = _similar_classes(trace)

    def contrast(logits: Tensor) -> Tensor:
        others = [trace.utility(logits, reference) for reference in references.unbind(dim=1)]
        mean = torch.stack(others).mean(dim=0)
        return trace.utility(logits, trace.target) - trace.options.reference_weight * mean

    weights = trace.gradient_of(contrast).mean(dim=(2, 3), keepdim=True)
    return (weights * trace.activation).sum(dim=1)


def _similar_classes(trace: Trace) -> Tensor:
    """The classes (B, n) that are most similar to the target, which is none of them."""
    weight = classifier_weight(trace.network)
    if isinstance(weight, str):
        raise CamkitError(weight)
    directions = F.normalize(weight, dim=1)
    similarity = directions[trace.target] @ directions.T  # (B, K)
    similarity = similarity.scatter(1, trace.target[:, None], -torch.inf)
    return similarity.topk(min(trace.options.references, len(weight) - 1), dim=1).indices


@method(
    "fullgrad",
    title="FullGrad",
    source="arXiv 1905.00780, eq. 7",
    saliency=True,
    of_pixels=True,
    uses=("gradient", "passes"),
    cost="1 pass, 1 grad of all",
)
def fullgrad(view: PixelView) -> Tensor:
    """psi(du/dx x) + sum over biases b and their channels of psi(du/dz b), scaled to [0, 1].

    z is what has the bias b: outputs of convolutions, normalisations and linear maps that have positions. A
    batch norm has b = beta - mu gamma / sigma. psi takes absolute values of a channel, scales them to [0, 1]
    and resizes them to the image (bilinear). Biases without a position (behind the pooling) are left out, as
    in the paper. Only in a piecewise linear network (ReLU) do the gradients account for the whole utility.
    """
    by_images, by_biases = view.full_gradient()
    size = (view.images.shape[2], view.images.shape[3])
    total = torch.zeros_like(view.images[:, 0])
    for product in (by_images, *by_biases):
        scaled = min_max(product.abs().flatten(0, 1)).view_as(product).sum(dim=1, keepdim=True)
        total += F.interpolate(scaled, size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(total)
