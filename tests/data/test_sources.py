"""Readers on small real files of each layout."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcr_seg.data.files import IGNORE_INDEX, DataError, Sample, read_mask
from pcr_seg.data.sources import (
    CITYSCAPES_CLASSES,
    VOC_PALETTE,
    ade20k,
    camvid,
    cityscapes,
    coco,
    folder,
    list_line,
    nothing_found,
    read_list,
    voc,
    voc_aug,
)

CLASSES = "# id name R G B\n0 sky 1 2 3\n1 traffic light 4 5 6\n255 void 0 0 0\n"


def save(path: Path | str, content: np.ndarray | Image.Image, **options) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = content if isinstance(content, Image.Image) else Image.fromarray(np.asarray(content, np.uint8))
    image.save(path, **options)
    return path


def colors(height: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def test_list_lines(tmp_path):
    lines = {
        "leftImg8bit/train/ulm/ulm_000061_000019_leftImg8bit.png": "ulm_000061_000019",
        "leftImg8bit/train/a/a_1_2_leftImg8bit.png gtFine/train/a/a_1_2_gtFine_labelTrainIds.png": "a_1_2",
        "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png": "2007_000032",
        "/JPEGImages/2007_000033.jpg /SegmentationClassAug/2007_000033.png": "2007_000033",
        "2007_000039": "2007_000039",
        "day/cam 1/frame.v2": "day/cam 1/frame.v2",
        "night/b.JPG": "night/b",
    }
    text = "\ufeff# origin\r\n\r\n" + "\r\n".join(lines) + "\n# leftImg8bit/train/a/no_leftImg8bit.png\n  \n"
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert read_list(tmp_path / "list.txt") == list(lines.values())
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such list; correct the path"):
        read_list(tmp_path / "gone.txt")


def make_folder(root: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "city/deep/c.webp", "d.v1.tif"):
        save(root / "images/train" / name, colors())
    for name in ("v.jpg", "a.jpg"):  # a val image may well have a training image's name
        save(root / "images/val" / name, colors())
    save(root / "unlabeled/u.bmp", colors())
    (root / "images/train/._b.jpg").write_bytes(b"metadata")
    save(root / "images/train/.thumbnails/b.jpg", colors())
    (root / "images/train/notes.txt").touch()
    (root / "classes.txt").write_text(CLASSES)
    return root


def test_folder(tmp_path):
    source = folder(make_folder(tmp_path), "mine")
    assert source.name == "mine"
    assert source.classes == ("sky", "traffic light") and source.palette == ((1, 2, 3), (4, 5, 6))
    assert names(source.train) == ["a", "b", "city/deep/c", "d.v1"]
    assert source.train[2].mask == str(tmp_path / "labels/train/city/deep/c.png")
    assert source.train[3].mask == str(tmp_path / "labels/train/d.v1.png")
    assert names(source.val) == ["a", "v"] and source.val[1].mask == str(tmp_path / "labels/val/v.png")
    assert [(s.name, s.image, s.mask) for s in source.unlabeled] == [("u", str(tmp_path / "unlabeled/u.bmp"), None)]
    assert source.test == ()


def test_folder_with_test_images_and_without_unlabeled(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "images/test/t.jpg", colors())
    (tmp_path / "unlabeled/u.bmp").unlink()
    (tmp_path / "unlabeled").rmdir()
    source = folder(str(tmp_path))
    [sample] = source.test
    assert sample[:3] == ("t", str(tmp_path / "images/test/t.jpg"), str(tmp_path / "labels/test/t.png"))
    assert source.unlabeled == ()


def test_unlabeled_images_anywhere(tmp_path):
    root = make_folder(tmp_path / "set")
    for place in ("day1/photos/x.jpg", "day2/photos/x.jpg", "day2/photos/deep/y.PNG", "day2/photos/.thumbs/y.png"):
        save(tmp_path / "more" / place, colors())

    def found(*places: str) -> list[str]:
        return names(folder(root, unlabeled=[str(tmp_path / place) for place in places]).unlabeled)

    assert names(folder(root, unlabeled=str(tmp_path / "more/day1/photos")).unlabeled) == ["photos/x"]
    assert found("more/day2/photos/*.jpg") == ["photos/x"]
    assert found("more/*/photos/*.jpg") == ["more/day1/photos/x", "more/day2/photos/x"]
    assert found("more/day2/**/*") == ["day2/photos/deep/y", "day2/photos/x"]
    assert found("more/day1/photos", "more/day2/photos") == ["day1/photos/x", "day2/photos/deep/y", "day2/photos/x"]
    assert found("more", "more/day1") == ["more/day1/photos/x", "more/day2/photos/deep/y", "more/day2/photos/x"]
    assert all(sample.mask is None for sample in folder(root, unlabeled=str(tmp_path / "more")).unlabeled)
    with pytest.raises(ValueError, match=r"dataset\.unlabeled=.*day3: no such file or folder; correct the path"):
        found("more/day1", "more/day3")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("gone", "no such file or folder; correct the path"),
        ("empty", r"no images in it; put files of \.jpg .*\.webp there"),
        ("odd", r"no image that is read, but 2 files, first a\.gif; save images as \.jpg .*"),
        ("one", r"no image that is read, but deep/a\.gif; save images as \.jpg .*"),
        ("odd/a.gif", r"not read as an image; save it as one of \.jpg .*"),
        ("odd/*.png", "no file has such a name; correct the pattern, in quotes"),
        ("odd/*.g?f", r"no image that is read among 1 files, first .*/odd/a\.gif; save images as \.jpg .*"),
    ],
)
def test_why_nothing_was_found(tmp_path, place, reason):
    (tmp_path / "empty").mkdir()
    for name in ("odd/a.gif", "odd/b.heic", "one/deep/a.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert re.fullmatch(reason, nothing_found(f"{tmp_path}/{place}"))


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_without_training_images_can_be_scored(tmp_path, part):
    (tmp_path / "classes.txt").write_text(CLASSES)
    save(tmp_path / f"images/{part}/t.jpg", colors())
    for source in (folder(tmp_path, channels=1), camvid(tmp_path)):
        parts = {name: names(getattr(source, name)) for name in ("train", "unlabeled", "val", "test")}
        assert parts == {"train": [], "unlabeled": [], "val": [], "test": []} | {part: ["t"]}
        assert source.format == getattr(source, part)[0].format
    save(tmp_path / "segnet" / part / "t.png", colors())
    assert names(getattr(camvid(tmp_path / "segnet"), part)) == ["t"] and not camvid(tmp_path / "segnet").train
    (tmp_path / "images/train").mkdir()
    with pytest.raises(ValueError, match=r"images/train: no images in it"):
        folder(tmp_path)


def test_a_folder_needs_no_val_but_one_of_another_name_is_named(tmp_path):
    (tmp_path / "classes.txt").write_text(CLASSES)
    save(tmp_path / "images/train/t.jpg", colors())
    assert names(folder(tmp_path).train) == ["t"] and folder(tmp_path).val == ()
    save(tmp_path / "images/validation/v.jpg", colors())
    with pytest.raises(
        ValueError, match=r"images/validation: is not read; call it .*images/val, and its masks .*labels/val"
    ):
        folder(tmp_path)


def test_cityscapes_without_training_images_can_be_scored(tmp_path):
    shutil.rmtree(make_cityscapes(tmp_path, ("labelTrainIds",)) / "leftImg8bit/train")
    source = cityscapes(tmp_path)
    assert source.train == () and names(source.val) == ["munster_000000_000019"]


def test_lines_of_a_list_are_names_with_or_without_their_files_suffix(tmp_path):
    files = ("photo.jpg.png", "photo.jpg", "cut.PNG", "a.png b.jpg", "plain.v1.tif")
    samples = [Sample(name.rpartition(".")[0], str(tmp_path / name)) for name in files]
    for spelling in (list(files), ["photo.jpg.png", "photo", "cut", "a.png b", "plain.v1"], [*map(list_line, samples)]):
        (tmp_path / "list.txt").write_text("\n".join(spelling))
        assert read_list(tmp_path / "list.txt", samples) == [sample.name for sample in samples]
    assert [list_line(sample) for sample in samples] == ["photo.jpg.png", "photo", "cut", "a.png b.jpg", "plain.v1"]
    (tmp_path / "list.txt").write_text("photo.jpg\ncut.png mask.png\nother.jpg\n")
    assert read_list(tmp_path / "list.txt", samples[:1]) == ["photo.jpg", "cut", "other"]


def test_masks_of_any_suffix_belong_to_their_image(tmp_path):
    make_folder(tmp_path)
    for mask in ("a.TIF", "b.PNG", "city/deep/c.bmp", "d.v1.png", "d.v1.jpg"):
        save(tmp_path / "labels/train" / mask, np.zeros((4, 6)))
    found = [Path(sample.mask).relative_to(tmp_path / "labels/train").as_posix() for sample in folder(tmp_path).train]
    assert found == ["a.TIF", "b.PNG", "city/deep/c.bmp", "d.v1.png"]


@pytest.mark.parametrize("options", [{"channels": 2}, {"masks": "rgb"}])
def test_choices(tmp_path, options):
    with pytest.raises(ValueError, match=r"dataset\.channels=.*masks=.*: choose 1, 3 or 4, and ids or colors"):
        folder(make_folder(tmp_path), **options)


@pytest.mark.parametrize("name", [" a.png", "a\nb.png", "#a.png", "b\udcfcro.png"])
def test_names_that_a_list_could_not_hold(tmp_path, name):
    save(make_folder(tmp_path) / "images/train" / name, colors())
    with pytest.raises(ValueError, match=r"no split list can hold such a name; remove"):
        folder(tmp_path)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    images = make_folder(tmp_path) / "images/train"
    before = len(folder(tmp_path).train)
    (images / "loop").symlink_to(".")
    (images / "city/up").symlink_to(tmp_path / "images")
    assert len(folder(tmp_path).train) == before


@pytest.mark.parametrize("reader", [folder, camvid, voc, voc_aug, cityscapes])
def test_missing_root(tmp_path, reader):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere.*: no .*; put its files there, or start with .* dataset\.root"
    ) as error:
        reader(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_folder_errors(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "unlabeled/b.png", colors())
    with pytest.raises(ValueError, match=r"unlabeled/b\.png: same name as .*train/b\.jpg; rename it, or move"):
        folder(tmp_path)
    save(tmp_path / "images/train/b.png", colors())
    with pytest.raises(ValueError, match=r"train/b\.(png|jpg): same name as .*b\.(png|jpg); rename or remove"):
        folder(tmp_path)
    for path in (tmp_path / "images/val").iterdir():
        path.unlink()
    (tmp_path / "images/train/b.png").unlink()
    with pytest.raises(ValueError, match=r"images/val: no images in it; put files of \.jpg"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 sky 1 2 3\n2 car 1 2 3\n", r"ids \[0, 2\]; number the classes 0, 1"),
        ("0 sky 1 2 3\n0 car 1 2 3\n", r"ids \[0, 0\]; number the classes"),
        ("0 sky 1 2 3\n1 sky 1 2 3\n", r"each id and each name once"),
        ("0 sky 1 2\n", r"'0 sky 1 2' is not `id name R G B`"),
        ("0 sky 1 2 256\n", r"is not `id name R G B` with R G B in 0\.\.255; correct it"),
        ("sky 0 1 2 3\n", r"'sky 0 1 2 3' is not"),
        ("255 void 0 0 0\n", r"ids \[\]; number the classes"),
    ],
)
def test_malformed_classes(tmp_path, text, message):
    (make_folder(tmp_path) / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt: .*{message}"):
        folder(tmp_path)


def test_missing_classes(tmp_path):
    (make_folder(tmp_path) / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.txt: no such file; write `id name R G B`"):
        folder(tmp_path)


def test_camvid_in_segnet_layout(tmp_path):
    for subset in ("train", "val", "test"):
        save(tmp_path / subset / "0001TP_1.png", colors())
        save(tmp_path / f"{subset}annot" / "0001TP_1.png", [[0, 10], [11, 12]])
    source = camvid(tmp_path)
    assert source.name == "camvid" and len(source.classes) == len(source.palette) == 11
    assert [len(part) for part in (source.train, source.unlabeled, source.val, source.test)] == [1, 0, 1, 1]
    with pytest.raises(ValueError, match=r"label values \[12\] are not in 0\.\.10"):
        read_mask(source.train[0])
    save(source.train[0].mask, [[0, 10], [11, 3]])
    np.testing.assert_array_equal(read_mask(source.train[0]), [[0, 10], [255, 3]])


def test_camvid_in_folder_layout(tmp_path):
    source = camvid(make_folder(tmp_path))
    assert source.name == "camvid" and source.classes == ("sky", "traffic light")
    assert source.train[0].label_map is None


def make_voc(root: Path, augmented: tuple[str, ...] = (), official: tuple[str, ...] = ()) -> Path:
    for name in ("2007_1", "2007_2", "2008_3", "2008_4", "2009_5", "2009_6"):
        save(root / "JPEGImages" / f"{name}.jpg", colors())
    for kind, ids in (("SegmentationClassAug", augmented), ("SegmentationClass", official)):
        for name in ids:
            save(root / kind / f"{name}.png", np.full((4, 6), 20))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_2\n2007_1\n")
    (lists / "val.txt").write_text("2009_5\n")
    return root


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_with_the_devkit_alone(tmp_path, inside):
    make_voc(tmp_path / inside, official=("2007_1", "2007_2", "2009_5"))
    source = voc(tmp_path)
    assert source.name == "voc" and len(source.classes) == len(source.palette) == 21
    assert names(source.train) == ["2007_1", "2007_2"] and names(source.val) == ["2009_5"]
    assert source.unlabeled == source.test == ()
    assert source.train[0].mask == str(tmp_path / inside / "SegmentationClass/2007_1.png")


def test_voc_classic_and_blender_from_the_masks(tmp_path):
    make_voc(tmp_path, ("2007_1", "2007_2", "2008_3", "2008_4", "2009_5"), ("2007_1", "2009_5"))
    classic, blender = voc(tmp_path), voc_aug(tmp_path)
    assert names(classic.train) == ["2007_1", "2007_2"]
    assert [(s.name, s.mask) for s in classic.unlabeled] == [("2008_3", None), ("2008_4", None)]
    assert names(blender.train) == ["2007_1", "2007_2", "2008_3", "2008_4"] and blender.unlabeled == ()
    for source in (classic, blender):
        assert names(source.val) == ["2009_5"]
        assert {Path(s.mask).parent.name for s in source.train + source.val} == {"SegmentationClassAug"}
    assert blender.name == "voc_aug"


@pytest.mark.parametrize("file", ["train_aug.txt", "trainaug.txt"])
def test_voc_train_aug_list_goes_before_the_masks_and_val_is_kept_out(tmp_path, file):
    make_voc(tmp_path, ("2007_1", "2007_2", "2008_3", "2008_4"), ("2009_5",))
    ids = ("2007_1", "2007_2", "2008_3", "2009_5")
    lines = "".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in ids)
    (tmp_path / "ImageSets/Segmentation" / file).write_text(lines)
    assert names(voc(tmp_path).unlabeled) == ["2008_3"]
    source = voc_aug(tmp_path)
    assert names(source.train) == ["2007_1", "2007_2", "2008_3"]
    assert source.val[0].mask == str(tmp_path / "SegmentationClass/2009_5.png")  # SBD's folder has no val masks here


def test_voc_errors(tmp_path):
    make_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"SegmentationClassAug: no such folder; put the SBD masks there"):
        voc_aug(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt: no such list"):
        voc(tmp_path)


def test_voc_palette_is_the_devkits():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
    }
    known |= {18: (0, 192, 0), 20: (0, 64, 128)}  # values as in the devkit's PNG files
    assert {index: VOC_PALETTE[index] for index in known} == known
    assert len(set(VOC_PALETTE)) == 21


def make_cityscapes(root: Path, kinds: tuple[str, ...]) -> Path:
    raw = np.arange(40).reshape(4, 10)  # labelIds 0..33 and beyond
    for subset, city in (("train", "ulm"), ("train", "aachen"), ("val", "munster")):
        stem = f"{city}_000000_000019"
        save(root / "leftImg8bit" / subset / city / f"{stem}_leftImg8bit.png", colors(4, 10))
        for kind in kinds:
            labels = raw if kind == "labelIds" else np.full((4, 10), 18)
            save(root / "gtFine" / subset / city / f"{stem}_gtFine_{kind}.png", labels)
    return root


def test_cityscapes_with_train_ids(tmp_path):
    source = cityscapes(make_cityscapes(tmp_path, ("labelIds", "labelTrainIds")))
    assert len(source.classes) == len(source.palette) == 19
    assert names(source.train) == ["aachen_000000_000019", "ulm_000000_000019"]
    assert names(source.val) == ["munster_000000_000019"] and source.unlabeled == source.test == ()
    assert (read_mask(source.train[0]) == 18).all()


def test_cityscapes_maps_label_ids(tmp_path):
    source = cityscapes(make_cityscapes(tmp_path, ("labelIds",)))
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    train_ids |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # cityscapesScripts, helpers/labels.py
    expected = [train_ids.get(label, IGNORE_INDEX) for label in range(40)]
    np.testing.assert_array_equal(read_mask(source.val[0]).ravel(), expected)
    assert source.classes[13] == "car" and source.palette[13] == (0, 0, 142)
    assert tuple(CITYSCAPES_CLASSES) == source.classes


def test_cityscapes_without_val(tmp_path):
    save(tmp_path / "leftImg8bit/train/ulm/ulm_1_2_leftImg8bit.png", colors())
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/val: no such folder; put its files there, or start"):
        cityscapes(tmp_path)


def save_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_ade20k_ignores_label_0(tmp_path: Path, inside: str) -> None:
    base = tmp_path / inside
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save_png(base / f"images/{part}/{name}.jpg", np.zeros((2, 3, 3)))
        save_png(base / f"annotations/{part}/{name}.png", np.array([[0, 1, 2], [149, 150, 150]]))
    source = ade20k(tmp_path)
    assert [s.name for s in (*source.train, *source.val)] == ["ADE_train_00000001", "ADE_val_00000001"]
    assert read_mask(source.train[0]).tolist() == [[255, 0, 1], [148, 149, 149]]
    assert len(source.classes) == len(set(source.classes)) == len(set(source.palette)) == 150
    assert (source.classes[0], source.classes[149]) == ("wall", "flag")
    save_png(base / "annotations/validation/ADE_val_00000001.png", np.full((2, 3), 151))
    with pytest.raises(DataError):
        read_mask(source.val[0])


def test_coco_reads_its_masks(tmp_path: Path) -> None:
    for part, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        save_png(tmp_path / f"{part}/{name}.jpg", np.zeros((2, 3, 3)))
        save_png(tmp_path / f"masks/{name}.png", np.array([[0, 1, 80], [255, 0, 0]]))
    source = coco(tmp_path)
    assert [s.name for s in source.train] == ["000000000009"] and len(source.classes) == len(set(source.palette)) == 81
    assert read_mask(source.val[0]).tolist() == [[0, 1, 80], [255, 0, 0]]
    assert (source.classes[0], source.classes[1], source.classes[80]) == ("background", "person", "toothbrush")


def test_lists_of_ade20k_and_coco_name_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        "images/training/ADE_train_00001609.jpg annotations/training/ADE_train_00001609.png\n"
        "train2017/000000177254.jpg masks/000000177254.png"
    )
    assert read_list(tmp_path / "a.txt") == ["ADE_train_00001609", "000000177254"]
