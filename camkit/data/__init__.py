"""Where the images lie and what they are labelled.

items.py     an image, a data set, the order of `--limit`, the fingerprint
sources.py   where an image's bytes come from: a file, a member of a tar, a row of a parquet file
classes.py   ImageNet's classes: by index, wnid or name
labels.py    label files, the devkit, Kaggle's solution, names of folders and files
contents.py  what lies at a path, before anyone says what it means
archives.py  tar archives, listed and never unpacked
parquet.py   Hugging Face's parquet files
layouts.py   the table of layouts, and `find_images`, which goes through it
subset.py    `camkit data sample`
"""

from camkit.data.classes import class_name, wnid_to_index
from camkit.data.items import DataSet, Item, sample_items
from camkit.data.layouts import LAYOUTS, find_images

__all__ = ["LAYOUTS", "DataSet", "Item", "class_name", "find_images", "sample_items", "wnid_to_index"]
