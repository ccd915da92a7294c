"""Explain your own network with your own method: any module, any tensors.

python examples/own_network.py
"""

import torch
from torch import nn

from camkit import explain, method


@method("squared")
def squared(trace):
    """Sum over channels of G A^2."""
    return (trace.gradient * trace.activation**2).sum(dim=1)


torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
)
images = torch.randn(4, 3, 32, 32)
found = explain(network, images, method="squared", layer="1", utility="logit")
print(
    "saliency", tuple(found.saliency.shape), "maps", tuple(found.maps.shape), "classes", found.target.tolist()
)
