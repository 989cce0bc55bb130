"""Splits: counts, published lists, draws, and each mistake that the check has to name in one line."""

import hashlib
import os
import random
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from pcr_seg.data.published import MIRROR, PUBLISHED, SHA256
from pcr_seg.data.sources import Sample, Source, folder, read_list
from pcr_seg.data.splits import Split, check, check_samples, make_split, num_labeled, split_of_run, write

LISTS = SHARED / "splits"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason=f"the published lists are not in {LISTS}")


def save_pair(root: Path, part: str, name: str, mask, suffix: str = "png") -> None:
    """An image of its own content and, unless mask is None, its mask."""
    mask = np.asarray(mask if mask is not None else np.zeros((6, 8)), np.uint8)
    seed = [ord(letter) for letter in part + name]
    pixels = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    image = root / ("unlabeled" if part == "unlabeled" else f"images/{part}") / f"{name}.{suffix}"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    if part != "unlabeled":
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "labels" / part / f"{name}.png")


def make_folder(root: Path, train: list[list[int]], num_classes: int, num_unlabeled: int = 3) -> Source:
    """A folder data set in which training image i shows the classes train[i]."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{i} class{i} {i} 0 0\n" for i in range(num_classes)))
    for index, classes in enumerate(train):
        save_pair(root, "train", f"t{index:03d}", np.resize([*classes, 255], (6, 8)))
    for index in range(2):
        save_pair(root, "val", f"v{index}", np.resize(np.arange(num_classes), (6, 8)))
    for index in range(num_unlabeled):
        save_pair(root, "unlabeled", f"u{index}", None)
    return folder(root)


@pytest.fixture
def root(tmp_path) -> Path:
    make_folder(tmp_path / "data", [[0, 1], [0, 1], [0], [0, 2], [1], [0, 1]], num_classes=3)
    return tmp_path / "data"


def names(samples) -> list[str]:
    return [sample.name for sample in samples]


def one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) > 20


@pytest.mark.parametrize(
    ("total", "counts"),
    [
        (2975, {"1_30": 100, "1_16": 186, "1_8": 372, "1_4": 744, "1_2": 1488, "full": 2975}),
        (1464, {"1_16": 92, "1_8": 183, "1_4": 366, "1_2": 732, "full": 1464, "92": 92, 92: 92}),
        (10582, {"1_16": 662, "1_8": 1323, "1_4": 2646, "1_2": 5291}),
    ],
)
def test_counts_are_the_published_ones(total, counts):
    assert {labeled: num_labeled(labeled, total) for labeled in counts} == counts


@pytest.mark.parametrize("labeled", ["1/8", "0.5", 0.5, "all", "1_0", "", "1_8_2"])
def test_other_spellings_are_refused(labeled):
    with pytest.raises(ValueError, match=rf"split '?{labeled}'?: write a fraction \(1_8\), a count"):
        num_labeled(labeled, 100)


@pytest.mark.parametrize("labeled", ["0", "-3", 101, "101", "0_8", "9_8"])
def test_counts_outside_the_training_set_are_refused(labeled):
    with pytest.raises(ValueError, match=rf"split '?{labeled}'?: -?\d+ of 100 .*; ask for 1 to 100"):
        num_labeled(labeled, 100)


def test_nothing_to_train_on(root):
    source = folder(root)
    empty = Source(source.name, source.classes, source.palette, (), (), source.val, ())
    with pytest.raises(ValueError, match=r"data: no training images; put images and masks where"):
        make_split(empty, "1_8")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_draw_shows_every_class(root, count):
    source = folder(root)
    for seed in range(8):
        split = make_split(source, count, seed=seed)
        assert len(split.labeled) == count and split.origin == f"drawn with seed {seed}"
        assert "t003" in names(split.labeled)  # the only image of class 2
        assert set(names(split.labeled)) & {"t000", "t001", "t004", "t005"}  # those of class 1
        check(source, split)


@pytest.mark.parametrize(
    "train",
    [
        [[0, 1, 2, 3], [0, 1, 4], [2, 3, 5], *[[0, 1]] * 5, *[[2]] * 5],  # most classes first fails
        [[0, 1, 2], [0, 3], [1, 2, 4, 5], *[[1], [2], [3], [4], [5]] * 3],  # and so does rarest class first
    ],
)
def test_draw_finds_the_only_cover(tmp_path, train):
    source = make_folder(tmp_path, train, num_classes=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(names(make_split(source, 2, seed=s).labeled) == ["t001", "t002"] for s in range(10))


def test_draw_covers_many_classes_with_few_images(tmp_path):
    pairs = [[i, (i + 1) % 12] for i in range(12)]  # a ring: six of twelve images suffice, if each second is taken
    source = make_folder(tmp_path, pairs, num_classes=12)
    for seed in range(10):
        split = make_split(source, 6, seed=seed)
        assert len({int(name[1:]) % 2 for name in names(split.labeled)}) == 1


def test_too_few_images_for_all_classes_warn_by_name(tmp_path):
    source = make_folder(tmp_path, [[0], [0], [1], [2]], num_classes=4)
    with pytest.warns(UserWarning, match=r"no label for class0 in 2 images; ask for more") as caught:
        split = make_split(source, 2)
    assert len(caught) == 1 and names(split.labeled) == [
        "t002",
        "t003",
    ]  # class3 occurs nowhere, not worth a line


def test_draw_depends_on_seed_and_count_only(tmp_path):
    source = make_folder(tmp_path, [[0, 1]] * 40, num_classes=2)
    shuffled = random.Random(0).sample(source.train, len(source.train))
    other = Source(source.name, source.classes, source.palette, tuple(shuffled), source.unlabeled, source.val, ())
    first = make_split(source, "1_4", seed=3)
    assert names(first.labeled) == names(make_split(other, 10, seed=3).labeled)
    assert len({tuple(names(make_split(source, 10, seed=seed).labeled)) for seed in range(10)}) == 10
    drawn = {name for seed in range(30) for name in names(make_split(source, 10, seed=seed).labeled)}
    assert len(drawn) == 40


def test_what_is_not_labeled_is_unlabeled_and_has_no_mask(root):
    source = folder(root)
    for labeled in (2, "1_2", "full"):
        split = make_split(source, labeled)
        assert sorted(names(split.labeled + split.unlabeled)) == sorted(names(source.train + source.unlabeled))
        assert all(sample.mask for sample in split.labeled)
        assert all(sample.mask is None and sample.label_map is None for sample in split.unlabeled)
    assert split.origin == "all 6 training images" and names(split.unlabeled) == ["u0", "u1", "u2"]


def test_draw_names_a_missing_mask(root):
    (root / "labels/train/t004.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/t004\.png: no mask for .*t004\.png; add it") as error:
        make_split(folder(root), 2)
    assert one_line(error)


def test_list_by_path_and_what_is_written(root, tmp_path):
    source = folder(root)
    (tmp_path / "mine.txt").write_text("t003\n# a remark\nt001.png\n")
    split = make_split(source, str(tmp_path / "mine.txt"))
    assert names(split.labeled) == ["t003", "t001"] and split.origin == f"list {tmp_path / 'mine.txt'}"
    assert names(split.unlabeled) == ["t000", "t002", "t004", "t005", "u0", "u1", "u2"]
    write(split, tmp_path / "run/splits")
    lines = (tmp_path / "run/splits/labeled.txt").read_text().splitlines()
    assert lines == [f"# {split.origin}", "t003", "t001"]
    assert read_list(tmp_path / "run/splits/unlabeled.txt") == names(split.unlabeled)
    again = make_split(source, tmp_path / "run/splits/labeled.txt")  # with unlabeled.txt beside it
    assert (again.labeled, again.unlabeled) == (split.labeled, split.unlabeled)


def test_own_list_by_fraction(root):
    own = root / "splits/1_3"
    own.mkdir(parents=True)
    (own / "labeled.txt").write_text("t005\nt003\n")
    split = make_split(folder(root), "1_3", lists=root / "splits")
    assert names(split.labeled) == ["t005", "t003"] and split.origin == f"list {own / 'labeled.txt'}"
    (own / "unlabeled.txt").write_text("u0\nt000\n")
    assert names(make_split(folder(root), "1_3", lists=root / "splits").unlabeled) == ["u0", "t000"]
    assert make_split(folder(root), "1_2", lists=root / "splits").origin == "drawn with seed 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "t000\nv0\n",
            r"labeled\.txt: 1 of 2 names are not images for training, first v0 .*; correct the list",
        ),
        ("t000\nt000\n", r"labeled\.txt: t000 stands there more than once; keep one"),
        ("t000\n", r"labeled\.txt: 1 names instead of 2; correct it, or set split="),
        ("# nothing\n", r"labeled\.txt: 0 names instead of 2; correct it"),
    ],
)
def test_lists_that_do_not_fit(root, text, message):
    (root / "splits/2").mkdir(parents=True)
    (root / "splits/2/labeled.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        make_split(folder(root), "2", lists=root / "splits")
    assert one_line(error)


@pytest.mark.parametrize("name", ["../val/v0", "/etc/passwd", "../../../t000", "images/train/t000", "t000/../t001"])
def test_names_in_a_list_are_no_paths(root, tmp_path, name):
    (tmp_path / "mine.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match=r"mine\.txt: 1 of 1 names are not images for training, first"):
        make_split(folder(root), tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_bytes(b"t\xff\n")
    with pytest.raises(ValueError, match=r"mine\.txt: not a text file in UTF-8 \(byte 1\); save it as one"):
        make_split(folder(root), tmp_path / "mine.txt")


def test_missing_list(root):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such list; correct the path"):
        make_split(folder(root), "gone.txt")


def test_unknown_family(root):
    with pytest.raises(
        ValueError, match=r"split_family=st\+\+: choose u2pl \(the paper's\), cps \(UniMatch's\), unimatch_v2 or drawn"
    ):
        make_split(folder(root), 2, family="st++")


def test_families_are_nothing_to_a_data_set_without_published_lists(root):
    u2pl, cps, drawn = (make_split(folder(root), 2, family=family) for family in ("u2pl", "cps", "drawn"))
    assert u2pl == cps == drawn and drawn.origin == "drawn with seed 0"


@cache
def published_source(name: str) -> Source:
    """The names of a benchmark's images, from the lists alone; no file is opened by a published split."""
    if name == "cityscapes":
        lists = LISTS / "u2pl/cityscapes"
        train = read_list(lists / "186/labeled.txt") + read_list(lists / "186/unlabeled.txt")
        further = []
    else:
        lists = LISTS / "cps/pascal"
        every, classic = read_list(lists / "train_aug.txt"), read_list(lists / "1464/labeled.txt")
        train = classic if name == "voc" else every
        further = sorted(set(every) - set(classic)) if name == "voc" else []
    parts = train, further, read_list(lists / "val.txt")
    samples = [tuple(Sample(key, Path(f"{key}.jpg"), Path(f"{key}.png")) for key in sorted(part)) for part in parts]
    return Source(name, ("a", "b"), ((0, 0, 0), (1, 1, 1)), *samples, ())


TOTALS = {"voc": 10582, "voc_aug": 10582, "cityscapes": 2975}


@needs_lists
@pytest.mark.parametrize(("name", "family"), [key for key in PUBLISHED if key[1] != "unimatch_v2"])
def test_every_published_list_is_used_complete_and_disjoint(name, family):
    source = published_source(name)
    val = set(names(source.val))
    assert len(val) == {"cityscapes": 500}.get(name, 1449)
    for count, place in PUBLISHED[name, family].items():
        split = make_split(source, str(count), family=family, lists=LISTS)
        assert split.origin == f"published list {LISTS / place / 'labeled.txt'}"
        labeled, unlabeled = set(names(split.labeled)), set(names(split.unlabeled))
        assert len(labeled) == len(split.labeled) == count
        assert len(unlabeled) == len(split.unlabeled) == TOTALS[name] - count
        assert not labeled & unlabeled and not (labeled | unlabeled) & val
        assert not any(sample.mask for sample in split.unlabeled)


@needs_lists
def test_fractions_find_the_published_lists():
    for name, fraction, family, place in [
        ("voc", "1_8", "u2pl", "u2pl/pascal/183"),
        ("voc", "full", "cps", "cps/pascal/1464"),
        ("voc_aug", "1_16", "u2pl", "u2pl/pascal/662"),
        ("voc_aug", "1_16", "cps", "cps/pascal/1_16"),
        ("voc_aug", "1_2", "cps", "u2pl/pascal/5291_cps"),
        ("cityscapes", "1_8", "u2pl", "u2pl/cityscapes/372"),
        ("cityscapes", "1_30", "cps", "cps/cityscapes/1_30"),
    ]:
        split = make_split(published_source(name), fraction, family=family, lists=LISTS)
        assert split.origin == f"published list {LISTS / place / 'labeled.txt'}"


@needs_lists
def test_every_file_of_the_published_lists_parses():
    known = {"pascal": set(names(published_source("voc_aug").train)) | set(names(published_source("voc").val))}
    cityscapes = published_source("cityscapes")
    known["cityscapes"] = set(names(cityscapes.train)) | set(names(cityscapes.val))
    files = sorted(file for family in ("u2pl", "cps") for file in (LISTS / family).rglob("*.txt"))
    assert len(files) == 73  # 38 of PCR, 35 of UniMatch
    for file in files:
        listed = read_list(file)
        board = file.relative_to(LISTS).parts[1]
        assert listed and len(set(listed)) == len(listed) and set(listed) <= known[board], file


def named(source: Source, name: str) -> Source:
    """The same images as a data set of another name."""
    return Source(name, source.classes, source.palette, source.train, source.unlabeled, source.val, ())


@pytest.fixture
def benchmark(tmp_path, monkeypatch) -> Source:
    """A data set called voc with 100 training images; its lists are nowhere."""
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:1")
    return named(make_folder(tmp_path / "data", [[0, 1]] * 100, num_classes=2, num_unlabeled=0), "voc")


def test_a_published_list_that_cannot_be_had_is_not_replaced(benchmark, tmp_path):
    place = "u2pl/pascal/92/labeled.txt"
    with pytest.raises(ValueError, match="by hand to") as error:
        make_split(benchmark, "92", lists=tmp_path)
    assert one_line(error)
    for part in (f"http://127.0.0.1:1/{place}", str(tmp_path / place), SHA256[place], "split_family=drawn"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"voc: no folder for the u2pl list of 92 images; set lists, or family=drawn"):
        make_split(benchmark, "92")


def test_a_count_that_was_not_published_is_drawn_and_says_so(benchmark, tmp_path):
    split = make_split(benchmark, "1_8", family="cps", lists=tmp_path)
    assert (len(split.labeled), split.family, split.origin) == (13, "drawn", "drawn with seed 0")
    assert make_split(benchmark, "full", lists=tmp_path).origin == "all 100 training images"


def test_a_draw_from_a_data_set_with_published_lists_is_asked_for(benchmark, tmp_path):
    (tmp_path / "92").mkdir()
    (tmp_path / "92/labeled.txt").write_text("t000\n")  # neither this nor the published list is a draw
    for labeled in (92, "1_8"):
        split = make_split(benchmark, labeled, family="drawn", seed=3, lists=tmp_path)
        assert split == make_split(named(benchmark, "mine"), labeled, seed=3)
        assert split.origin == "drawn with seed 3"


def test_a_published_list_for_images_that_are_not_there(benchmark, tmp_path, monkeypatch):
    lists = {"labeled": "\n".join(names(benchmark.train[:92])), "unlabeled": "2008_000002\n2008_000003"}
    for part, text in lists.items():
        file = f"u2pl/pascal/92/{part}.txt"
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        monkeypatch.setitem(SHA256, file, hashlib.sha256(text.encode()).hexdigest())
    expected = r"92/unlabeled\.txt: 2 of 2 names are not images .*, first 2008_000002 .*complete the data set"
    with pytest.raises(ValueError, match=expected):
        make_split(benchmark, "92", lists=tmp_path)


def fails(root: Path, message: str, error: type[Exception] = ValueError, subset: str = "val") -> None:
    source = folder(root)
    split = Split(source.train[:5], tuple(s._replace(mask=None) for s in source.train[5:]) + source.unlabeled, "test")
    with pytest.raises(error, match=message) as caught:
        check(source, split, subset)
    assert one_line(caught)


def test_check_is_silent_on_a_sound_data_set(root, capsys):
    source = folder(root)
    split = make_split(source, "1_2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(source, split)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["train", "val"])
def test_check_names_mask_and_both_sizes(root, part):
    name = {"train": "t001", "val": "v1"}[part]
    Image.new("L", (9, 6)).save(root / f"labels/{part}/{name}.png")
    fails(
        root,
        rf"labels/{part}/{name}\.png: mask is 9x6, but .*{name}\.png is 8x6 .*; resize the mask with nearest",
    )


def test_check_takes_exif_into_account(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/val/v1.png").save(root / "images/val/v1.jpg", exif=exif)
    (root / "images/val/v1.png").unlink()
    fails(root, r"val/v1\.png: mask is 8x6, but .*v1\.jpg is 6x8 \(upright by its EXIF tag\)")


@pytest.mark.parametrize("part", ["train", "val"])
def test_check_names_wrong_label_values(root, part):
    name = {"train": "t001", "val": "v1"}[part]
    Image.fromarray(np.resize(np.array([0, 3, 254, 255], np.uint8), (6, 8))).save(root / f"labels/{part}/{name}.png")
    fails(
        root,
        rf"labels/{part}/{name}\.png: label values \[3, 254\] are not in 0\.\.2 or 255 .*; correct the mask",
    )


def test_check_refuses_masks_in_unknown_colors(root):
    Image.new("RGB", (8, 6), (9, 9, 9)).save(root / "labels/train/t001.png")
    fails(root, r"labels/train/t001\.png: mask has the color \(9, 9, 9\), which no class has; add it to classes\.txt")


@pytest.mark.parametrize("part", ["train", "val"])
def test_check_names_an_image_without_mask(root, part):
    name = {"train": "t001", "val": "v1"}[part]
    (root / f"labels/{part}/{name}.png").unlink()
    fails(root, rf"labels/{part}/{name}\.png: no mask for .*{name}\.png; add it, or use", FileNotFoundError)


@pytest.mark.parametrize("image", ["images/train/t001.png", "images/val/v1.png", "unlabeled/u1.png"])
def test_check_names_an_empty_file(root, image):
    (root / image).write_bytes(b"")
    fails(root, rf"{image}: not readable as an image \(it is empty\); replace or remove it")


@pytest.mark.parametrize("file", ["images/train/t001.png", "labels/train/t001.png", "labels/val/v1.png"])
def test_check_names_a_truncated_file(root, file):
    data = (root / file).read_bytes()
    (root / file).write_bytes(data[: len(data) - 30])
    fails(root, rf"{file}: not readable as an image .*; replace or remove it")


def test_masks_of_unlabeled_images_are_not_needed(root):
    (root / "labels/train/t005.png").unlink()
    source = folder(root)
    (root / "own.txt").write_text("t000\nt003\n")
    check(source, make_split(source, root / "own.txt"))


@pytest.mark.parametrize("copied", ["images/train/t001.png", "images/train/t005.png", "unlabeled/u1.png"])
def test_check_finds_a_copy_of_a_val_image_under_any_name(root, copied):
    shutil.copy(root / "images/val/v0.png", root / copied)
    fails(root, rf"images/val/v0\.png: val image, but a copy of .*{copied}; remove one of them")


def test_equal_sizes_are_no_overlap(tmp_path):
    source = make_folder(tmp_path, [[0, 1]] * 4, num_classes=2)
    for path in [*(tmp_path / "images").rglob("*.png"), *(tmp_path / "unlabeled").iterdir()]:
        Image.open(path).save(path.with_suffix(".bmp"))  # not compressed: all of one size
        path.unlink()
    source = folder(tmp_path)
    assert len({os.stat(sample.image).st_size for sample in source.train + source.val}) == 1
    check(source, make_split(source, 2))


def test_check_wants_labeled_and_unlabeled_disjoint_and_complete(root):
    source = folder(root)
    rest = tuple(sample._replace(mask=None) for sample in source.train[2:]) + source.unlabeled
    with pytest.raises(ValueError, match=r"t001: twice in the split \(here\); keep it labeled or unlabeled"):
        check(source, Split(source.train[:2], (source.train[1]._replace(mask=None), *rest), "here"))
    with pytest.raises(ValueError, match=r"t002: in no part of the split \(here; 2 such images\); correct"):
        check(source, Split(source.train[:2], rest[2:], "here"))
    with pytest.raises(ValueError, match=r"v0: not a training image of data \(here; the only one\); correct"):
        check(source, Split((*source.train[:2], source.val[0]), rest, "here"))


def test_check_wants_labeled_and_val_images(root):
    source = folder(root)
    everything = tuple(s._replace(mask=None) for s in source.train + source.unlabeled)
    with pytest.raises(ValueError, match=r"data: the list of labeled images is empty; add images with masks"):
        check(source, Split((), everything, "here"))
    split = make_split(source, "full")
    with pytest.raises(ValueError, match=r"data: the list of test images is empty; add images with masks"):
        check(source, split, subset="test")
    with pytest.raises(ValueError, match=r"subset 'train': choose val or test"):
        check(source, split, subset="train")


def test_check_looks_at_the_test_images_when_asked(root):
    save_pair(root, "test", "x0", np.full((6, 8), 7))
    source = folder(root)
    check(source, make_split(source, "full"))
    fails(root, r"labels/test/x0\.png: label values \[7\] are not in 0\.\.2", subset="test")
    with pytest.raises(ValueError, match=r"x0\.png: label values \[7\]"):
        check_samples(source.test)
    assert check_samples(source.val) == [0b111, 0b111]


def test_bad_files_up_to_a_share_do_not_stop_the_start(tmp_path):
    source = make_folder(tmp_path, [[0, 1]] * 10, num_classes=2, num_unlabeled=30)
    split = make_split(source, "full")
    (tmp_path / "unlabeled/u3.png").write_text("<html>")
    (tmp_path / "labels/train/t004.png").write_bytes(b"")
    check(source, split, max_skipped=0.1)
    with pytest.raises(ValueError, match=r"t004\.png: not readable as an image \(it is empty\); replace or remove it$"):
        check(source, split)
    with pytest.raises(
        ValueError, match=r"t004\.png: .*; 1 of 10 files are bad, more than data\.max_skipped=0\.05 allows"
    ):
        check(source, split, max_skipped=0.05)
    (tmp_path / "labels/train/t004.png").unlink()
    (tmp_path / "unlabeled/u4.png").unlink()
    (tmp_path / "unlabeled/u4.png").symlink_to("gone.png")
    check(source, split, max_skipped=0.1)
    for number in (5, 6):
        (tmp_path / f"unlabeled/u{number}.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"unlabeled/.*; 4 of 30 files are bad, more than data\.max_skipped=0\.1 allows"
    ):
        check(source, split, max_skipped=0.1)
    (tmp_path / "labels/val/v0.png").write_bytes(b"")  # scores count every image
    with pytest.raises(ValueError, match=r"labels/val/v0\.png: not readable"):
        check(source, split, max_skipped=1.0)


def deepen(folder: Path, brightest: int, colors: bool = False) -> None:
    """Make images of 16 bits of those in a folder."""
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        size = (6, 8, 3) if colors else (6, 8)
        pixels = np.random.default_rng([number, *path.parent.name.encode()]).integers(0, brightest + 1, size)
        cv2.imwrite(str(path), pixels.astype(np.uint16))


@pytest.mark.parametrize("colors", [False, True])
def test_images_of_16_bits_that_are_nearly_black(root, colors):
    deepen(root / "images/train", 4095, colors)
    remedy = (
        "scale colors to 8 bits, or train with dataset.max_value=65535"
        if colors
        else "train with dataset.max_value at what is white: 4095 .*65535"
    )
    fails(root, rf"train/t000\.png: 16 bits, and like all images of 16 bits it .* nearly black; {remedy}")
    source = folder(root, max_value=65535)  # they are meant so
    check(source, make_split(source, "full"))
    deepen(root / "unlabeled", 60_000)  # a dark scene among others
    source = folder(root)
    check(source, make_split(source, "full"))
    deepen(root / "unlabeled", 4095)
    deepen(root / "images/train", 9_000, colors)
    source = folder(root)
    check(source, make_split(source, "full"))


def test_dark_images_of_8_bits_are_fine(root):
    for path in (root / "images/train").iterdir():
        seed = [*path.name.encode()]
        Image.fromarray(np.random.default_rng(seed).integers(0, 9, (6, 8, 3), dtype=np.uint8)).save(path)
    source = folder(root)
    check(source, make_split(source, "full"))


def test_names_like_files_are_read_from_the_lists_that_a_run_writes(tmp_path):
    make_folder(tmp_path, [[0, 1]] * 4, num_classes=2)
    for part in ("images", "labels"):
        (tmp_path / part / "train/t001.png").rename(tmp_path / part / "train/photo.jpg.png")
    source = folder(tmp_path)
    split = make_split(source, "full")
    write(split, tmp_path / "run")
    assert "photo.jpg" in read_list(tmp_path / "run/labeled.txt")  # also without the samples
    for lines in ("photo.jpg", "photo.jpg.png"):
        (tmp_path / "own.txt").write_text(f"{lines}\nt000.png\nt002\n")
        assert names(make_split(source, tmp_path / "own.txt").labeled) == ["photo.jpg", "t000", "t002"]
    assert make_split(source, tmp_path / "run/labeled.txt").labeled == split.labeled
    assert split_of_run(source, tmp_path / "run").labeled == split.labeled


def test_the_split_of_a_run(root, tmp_path):
    source = folder(root)
    (tmp_path / "own.txt").write_text("t003\nt001\n")
    written = {"own": make_split(source, tmp_path / "own.txt"), "drawn": make_split(source, 3, seed=2)}
    written["cps"] = replace(written["drawn"], origin="published list here/labeled.txt", family="cps")
    for family, split in written.items():
        write(split, tmp_path / family)
        again = split_of_run(source, tmp_path / family, "cps")
        assert again == replace(split, complete=False) and again.family == family
        check(source, again)
    image = root / "images/train/t003.png"
    image.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"own/labeled\.txt: t003 is labeled in this run, but no training image"
    ) as e:
        split_of_run(folder(root), tmp_path / "own")
    assert one_line(e) and "put it back" in str(e.value)
    shutil.copy(root / "images/train/t000.png", image)
    for name in ("u0", "u1"):
        (root / f"unlabeled/{name}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"unlabeled\.txt: u0 is unlabeled in this run, .* \(2 such images\); put"
    ):
        split_of_run(folder(root), tmp_path / "own")
    with pytest.raises(FileNotFoundError, match=r"gone/labeled\.txt: no such list"):
        split_of_run(folder(root), tmp_path / "gone")


def test_black_and_white_masks_are_refused(tmp_path):
    source = make_folder(tmp_path, [[0]] * 3, num_classes=2)
    for part in ("train", "val"):
        for path in (tmp_path / "labels" / part).iterdir():
            Image.fromarray(np.resize(np.array([0, 255], np.uint8), (6, 8))).save(path)
    with pytest.raises(ValueError, match=r"no mask shows a second class, and 255 is ignored; write 0/255 .* as 0/1"):
        check(source, make_split(source, "full"))
    (tmp_path / "classes.txt").write_text("0 background 0 0 0\n1 cell 255 255 255\n")
    source = folder(tmp_path, masks="colors")
    check(source, make_split(source, "full"))


V2_LISTS = SHARED / "splits/unimatch_v2"


@pytest.mark.skipif(not V2_LISTS.is_dir(), reason=f"{V2_LISTS} is not part of the repository")
@pytest.mark.parametrize(("name", "total", "fraction"), [("ade20k", 20_210, "1_32"), ("coco", 118_287, "1_512")])
def test_unimatch_v2s_lists_are_the_published_ones(tmp_path: Path, name: str, total: int, fraction: str) -> None:
    counts = PUBLISHED[name, "unimatch_v2"]
    for count, place in counts.items():
        text = (V2_LISTS / f"{place.removeprefix('unimatch_v2/')}.txt").read_bytes()
        assert hashlib.sha256(text).hexdigest() == SHA256[f"{place}/labeled.txt"]
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "labeled.txt").write_bytes(text)
        assert len(set(read_list(tmp_path / place / "labeled.txt"))) == count
    listed = set(read_list(tmp_path / f"unimatch_v2/{name}/{fraction}/labeled.txt"))
    start = "ADE_train_{:08d}" if name == "ade20k" else "{:012d}"
    others = (start.format(number) for number in range(1_000_000, 2_000_000))
    names = sorted(listed | {next(others) for _ in range(total - len(listed))})
    samples = tuple(Sample(each, f"{each}.jpg", f"{each}.png") for each in names)
    source = Source(name, ("a", "b"), ((0, 0, 0), (1, 1, 1)), samples, (), samples[:1], ())
    split = make_split(source, fraction, family="unimatch_v2", lists=tmp_path)
    assert {s.name for s in split.labeled} == listed and split.family == "unimatch_v2"
    assert len(split.unlabeled) == total - len(listed) and not any(s.mask for s in split.unlabeled)
