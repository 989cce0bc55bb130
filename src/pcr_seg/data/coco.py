"""Draw COCO's instances as masks of class ids."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.progress import track

from pcr_seg.data.classes import COCO_THINGS
from pcr_seg.data.files import IGNORE_INDEX
from pcr_seg.data.imports.shapes import coco_masks
from pcr_seg.data.published import quiet, write_file, write_png


def draw_masks(instances: Path, folder: Path) -> None:
    """Write a mask for each image of an instances file, if it is not there yet.

    Larger instances are drawn first, so that smaller ones lie on them. The outline of a crowd encloses several things
    and what is between them; its pixels are ignored (255), unless another instance is drawn there.

    Args:
        instances: the file `annotations/instances_{train,val}2017.json`.
        folder: where to write NAME.png: 0 background, 1 to 80 the things, 255 ignored.

    Raises:
        ValueError: pycocotools is not installed, or the file is not COCO's.
    """
    masks = coco_masks()
    ids = {category: number for number, category in enumerate(COCO_THINGS.values(), start=1)}
    try:
        content, of_image = json.loads(instances.read_text()), defaultdict(list)
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        images = content["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{instances}: not COCO's instances ({error}); download it again") from None
    for image in track(images, f"Drawing {instances.stem}", transient=True, disable=quiet()):
        path, size = folder / f"{Path(image['file_name']).stem}.png", (image["height"], image["width"])
        if path.is_file():
            continue
        mask = np.zeros(size, np.uint8)
        for one in sorted(of_image[image["id"]], key=lambda one: (not one["iscrowd"], -one["area"])):
            inside = masks.decode(masks.frPyObjects(one["segmentation"], *size)).reshape(*size, -1).any(axis=2)
            mask[inside] = IGNORE_INDEX if one["iscrowd"] else ids[one["category_id"]]
        write_file(path, write_png(mask))
