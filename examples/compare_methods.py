"""Compare methods on a folder of photos, as a data frame.

python examples/compare_methods.py photos/ results/
"""

import sys

from camkit import bench

data, out = sys.argv[1:3]
scores = bench(
    "tf_efficientnet_lite0",
    method=("hirescam", "shapleycam-h", "aumann-2", "flat"),
    layer="prepool",
    metrics=("adcc", "shapley"),
    data=data,
    out=out,
)
print(scores.set_index("method")[["adcc", "shapley_error", "saliency_distance"]].round(3).to_string())
