"""Explain one photo with three methods and draw the maps.

python examples/explain_photo.py cat.jpg cat.png
"""

import sys

from matplotlib.figure import Figure

from camkit import explain, load_model

photo, picture = sys.argv[1:3]
model = load_model("tf_efficientnet_lite0")
figure = Figure(figsize=(9, 3))
for place, method in enumerate(("gradcam", "shapleycam-h", "aumann-2")):
    found = explain(model, photo, method=method, layer="prepool")
    axis = figure.add_subplot(1, 3, place + 1, title=method)
    axis.imshow(found.saliency[0], cmap="inferno")
    axis.axis("off")
figure.savefig(picture)
print(f"class {int(found.target)}, probability {float(found.probability):.3f}")
