"""Where the images lie, what they are labelled, and what labels stand for.

items.py       an image, a data set, the order of `--limit`, the fingerprint
sources.py     where an image's bytes come from: a file, a member of a tar, a row of a parquet file
classes.py     class lists, ImageNet's first of all: by index, wnid or name
classfiles.py  class lists in files (`--classes FILE`)
numbers.py     whether bare numbers are a class list's indices
labels.py      names of folders and files, fields of data sets
labelfile.py   `--labels FILE`
beside.py      label files near the images: Kaggle's solution, Tiny ImageNet's annotations
devkit.py      the devkit's ground truth
texts.py       text and tables in any usual encoding
names.py       parts of an image's id
kinds.py       what a file is by its name
walk.py        a folder and all below it
contents.py    what lies at a path, before anyone says what it means
splits.py      the validation split of several
archives.py    tar archives, listed and never unpacked
webdataset.py  tar archives of images, and which members of a shard belong together
parquet.py     Hugging Face's parquet files; columns.py: which column holds what
layouts.py     the table of layouts
find.py        `find_images`: from a path, and what the user says of it, to a data set
subset.py      `camkit data sample`
regions.py     where in an image something is: boxes, masks, tiles; annotations.py: from files
given.py       maps that another program made
pixels.py      image file -> uint8 crop -> normalised batch
cache.py       decoded crops on disk
batches.py     decoded batches on their way to the network
"""

from camkit.data.classes import ClassList, class_name, imagenet, wnid_to_index
from camkit.data.find import data_of, find_images
from camkit.data.items import DataSet, Item, sample_items
from camkit.data.layouts import LAYOUTS

__all__ = [
    "LAYOUTS",
    "ClassList",
    "DataSet",
    "Item",
    "class_name",
    "data_of",
    "find_images",
    "imagenet",
    "sample_items",
    "wnid_to_index",
]
