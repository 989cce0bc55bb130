"""VIA's projects, annotations and tables, written as its documentation describes them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, oval, picture, write_json

SIZE = (70, 100)
POLYGON = {"name": "polygon", "all_points_x": [10, 40, 44, 12], "all_points_y": [10, 12, 40, 38]}
RING = [[10, 10], [40, 12], [44, 40], [12, 38]]
RECT = {"name": "rect", "x": 30, "y": 25, "width": 40, "height": 30}
BOX = [[30, 25], [70, 25], [70, 55], [30, 55]]
ELLIPSE = {"name": "ellipse", "cx": 70, "cy": 30, "rx": 20, "ry": 8, "theta": 0.524}
CIRCLE = {"name": "circle", "cx": 20, "cy": 55, "r": 9.5}
THIN = ({"name": "polyline", "all_points_x": [1, 90], "all_points_y": [66, 66]}, {"name": "point", "cx": 5, "cy": 5})


def region(shape: dict, **attributes: object) -> dict:
    return {"shape_attributes": shape, "region_attributes": attributes}


def metadata(root: Path, images: dict[str, list[dict]], **attributes: dict) -> dict:
    """Images as VIA lists them, under their names with their sizes on the disk."""
    found = {}
    for name, regions in images.items():
        num_bytes = (root / name).stat().st_size
        file = Path(name).name
        found[f"{file}{num_bytes}"] = {
            "filename": file, "size": num_bytes, "regions": regions, "file_attributes": attributes.get(file, {}),
        }  # fmt: skip
    return found


def project(root: Path, images: dict[str, list[dict]], attributes: dict | None = None, **of_files: dict) -> Path:
    for seed, name in enumerate(images):
        if not (root / name).is_file():
            picture(root / name, *SIZE, seed)
    content = {
        "_via_settings": {"core": {"default_filepath": ""}, "project": {"name": "x"}},
        "_via_img_metadata": metadata(root, images, **of_files),
        "_via_attributes": {"region": attributes or {}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": [],
    }
    return write_json(root / "via_project.json", content)


def table(root: Path, images: dict[str, list[dict]], header: str = "filename") -> Path:
    """The CSV of the same, with Windows' line ends, which VIA leaves to the browser."""
    with (root / "via.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            [header, "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
             "region_attributes"]
        )  # fmt: skip
        for item in metadata(root, images).values():
            regions = item["regions"] or [region({})]
            for i, one in enumerate(regions):
                number = len(item["regions"])
                texts = [
                    json.dumps(one[key], separators=(",", ":")) for key in ("shape_attributes", "region_attributes")
                ]
                rows.writerow([item["filename"], item["size"], "{}", number, i, *texts])
    return root / "via.csv"


REGIONS = [
    region(POLYGON, what="leaf"), region(ELLIPSE, what="stem"), region(RECT, what="pot"), region(CIRCLE, what="leaf"),
    *(region(thin, what="wire") for thin in THIN),
]  # fmt: skip


def drawn() -> np.ndarray:
    """The regions, with leaf, pot and stem as 1, 2 and 3."""
    degrees = np.degrees(0.524)
    return layers(
        SIZE, (inside(RING, SIZE), 1), (oval(70, 30, 20, 8, degrees, SIZE), 3), (inside(BOX, SIZE), 2),
        (oval(20, 55, 9.5, 9.5, 0, SIZE), 1),
    )  # fmt: skip


def test_a_project_with_every_shape(tmp_path: Path) -> None:
    project(tmp_path / "in", {"a b.png": REGIONS, "empty.jpg": []})
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "leaf", "pot", "stem") and agree(masks["a b"], drawn())
    assert [left[1:] for left in found.left] == [(kind, "wire", "has no area") for kind in ("polyline", "point")]
    assert names(source)["unlabeled"] == ["empty"] and found.format == "via"


@pytest.mark.parametrize("header", ["filename", "#filename"])
def test_a_table_says_the_same(tmp_path: Path, header: str) -> None:
    images = {"a b.png": REGIONS, "empty.jpg": []}
    project(tmp_path / "in", images).unlink()
    table(tmp_path / "in", images, header)
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["a b"], drawn()) and names(source)["unlabeled"] == ["empty"]


def test_version_1_numbers_regions_and_needs_no_attributes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / f"in/{part}/a.jpg", *SIZE, seed=len(part))
        images = metadata(tmp_path / "in" / part, {"a.jpg": []})
        for image in images.values():
            image.update(regions={"0": region(POLYGON), "1": region(CIRCLE)}, fileref="", base64_img_data="")
        write_json(tmp_path / f"in/{part}/via_region_data.json", images)
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    expected = layers(SIZE, (inside(RING, SIZE), 1), (oval(20, 55, 9.5, 9.5, 0, SIZE), 1))
    assert source.classes == ("background", "object") and found.divided == "as in the export"
    assert len(source.train) == len(source.val) == 1 and all(agree(mask, expected) for mask in masks.values())


def test_which_attribute_names_the_class(tmp_path: Path) -> None:
    regions = [region(POLYGON, quality="good", type="2"), region(CIRCLE, quality="bad", type="1")]
    options = {"type": {"type": "dropdown", "options": {"1": "stem", "2": "leaf"}}}
    project(tmp_path / "in", {"a.png": regions}, options)
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "leaf", "stem")
    assert agree(masks["a"], layers(SIZE, (inside(RING, SIZE), 1), (oval(20, 55, 9.5, 9.5, 0, SIZE), 2)))
    _, source, _ = bring(tmp_path / "in", tmp_path / "new2", attribute="quality")
    assert source.classes == ("background", "bad", "good")
    with pytest.raises(ValueError, match=r"^attribute=size: no region of .*; choose one of quality, type$"):
        bring(tmp_path / "in", tmp_path / "new3", attribute="size")
    project(tmp_path / "two", {"a.png": [region(POLYGON, quality="good", age="2")]})
    species = [region(POLYGON, species="oak", note="", dead={"yes": True}), region(CIRCLE, species="elm", note="old")]
    project(tmp_path / "trees", {"a.png": species})
    assert bring(tmp_path / "trees", tmp_path / "new4")[1].classes == ("background", "elm", "oak")
    with pytest.raises(ValueError, match="regions have the attributes quality, age; set attribute= to the classes'"):
        bring(tmp_path / "two", tmp_path / "new3")


def test_boxes_to_tick_and_regions_without_class(tmp_path: Path) -> None:
    ticked = [
        region(POLYGON, kind={"leaf": True, "stem": False}), region(CIRCLE, kind={"leaf": True, "stem": True}),
        region(RECT, kind={}), region(ELLIPSE, kind=""),
    ]  # fmt: skip
    project(tmp_path / "in", {"a.png": ticked})
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "leaf") and agree(masks["a"], layers(SIZE, (inside(RING, SIZE), 1)))
    assert [left.why for left in found.left] == ["has no class"] * 3


def test_two_files_of_a_name_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    images = {"one/a.png": [region(POLYGON, what="leaf")], "two/a.png": [region(RECT, what="leaf")]}
    picture(tmp_path / "in/two/a.png", 71, 100, 5)
    project(tmp_path / "in", images)
    _, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["one/a"], layers(SIZE, (inside(RING, SIZE), 1)))
    assert agree(masks["two/a"], layers((71, 100), (inside(BOX, (71, 100)), 1)))


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    project(tmp_path / "photos", {"a.png": REGIONS}).rename(tmp_path / "labels.json")
    with pytest.raises(
        ValueError, match=r"no image has a label that could be read; the first that is left out: a\.png"
    ):
        write_json(tmp_path / "alone/labels.json", json.loads((tmp_path / "labels.json").read_text()))
        bring(tmp_path / "alone/labels.json", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    _, _, masks = bring(tmp_path / "labels.json", tmp_path / "new", images=tmp_path / "photos")
    assert agree(masks["a"], drawn())


def test_damage(tmp_path: Path) -> None:
    project(tmp_path / "in", {"a.png": [region({"name": "polygon", "all_points_x": [1, 2]}, what="leaf"),
                                        region({**RECT, "x": "NaN"}, what="leaf"), REGIONS[0]]})  # fmt: skip
    found, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert [left.what for left in found.left] == ["damaged polygon", "damaged rect"]
    assert agree(masks["a"], layers(SIZE, (inside(RING, SIZE), 1)))
    (tmp_path / "in/via_project.json").write_text('{"_via_img_metadata": {')
    with pytest.raises(ValueError, match=r"via_project.json: not readable as JSON \(line 1\); export it again"):
        bring(tmp_path / "in", tmp_path / "new2")
    write_json(tmp_path / "in/via_project.json", {"_via_img_metadata": {"a": {"regions": []}}})
    with pytest.raises(ValueError, match="holds no images with regions, as VIA's JSON does; export it again"):
        bring(tmp_path / "in", tmp_path / "new2")


def test_each_folder_has_its_own_kind_of_file(tmp_path: Path) -> None:
    for part in ("train", "val"):
        project(tmp_path / "in" / part, {"a.png": REGIONS})
        table(tmp_path / "in" / part, {"a.png": REGIONS[:1]})
    (tmp_path / "in/val/via_project.json").unlink()
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert len(source.train) == len(source.val) == 1
    assert agree(masks["a"], drawn()) and agree(masks["a_2"], layers(SIZE, (inside(RING, SIZE), 1)))
