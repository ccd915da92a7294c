"""Methods that decompose a layer's positions into components; maps (B, h, w) are the first one."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from camkit.entries import method
from camkit.network.trace import Trace

KERNEL_CHUNK = 2**24  # numbers in the kernels (P, P) of the images that are decomposed at once
# Of kernels of more positions the first component alone is computed: all of 112 x 112 take minutes an image.
LARGE = 1024
RESTARTS = 100  # of a kernel whose first component stands out hardly one of these is needed


@method(
    "eigencam",
    title="EigenCAM",
    groups=("cheap",),
    source="arXiv 2008.00299, eq. 3",
    uses=("activation",),
    cost="0",
)
def eigencam(trace: Trace) -> Tensor:
    """A's first principal component over positions: (A - mean over positions) v_1, v_1 (C,).

    It knows neither class nor utility. The paper's equation projects A itself on the first right singular
    vector of A; as in the usual implementations A is centred first. The paper leaves the sign open: here the
    map correlates positively with the sum of A over channels.
    """
    return first_component(trace.activation)


@method(
    "eigengradcam",
    title="EigenGradCAM",
    groups=("cheap",),
    source="EigenCAM (2008.00299) of G A, as in the grad-cam package",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def eigengradcam(trace: Trace) -> Tensor:
    """The first principal component over positions of G A, centred; no paper defines it.

    The sign is such that the map correlates positively with the sum of G A over channels, HiResCAM's map.
    """
    return first_component(trace.gradient * trace.activation)


@method(
    "kpcacam",
    title="KPCA-CAM",
    groups=("cheap",),
    source="arXiv 2410.00267",
    uses=("activation",),
    cost="0",
)
def kpcacam(trace: Trace) -> Tensor:
    """EigenCAM with the first component of kernel PCA: sqrt(l_1) u_1, of the centred kernel (P, P).

    The kernel of two positions is the sigmoid tanh(x.y / C + 1), x and y their channels, centred over
    positions, as in the authors' implementation. l_1 and u_1 are its largest eigenvalue and the eigenvector.
    """
    chunk = max(1, KERNEL_CHUNK // trace.activation[0, 0].numel() ** 2)
    return torch.cat([_kernel_component(some) for some in trace.activation.split(chunk)])


def first_component(features: Tensor) -> Tensor:
    """Projection (B, h, w) of each position's features (B, C, h, w) on their first principal component.

    The features are centred over positions. The projection correlates positively with their sum over
    channels. NaN for images whose features are not finite.
    """
    centred = _centred(features)  # (B, C, P)
    if centred.shape[2] <= centred.shape[1]:
        projection = _leading(centred.mT @ centred)
    else:
        direction = torch.linalg.eigh(centred @ centred.mT).eigenvectors[:, :, -1:]  # (B, C, 1)
        projection = (direction * centred).sum(dim=1)
    return _signed(projection, features)


def _kernel_component(features: Tensor) -> Tensor:
    centred = _centred(features)
    kernel = (centred.mT @ centred).div_(centred.shape[1]).add_(1).tanh_()  # in place: it may be large
    kernel -= kernel.mean(dim=1, keepdim=True)
    kernel -= kernel.mean(dim=2, keepdim=True)
    return _signed(_leading(kernel), features)


def _centred(features: Tensor) -> Tensor:
    """(B, C, P) of mean 0 over positions; 0 where an image's features are not finite."""
    flat = features.flatten(2)
    flat = flat.where(flat.isfinite().all(dim=2).all(dim=1)[:, None, None], 0)
    return flat - flat.mean(dim=2, keepdim=True)


def _leading(gram: Tensor) -> Tensor:
    """sqrt(l_1) u_1, (B, P), of symmetric (B, P, P)."""
    if gram.shape[1] > LARGE:
        return torch.stack([_leading_of_large(one) for one in gram])
    return _leading_of_all(gram)


def _leading_of_large(gram: Tensor) -> Tensor:
    """The same, (P,), of one large (P, P), by Lanczos iterations where they converge."""

    def times(vector: np.ndarray) -> np.ndarray:
        return (gram @ torch.as_tensor(vector.ravel()).to(gram)).cpu().numpy()

    start = np.random.default_rng(0).standard_normal(len(gram)).astype(np.float32)
    operator = LinearOperator(gram.shape, matvec=times, dtype=np.float32)
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, maxiter=RESTARTS)
    except ArpackError:  # nothing stands out, as of features that are the same everywhere
        return _leading_of_all(gram[None])[0]
    return torch.as_tensor(max(float(values[0]), 0.0) ** 0.5 * vectors[:, 0]).to(gram)


def _leading_of_all(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return values[:, -1:].clamp(min=0).sqrt() * vectors[:, :, -1]


def _signed(projection: Tensor, features: Tensor) -> Tensor:
    """(B, P) -> (B, h, w), with the sign that correlates with the sum of features over channels."""
    total = features.sum(dim=1)
    agreement = (projection * total.flatten(1)).sum(dim=1, keepdim=True)  # the projection's mean is 0
    signed = torch.where(agreement < 0, -projection, projection).where(agreement.isfinite(), torch.nan)
    return signed.view_as(total)
