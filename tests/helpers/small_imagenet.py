"""Six labelled photos, and builders that lay them down in every layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pictures import jpeg, picture, write
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from camkit.data import DataSet

# ImageNet's index and wnid, checked against timm in test_labels.py. Not in the order of either, and far
# from 0 to 5: whoever numbers what is there gets other labels.
CLASSES = (
    (340, "n02391049", "zebra"),
    (1, "n01443537", "goldfish, Carassius auratus"),
    (954, "n07753592", "banana"),
    (517, "n03126707", None),  # one of the two cranes
    (1, "n01443537", "goldfish, Carassius auratus"),
    (628, "n03673027", "liner, ocean liner"),
)
LABELS = tuple(index for index, _, _ in CLASSES)
WNIDS = tuple(wnid for _, wnid, _ in CLASSES)
# The devkit's own numbers, as odd as the real ones: its 1 is another class than index 0.
DEVKIT_NUMBERS = {"n02391049": 12, "n01443537": 450, "n07753592": 3, "n03126707": 999, "n03673027": 77}


@cache
def photos() -> tuple[bytes, ...]:
    """The six photos, JPEG."""
    return tuple(jpeg(picture(seed)) for seed in range(len(CLASSES)))


def official_name(place: int) -> str:
    return f"ILSVRC2012_val_{place + 1:08d}.JPEG"


def wnid_folders(root: Path) -> Path:
    for place, (photo, wnid) in enumerate(zip(photos(), WNIDS, strict=True)):
        write(root / wnid / official_name(place), photo)
    return root


def flat(root: Path) -> Path:
    for place, photo in enumerate(photos()):
        write(root / official_name(place), photo)
    return root


def named_flat(root: Path) -> Path:
    for place, (photo, wnid) in enumerate(zip(photos(), WNIDS, strict=True)):
        write(root / official_name(place).replace(".JPEG", f"_{wnid}.JPEG"), photo)
    return root


def devkit_files() -> dict[str, bytes]:
    """The two files of the devkit; meta.mat also has a node above the classes, as the real one has."""
    numbers = "".join(f"{DEVKIT_NUMBERS[wnid]}\n" for wnid in WNIDS)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    synsets = np.zeros((len(DEVKIT_NUMBERS) + 1, 1), dtype=kinds)
    for row, (wnid, number) in enumerate(DEVKIT_NUMBERS.items()):
        synsets[row, 0] = (number, wnid, 0)
    synsets[-1, 0] = (1001, "n00001740", 3)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return {"ILSVRC2012_validation_ground_truth.txt": numbers.encode(), "meta.mat": buffer.getvalue()}


def devkit(root: Path) -> Path:
    for name, content in devkit_files().items():
        write(root / "ILSVRC2012_devkit_t12" / "data" / name, content)
    return root


def kaggle_solution(root: Path) -> Path:
    lines = [f"ILSVRC2012_val_{place + 1:08d},{wnid} 1 2 30 40 \n" for place, wnid in enumerate(WNIDS)]
    return write(root / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(lines))


def label_file(path: Path, labels: Sequence[object] = LABELS) -> Path:
    lines = [f"{official_name(place)},{label}\n" for place, label in enumerate(labels)]
    return write(path, "image,label\n" + "".join(lines))


def make_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def official_tar(path: Path) -> Path:
    return make_tar(path, {official_name(place): photo for place, photo in enumerate(photos())})


def shards(root: Path, kind: str = "cls", numbers: Sequence[int] = LABELS) -> Path:
    """Two WebDataset shards."""
    label = {
        "cls": lambda place: str(numbers[place]),
        "json": lambda place: json.dumps({"label": numbers[place], "width": 64}),
        "txt": lambda place: WNIDS[place],
    }[kind]
    for shard, places in enumerate(((0, 1, 2), (3, 4, 5))):
        members = {}
        for place in places:
            members[f"sample{place:04d}.jpg"] = photos()[place]
            members[f"sample{place:04d}.{kind}"] = label(place).encode()
        make_tar(root / f"imagenet1k-validation-{shard:02d}.tar", members)
    return root


def parquet(
    root: Path,
    labels: Sequence[int] = LABELS,
    classes: Sequence[str] | None = None,
    paths: Sequence[str | None] | None = None,
) -> Path:
    """Two parquet files of two row groups each, as HF's library writes them.

    Args:
        classes: the names that go with the numbers, None for ImageNet's, empty for none.
    """
    if classes is None:
        classes = ImageNetInfo().label_descriptions()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    if classes:
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    kept = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=kept)
    if paths is None:
        paths = [official_name(place).replace(".JPEG", f"_{wnid}.JPEG") for place, wnid in enumerate(WNIDS)]
    rows = [{"bytes": photo, "path": path} for photo, path in zip(photos(), paths, strict=True)]
    (root / "data").mkdir(parents=True)
    for number, part in enumerate((slice(0, 3), slice(3, 6))):
        table = pa.table({"image": rows[part], "label": list(labels[part])}, schema=schema)
        path = root / "data" / f"validation-{number:05d}-of-00002.parquet"
        pq.write_table(table, path, row_group_size=2)
    return root


def index_folders(root: Path) -> Path:
    """ImageNet-V2: a folder for every class; those of the six photos have photos in them."""
    filler = jpeg(Image.new("RGB", (8, 8)))
    for index in sorted(set(range(1000)) - set(LABELS)):
        write(root / str(index) / "0.jpeg", filler)
    for place, (photo, label) in enumerate(zip(photos(), LABELS, strict=True)):
        write(root / str(label) / f"{place}.jpeg", photo)
    return root


def number_folders(root: Path, numbers: Sequence[int], form: str = "{}") -> Path:
    for place, number in enumerate(numbers):
        write(root / form.format(number) / f"{place}.jpg", photos()[place % 6])
    return root


def labels_of(data: DataSet) -> dict[str, int | None]:
    return {item.id: item.label for item in data.items}
