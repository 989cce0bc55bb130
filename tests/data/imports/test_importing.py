"""The whole way from an export to a data set: formats found out, archives, names, settings, and the command."""

import base64
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import bring, names, picture, write_json
from PIL import Image

from pcr_seg.data.check import check, num_errors
from pcr_seg.data.files import image_size, read_mask
from pcr_seg.data.imports.importing import by_reason, import_export
from pcr_seg.data.sources import folder

SIZE = (30, 40)
RING = [5.0, 5.0, 30.0, 5.0, 30.0, 25.0, 5.0, 25.0]
ROOT = Path(__file__).parents[3]


def coco(root: Path, files: list[str], labeled: int | None = None, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An export of these images, of which the first so many have a shape each, of one class after another."""
    for seed, file in enumerate(files):
        picture(root / file, *SIZE, seed)
    notes = [
        {"id": i, "image_id": i, "category_id": i % len(classes), "segmentation": [RING], "iscrowd": 0}
        for i in range(len(files) if labeled is None else labeled)
    ]
    images = [{"id": i, "file_name": file, "height": 30, "width": 40} for i, file in enumerate(files)]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    write_json(root / "a.json", {"images": images, "annotations": notes, "categories": categories})
    return root


def test_the_data_set_passes_the_check(tmp_path: Path) -> None:
    place = coco(tmp_path / "in", [f"photos/{i}.jpg" for i in range(10)], labeled=8)
    picture(place / "photos/more.jpg", *SIZE, 77)
    picture(place / "other/not.jpg", *SIZE, 78)
    found = import_export(place, tmp_path / "new")
    assert found.parts == {"train": 6, "val": 2, "test": 0, "unlabeled": 3}
    report = check(folder(tmp_path / "new"))
    assert not num_errors(report)
    [(what, why)] = by_reason(found.left)
    assert what == "folder" and why == "1 images that no annotation names; dataset.unlabeled=FOLDER reads them"
    assert not list(tmp_path.glob(".new*")), "nothing is left of what was unpacked and drawn"
    rows = (tmp_path / "new/images.csv").read_text().splitlines()
    assert rows[0] == "name,part,group,file" and len(rows) == 12


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archives_as_tools_hand_them_out(tmp_path: Path, kind: str) -> None:
    coco(tmp_path / "in", ["a.jpg", "b.jpg"])
    archive = Path(shutil.make_archive(str(tmp_path / "export"), kind, tmp_path / "in"))
    found, _, masks = bring(archive, tmp_path / "new", links=True)
    assert set(masks) == {"a", "b"} and not found.left
    assert not any(path.is_symlink() for path in (tmp_path / "new").rglob("*")), "the archive's files are gone"
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged, or no archive"):
        bring(archive, tmp_path / "new2")


def test_names_are_kept_told_apart_and_made_fit_for_lists(tmp_path: Path) -> None:
    files = ["x/#1 ä.jpg", "x/sub/a.jpg", "x/sub/a.png", "x/images/a.b.jpg", "x/train/b.jpg", "x/ c .jpg"]
    _, source, masks = bring(coco(tmp_path / "in", files), tmp_path / "new")
    assert set(masks) == {"1 ä", "sub/a", "sub/a_2", "a.b", "b", "c"}
    for sample in (*source.train, *source.val):
        assert read_mask(sample).any() and image_size(sample.image) == SIZE


def test_links_instead_of_copies(tmp_path: Path) -> None:
    bring(coco(tmp_path / "in", ["a.jpg", "b.jpg"]), tmp_path / "new", links=True)
    links = [path for path in (tmp_path / "new/images").rglob("*.jpg") if path.is_symlink()]
    assert {path.resolve() for path in links} == {tmp_path / "in/a.jpg", tmp_path / "in/b.jpg"}
    write_json(tmp_path / "labelme/a.json", embedded_leaf())
    _, source, _ = bring(tmp_path / "labelme", tmp_path / "new2", links=True)
    [sample] = source.train
    assert image_size(sample.image) == SIZE and not Path(sample.image).is_symlink(), "it lies in no file to link to"


def embedded_leaf() -> dict:
    """A Labelme file that holds its image."""
    content = io.BytesIO()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(content, "PNG")
    shape = {"label": "leaf", "points": [[5, 5], [30, 5], [30, 25]], "shape_type": "polygon"}
    return {"shapes": [shape], "imagePath": "a.png", "imageData": base64.b64encode(content.getvalue()).decode()}


def test_a_file_alone_takes_what_it_names_and_no_more(tmp_path: Path) -> None:
    place = coco(tmp_path / "in", ["a.jpg", "b.jpg"])
    picture(place / "holiday.jpg", *SIZE, 5)
    found, _, masks = bring(place / "a.json", tmp_path / "new")
    assert set(masks) == {"a", "b"} and found.parts["unlabeled"] == 0


def test_images_twice_and_classes_called_background(tmp_path: Path) -> None:
    place = coco(tmp_path / "in", ["a.jpg", "./a.jpg", "b.jpg"], classes=("cat", "Background", "dog #1"))
    found, source, masks = bring(place, tmp_path / "new")
    assert source.classes == ("cat", "Background", "dog _1")
    assert [left.why for left in found.left] == ["stands in the export a second time"]
    assert set(np.unique(masks["a"])) == {0, 1} and set(np.unique(masks["b"])) == {1, 2}
    _, source, masks = bring(place, tmp_path / "new2", rest=255, ignore=["cat"])
    assert source.classes == ("Background", "dog _1"), "no class for what is ignored"
    assert set(np.unique(masks["b"])) == {255, 1} and set(np.unique(masks["a"])) == {255}


def test_what_every_format_ignores_is_ignored_beside_own_labels(tmp_path: Path) -> None:
    place = coco(tmp_path / "in", ["a.jpg", "b.jpg", "c.jpg"], classes=("__ignore__", "cat", "dog"))
    _, source, masks = bring(place, tmp_path / "new", ignore=["dog"])
    assert source.classes == ("background", "cat")
    assert {name: set(np.unique(mask)) for name, mask in masks.items()} == {"a": {0, 255}, "b": {0, 1}, "c": {0, 255}}


def test_several_formats_and_none(tmp_path: Path) -> None:
    place = coco(tmp_path / "in", ["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"^from=.*/none: no annotations of a known format; these are read: coco"):
        (tmp_path / "none").mkdir()
        import_export(tmp_path / "none", tmp_path / "new")
    shape = {"label": "leaf", "points": [[5, 5], [30, 5], [30, 25]], "shape_type": "polygon"}
    write_json(place / "b.json", {"shapes": [shape], "imagePath": "b.jpg", "imageData": None, "imageHeight": 30})
    with pytest.raises(ValueError, match=r"several formats; choose format=coco .*a.json., format=labelme .*b.json"):
        import_export(place, tmp_path / "new")
    assert import_export(place, tmp_path / "new", format="labelme").classes == ["background", "leaf"]
    with pytest.raises(ValueError, match="no annotations of format=via"):
        import_export(place, tmp_path / "new2", format="via")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "csv"}, "format=csv: choose coco, labelme, cvat"),
        ({"rest": "cat"}, "rest=cat: choose background, 255"),
        ({"empty": "drop"}, "empty=drop: choose unlabeled, background"),
        ({"overlap": "top"}, "overlap=top: choose later, smaller"),
        ({"lines": 0}, "lines=0: is no width in pixels"),
        ({"val": 1.5}, r"val=1\.5: is no share"),
        ({"images": Path("/nowhere")}, "images=/nowhere: no such file or folder"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_export(coco(tmp_path / "in", ["a.jpg"]), tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *words])
    runpy.run_path(str(ROOT / "prepare.py"), run_name="__main__")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    place = coco(tmp_path / "in (1)", [f"p{i % 3}_{i}.jpg" for i in range(12)], labeled=9)
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "import", f"from={place}", "dataset.root=new set", r"group=(p\d)_", "val=0.3")
    printed = capsys.readouterr().out
    assert "6 train, 3 val, 0 test, 3 unlabeled images from coco, divided 3 of 9 drawn for val with seed 0" in printed
    assert printed.splitlines()[-1] == "next: python prepare.py check dataset=folder 'dataset.root=new set'"
    source = folder(tmp_path / "new set")
    assert len({name[:2] for name in names(source)["val"]}) == 1
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "import", f"from={place}", "dataset.root=new set")
    assert stop.value.code == "error: dataset.root=new set: is there already; name a new folder"
    with pytest.raises(SystemExit, match="say what from, and where to"):
        run(monkeypatch, "import", f"from={place}")
    with pytest.raises(SystemExit, match=r"error: lines=thin: choose a number or null"):
        run(monkeypatch, "import", f"from={place}", "dataset.root=other", "lines=thin")


def test_without_pycocotools_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'pcr-seg\[imports\]'"):
        import_export(coco(tmp_path / "in", ["a.jpg", "b.jpg"]), tmp_path / "new")


def places_in(content: object, path: tuple = ()) -> list[tuple]:
    """The ways to all values in a JSON document."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path] * bool(path) + [way for key, value in items for way in places_in(value, (*path, key))]


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_is_one_line_or_left_out(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    file = coco(tmp_path / "in", ["a.jpg", "b.jpg"]) / "a.json"
    content = inside = json.loads(file.read_text())
    ways = places_in(content)
    *above, last = ways[random.integers(len(ways))]
    for key in above:
        inside = inside[key]
    odd = [None, [], {}, -1, 1e300, "x", [[1, 2]], {"a": 1}, True]
    inside[last] = odd[random.integers(len(odd))]
    write_json(file, content)
    try:
        found, _, masks = bring(tmp_path / "in", tmp_path / "new")
    except ValueError as error:
        assert "\n" not in str(error) and not (tmp_path / "new").exists()
    else:
        assert masks and len(found.classes) > 1
