"""What the tests of imports share: pictures, shapes drawn independently, and the imported masks beside them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pcr_seg.data.files import read_mask
from pcr_seg.data.imports.importing import Imported, import_export
from pcr_seg.data.sources import PARTS, Source, folder


def picture(path: Path, height: int, width: int, seed: int = 0, orientation: int = 1) -> Path:
    """A picture of noise; `height` and `width` are stored ones, whatever its EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, **({"exif": exif} if orientation > 1 else {}))
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def inside(points: list, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie in a polygon, by the even-odd rule; written from its definition."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    found = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        crosses = (y0 > rows) != (y1 > rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            found ^= crosses & (columns < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
    return found


def oval(x: float, y: float, radius_x: float, radius_y: float, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie in an ellipse that is turned clockwise."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    angle = np.radians(degrees)
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    return (along / radius_x) ** 2 + (across / radius_y) ** 2 <= 1


def layers(size: tuple[int, int], *drawn: tuple[np.ndarray, int]) -> np.ndarray:
    """A mask of layers, later ones on top."""
    mask = np.zeros(size, np.uint8)
    for where, value in drawn:
        mask[where] = value
    return mask


def border(mask: np.ndarray) -> np.ndarray:
    """Pixels beside one of another value."""
    padded = np.pad(mask, 1, mode="edge")
    height, width = mask.shape
    around = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.any([other != mask for other in around], axis=0)


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two masks differ beside borders alone, and hold the same values."""
    same = found.shape == expected.shape and set(np.unique(found)) == set(np.unique(expected))
    return same and bool((found == expected)[~border(expected)].all())


def bring(place: Path, root: Path, **settings: object) -> tuple[Imported, Source, dict[str, np.ndarray]]:
    """Import an export; return what came of it, the data set, and each mask by its name."""
    found = import_export(place, root, **settings)
    source = read(root)
    samples = [
        sample for part in PARTS for sample in getattr(source, part) if sample.mask and Path(sample.mask).is_file()
    ]
    return found, source, {sample.name: read_mask(sample) for sample in samples}


def read(root: Path) -> Source:
    """The data set, also where all images train."""
    (root / "images/val").mkdir(exist_ok=True, parents=True)
    if not any((root / "images/val").rglob("*.*")):
        picture(root / "images/val/none.png", 4, 4)
    return folder(root)


def names(source: Source) -> dict[str, list[str]]:
    """The names in each part."""
    return {part: [sample.name for sample in getattr(source, part)] for part in PARTS}
