"""Preparation, on small archives of the published layout: what is written, kept, resumed, and refused."""

import hashlib
import io
import json
import os
import runpy
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_published import LISTS, needs_lists, serving

from pcr_seg.data import sources
from pcr_seg.data.files import read_mask
from pcr_seg.data.prepare import (
    SBD,
    VOC,
    Archive,
    Counts,
    ade20k,
    cityscapes,
    coco,
    download,
    prepare,
    unpack,
    verify,
    voc,
)
from pcr_seg.data.published import MIRROR
from pcr_seg.data.synthetic import synthetic

TRAIN, VAL, AUG = ["2007_000032", "2007_000039"], ["2007_000033"], ["2008_000002", "2008_000005", "2009_000007"]
SPARE = "2011_000001"  # an image for detection only
COUNTS = Counts(images=7, train=2, val=1, train_aug=5)
PALETTE = [value for color in sources.VOC_PALETTE for value in color]
SIZE = (6, 8)


def png(mask: np.ndarray, palette: list[int] | None = None) -> bytes:
    """A mask as the bytes of a PNG, with VOC's palette if one is given."""
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(palette)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def jpg(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def mat(mask: np.ndarray) -> bytes:
    """SBD's file of one image."""
    content = io.BytesIO()
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [np.zeros(SIZE, np.uint8)] * 20
    savemat(content, {"GTcls": {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": [1]}})
    return content.getvalue()


def pack_tar(path: Path, files: dict[str, bytes], mode: str) -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pack_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)


def voc_mask(name: str) -> np.ndarray:
    """VOC's mask, with void; SBD's has another class everywhere and no void."""
    mask = np.full(SIZE, int(name[-1]) + 1, np.uint8)
    mask[0] = 255
    return mask


def sbd_mask(name: str) -> np.ndarray:
    return np.full(SIZE, int(name[-1]) + 11, np.uint8)


def test_addresses_are_those_of_torchvision() -> None:
    from torchvision.datasets import SBDataset
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    assert (*VOC, *SBD) == (*(DATASET_YEAR_DICT["2012"][key] for key in ("url", "md5")), SBDataset.url, SBDataset.md5)


def voc_files() -> dict[str, bytes]:
    base = "VOCdevkit/VOC2012"
    files = {f"{base}/JPEGImages/{name}.jpg": jpg(i) for i, name in enumerate([*TRAIN, *VAL, *AUG, SPARE])}
    files |= {f"{base}/SegmentationClass/{name}.png": png(voc_mask(name), PALETTE) for name in [*TRAIN, *VAL]}
    files |= {f"{base}/SegmentationObject/{name}.png": png(voc_mask(name), PALETTE) for name in [*TRAIN, *VAL]}
    for part, ids in (("train", TRAIN), ("val", VAL), ("trainval", [*TRAIN, *VAL])):
        files[f"{base}/ImageSets/Segmentation/{part}.txt"] = ("\n".join(ids) + "\n").encode()
    return files | {f"{base}/ImageSets/Main/car_train.txt": b"", f"{base}/Annotations/{SPARE}.xml": b"<annotation/>"}


def sbd_files() -> dict[str, bytes]:
    base = "benchmark_RELEASE/dataset"
    ids = [TRAIN[0], *VAL, *AUG]  # VOC's own masks exist for the first two
    files = {f"{base}/cls/{name}.mat": mat(sbd_mask(name)) for name in ids}
    files |= {f"{base}/inst/{name}.mat": b"instances" for name in ids} | {f"{base}/img/{AUG[0]}.jpg": jpg(0)}
    return files | {f"{base}/train.txt": "\n".join(ids).encode(), "benchmark_RELEASE/README": b""}


@pytest.fixture
def archives(tmp_path) -> Iterator[dict]:
    """VOC and SBD on a server: arguments for `voc`, and the server."""
    folder = tmp_path / "server"
    folder.mkdir()
    pack_tar(folder / "VOC.tar", voc_files(), "w")
    pack_tar(folder / "benchmark.tgz", sbd_files(), "w:gz")
    with serving(folder) as server:

        def archive(name: str) -> Archive:
            return Archive(f"{server.url}/{name}", hashlib.md5((folder / name).read_bytes()).hexdigest())

        yield {"devkit": archive("VOC.tar"), "sbd": archive("benchmark.tgz"), "counts": COUNTS, "server": server}


def prepare_voc(root: Path, archives: dict) -> sources.Source:
    return voc(root, **{key: value for key, value in archives.items() if key != "server"})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_voc_and_sbd_become_one_data_set(tmp_path, archives):
    root = tmp_path / "data/VOCdevkit/VOC2012"
    source = prepare_voc(root, archives)
    masks = {path.stem: Image.open(path) for path in (root / "SegmentationClassAug").iterdir()}
    assert sorted(masks) == sorted([*TRAIN, *AUG])  # and so none of val
    assert all(mask.mode == "L" for mask in masks.values())
    for name, mask in masks.items():
        expected = voc_mask(name) if name in TRAIN else sbd_mask(name)  # VOC's wins over SBD's
        np.testing.assert_array_equal(np.array(mask), expected)
    assert (root / "ImageSets/Segmentation/train_aug.txt").read_text().split() == sorted([*TRAIN, *AUG])
    assert [sample.name for sample in source.train] == sorted([*TRAIN, *AUG])
    np.testing.assert_array_equal(read_mask(source.val[0]), voc_mask(VAL[0]))
    classic = sources.voc(root)
    assert [sample.name for sample in classic.train] == TRAIN
    assert [sample.name for sample in classic.unlabeled] == sorted(AUG)
    written = {Path(name).parts[0] for name in snapshot(root)}
    assert written == {"JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["VOC.tar", "VOCdevkit", "benchmark.tgz"]


def test_a_second_call_changes_nothing_and_needs_no_archives(tmp_path, archives):
    root = tmp_path / "data"
    prepare_voc(root, archives)
    for archive in ("VOC.tar", "benchmark.tgz"):
        (root / archive).unlink()
    asked, before = list(archives["server"].requests), snapshot(root)
    assert root.joinpath("VOCdevkit/VOC2012/SegmentationClassAug").is_dir()  # another root holds the devkit
    prepare_voc(root, archives)
    assert snapshot(root) == before and archives["server"].requests == asked


def test_a_call_that_was_broken_off_goes_on(tmp_path, archives):
    root = tmp_path / "data/VOCdevkit/VOC2012"
    prepare_voc(root, archives)
    asked, before = list(archives["server"].requests), snapshot(root)
    lost = [f"JPEGImages/{SPARE}.jpg", f"SegmentationClassAug/{AUG[1]}.png", f"SegmentationClassAug/{TRAIN[0]}.png"]
    for name in [*lost, "ImageSets/Segmentation/train_aug.txt"]:
        (root / name).unlink()
    (root / f"JPEGImages/{AUG[0]}.jpg").write_bytes(b"half of")
    prepare_voc(root, archives)
    after = snapshot(root)
    assert {name: size for name, (size, _) in after.items()} == {name: size for name, (size, _) in before.items()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {*lost, "ImageSets/Segmentation/train_aug.txt", f"JPEGImages/{AUG[0]}.jpg"}
    np.testing.assert_array_equal(np.array(Image.open(root / lost[2])), voc_mask(TRAIN[0]))
    assert archives["server"].requests == asked  # the archives were kept and are whole


def test_a_damaged_archive_is_downloaded_again(tmp_path, archives):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/VOC.tar").write_bytes(b"half of it")
    prepare_voc(tmp_path / "data", archives)


def test_masks_of_others_are_kept(tmp_path, archives):
    root = tmp_path / "data/VOCdevkit/VOC2012"
    (root / "SegmentationClassAug").mkdir(parents=True)
    other = np.full(SIZE, 7, np.uint8)
    (root / f"SegmentationClassAug/{AUG[2]}.png").write_bytes(png(other))
    (root / f"SegmentationClassAug/{VAL[0]}.png").write_bytes(png(other))
    source = prepare_voc(root, archives)
    assert np.array(Image.open(root / f"SegmentationClassAug/{AUG[2]}.png")).max() == 7
    assert VAL[0] not in [sample.name for sample in source.train]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 3}, r"voc: 2 train images where 3 belong; what was there before is not the published set: replace"),
        ({"val": 2}, r"voc: 1 val images where 2 belong; "),
        (
            {"train_aug": 6},
            r"train_aug\.txt: SegmentationClassAug has 5 masks that are not of val, but 6 belong there;",
        ),
        (
            {"train_aug": 4},
            r"train_aug\.txt: SegmentationClassAug has 5 masks that are not of val, but 4 belong there;",
        ),
    ],
)
def test_counts_are_verified(tmp_path, archives, counts, message):
    archives["counts"] = COUNTS._replace(**counts)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_voc(tmp_path / "data", archives)
    one_line(caught)
    assert not list(tmp_path.rglob("train_aug.txt"))


def test_a_list_of_others_that_does_not_fit_is_an_error(tmp_path, archives):
    root = tmp_path / "data/VOCdevkit/VOC2012"
    prepare_voc(root, archives)
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(TRAIN))
    with pytest.raises(ValueError, match=r"voc_aug: 2 train images where 5 belong; what was there"):
        prepare_voc(root, archives)
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join([*TRAIN, *AUG[:2], "2010_000001"]))
    with pytest.raises(
        ValueError, match=r"5 train images where 5 belong and 2 files missing, first .*2010_000001\.jpg"
    ):
        verify(sources.voc_aug(root), 5, 1)


def test_scipy_is_asked_for_before_its_download(tmp_path, archives, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"SBD's masks are MATLAB files, which scipy reads: pip install scipy"):
        prepare_voc(tmp_path / "data", archives)
    assert not any("benchmark" in path for path in archives["server"].requests)


def test_archives_are_torchvisions():
    assert VOC.url.endswith("/VOCtrainval_11-May-2012.tar") and SBD.url.endswith("/benchmark.tgz")
    assert len(VOC.md5) == len(SBD.md5) == 32
    assert Counts() == (17125, 1464, 1449, 10582)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda file: file.unlink(), "HTTP Error 404"),
        (lambda file: file.write_bytes(b"<html>moved</html>"), "File not found or corrupted"),
        (lambda file: Path(f"{file}.short").write_bytes(file.read_bytes()[:-7]), "File not found or corrupted"),
        (lambda file: Path(f"{file}.hang").touch(), "timed out"),
    ],
)
def test_downloads_that_fail(tmp_path, archives, break_it, reason):
    break_it(tmp_path / "server/VOC.tar")
    with pytest.raises(ValueError, match=reason) as caught:
        download(archives["devkit"], tmp_path / "data", timeout=0.3)
    path, text = tmp_path / "data/VOC.tar", one_line(caught)
    assert text.startswith(f"{archives['devkit'].url}: ")
    assert text.endswith(f"; download it by hand to {path} (MD5 {archives['devkit'].md5})")
    assert not path.parent.exists() or not list(path.parent.iterdir())


def test_no_server_for_a_download(tmp_path, archives, capsys):
    gone = archives["devkit"]._replace(url="http://127.0.0.1:1/VOC.tar")
    with pytest.raises(
        ValueError, match=r"VOC\.tar: \[Errno \d+\] Connection refused; download it by hand to"
    ) as caught:
        download(gone, tmp_path)
    one_line(caught)
    assert capsys.readouterr() == (f"downloading {gone.url} to {tmp_path / 'VOC.tar'}\n", "")


def test_nothing_is_unpacked_outside_of_the_folder(tmp_path):
    wanted = r"a/\w+/\w+\.png"
    evil = ["../x.png", "/a/b/x.png", "a/../x.png", "a/b/../../../x.png", "a/b/c/x.png", "a\\b\\x.png", "a/b/.png"]
    files = dict.fromkeys(evil, b"evil") | {"a/b/good.png": b"good"}
    pack_zip(tmp_path / "x.zip", files)
    pack_tar(tmp_path / "x.tar", files, "w")
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("a/b/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    for archive in ("x.zip", "x.tar"):
        unpack(tmp_path / archive, tmp_path / f"{archive}_in/deep/target", wanted)
        assert list(snapshot(tmp_path / f"{archive}_in")) == ["deep/target/a/b/good.png"]


LEFT, FINE = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"
STREETS = {
    "train": ["aachen_000000_000019", "ulm_000001_000019"],
    "val": ["lindau_000000_000019"],
    "test": ["bonn_0_0"],
}


def zip_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Contents of the two zip files; labelIds 7, 8, 33 and 0 are road, sidewalk, bicycle and ignored."""
    images, masks = {"README": b"", "license.txt": b"terms"}, {"README": b"", "license.txt": b"terms"}
    ids = np.resize(np.array([7, 8, 33, 0], np.uint8), SIZE)
    for subset, frames in STREETS.items():
        for frame in frames:
            place = f"{subset}/{frame.partition('_')[0]}/{frame}"
            images[f"leftImg8bit/{place}_leftImg8bit.png"] = png(np.zeros(SIZE, np.uint8))
            for kind in ("labelIds", "instanceIds", "color"):
                masks[f"gtFine/{place}_gtFine_{kind}.png"] = png(ids)
            masks[f"gtFine/{place}_gtFine_polygons.json"] = b"{}"
    return images, masks


@pytest.fixture
def zips(tmp_path) -> Path:
    """A folder with the zip files of Cityscapes."""
    for name, files in zip((LEFT, FINE), zip_files(), strict=True):
        pack_zip(tmp_path / "cityscapes" / name, files)
    return tmp_path / "cityscapes"


def test_cityscapes_is_unpacked_as_far_as_it_is_read(zips):
    source = cityscapes(zips, num_train=2, num_val=1)
    expected = {
        f"leftImg8bit/{s}/{f.partition('_')[0]}/{f}_leftImg8bit.png" for s in ("train", "val") for f in STREETS[s]
    }
    expected |= {
        name.replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds") for name in expected
    }
    assert set(snapshot(zips)) == expected | {LEFT, FINE}
    assert [sample.name for sample in source.train] == STREETS["train"]
    assert sorted({*read_mask(source.val[0]).ravel().tolist()}) == [0, 1, 18, 255]  # trainIds, from labelIds


def test_cityscapes_goes_on_and_does_nothing_twice(zips):
    cityscapes(zips, num_train=2, num_val=1)
    before = snapshot(zips)
    cityscapes(zips, num_train=2, num_val=1)
    assert snapshot(zips) == before
    lost, cut = (name for name in before if "aachen" in name)
    (zips / lost).unlink()
    os.truncate(zips / cut, 20)  # unpacked by hand and broken off
    cityscapes(zips, num_train=2, num_val=1)
    after = snapshot(zips)
    assert {name for name in after if after[name] != before[name]} == {lost, cut}
    assert after[cut][0] == before[cut][0]
    for name in (LEFT, FINE):
        (zips / name).unlink()
    cityscapes(zips, num_train=2, num_val=1)


def test_cityscapes_says_where_its_files_come_from(zips, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"registered users only; log in at https://www\.city") as caught:
        cityscapes(tmp_path / "empty")
    assert f"put {LEFT} and {FINE} into {tmp_path / 'empty'}, and run prepare.py" in one_line(caught)
    (zips / FINE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"put {FINE} into .*cityscapes, and run prepare\.py again"):
        cityscapes(zips, num_train=2, num_val=1)


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_cityscapes_names_a_damaged_zip(zips, damage):
    content = bytearray((zips / FINE).read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        start = content.index(b"_gtFine_labelIds.png") + 40
        content[start : start + 8] = b"\xff" * 8
    else:
        content = b"<html>log in</html>"
    (zips / FINE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FINE}: damaged \(.*\); download it again") as caught:
        cityscapes(zips, num_train=2, num_val=1)
    one_line(caught)


def test_cityscapes_is_counted(zips):
    with pytest.raises(ValueError, match=r"cityscapes: 2 train images where 2975 belong; ") as caught:
        cityscapes(zips)
    one_line(caught)
    _, masks = zip_files()
    del masks["gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"]
    pack_zip(zips / FINE, masks)
    (zips / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=r"1 val images where 1 belong and 1 files missing, first .*_labelIds\.png"):
        cityscapes(zips, num_train=2, num_val=1)


def test_ade20k_is_unpacked(tmp_path):
    top, files = "ADEChallengeData2016", {"ADEChallengeData2016/objectInfo150.txt": b"names"}
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        files[f"{top}/images/{part}/{name}.jpg"] = jpg(0)
        files[f"{top}/annotations/{part}/{name}.png"] = png(np.full(SIZE, 3, np.uint8))
    with pytest.raises(FileNotFoundError, match=r"put ADEChallengeData2016\.zip into .*, and run prepare\.py again"):
        ade20k(tmp_path)
    pack_zip(tmp_path / "ADEChallengeData2016.zip", files)
    source = ade20k(tmp_path, num_train=1, num_val=1)
    assert (read_mask(source.train[0]) == 2).all() and not (tmp_path / top / "objectInfo150.txt").exists()


def test_coco_is_unpacked_and_drawn(tmp_path):
    pytest.importorskip("pycocotools", reason="needs the imports extra")
    annotations = {}
    for part, name in (("train", "000000000009"), ("val", "000000000139")):
        pack_zip(tmp_path / f"{part}2017.zip", {f"{part}2017/{name}.jpg": jpg(0)})
        image = {"id": 9, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        content = json.dumps({"images": [image], "annotations": []}).encode()
        annotations |= {f"annotations/instances_{part}2017.json": content, f"annotations/captions_{part}2017.json": b""}
    with pytest.raises(FileNotFoundError, match=r"put annotations_trainval2017\.zip into .* run prepare\.py"):
        coco(tmp_path, num_train=1, num_val=1)
    pack_zip(tmp_path / "annotations_trainval2017.zip", annotations)
    source = coco(tmp_path, num_train=1, num_val=1)
    assert (read_mask(source.val[0]) == 0).all() and not list(tmp_path.glob("annotations/captions*"))


def test_the_generated_set_is_made(tmp_path):
    read = partial(synthetic, str(tmp_path), num_train=2, num_val=1, size=16)
    expected = f"synthetic is ready in {tmp_path}: 2 train, 0 unlabeled, 1 val, 0 test images, 0 published splits"
    assert prepare("synthetic", tmp_path, read, tmp_path / "splits") == expected
    mask = read().val[0].mask
    Image.new("RGB", (16, 16)).save(mask)
    with pytest.raises(ValueError, match=r"mask has the color \(0, 0, 0\), which no class has"):
        prepare("folder", tmp_path, read, tmp_path / "splits")


@needs_lists
def test_published_lists_are_fetched(tmp_path, monkeypatch):
    read = partial(synthetic, str(tmp_path), num_train=2, num_val=1, size=16)
    with serving(LISTS) as server:
        monkeypatch.setenv(MIRROR, server.url)
        line = prepare(
            "synthetic",
            tmp_path,
            lambda: sources.folder(Path(read().train[0].image).parents[2], "cityscapes"),
            tmp_path,
        )
    assert line.endswith("9 published splits")
    assert len(list(tmp_path.glob("*/cityscapes/*/labeled.txt"))) == 9


@pytest.mark.parametrize(("reader", "layout"), [("folder", "images/{train,val}/NAME.jpg, "), ("camvid", "trainannot/")])
def test_own_data_have_to_be_there(tmp_path, reader, layout):
    with pytest.raises(FileNotFoundError, match=r"gone: no such folder; set dataset\.root to one that holds") as caught:
        prepare(reader, tmp_path / "gone", dict, tmp_path / "splits")
    assert layout in one_line(caught)


def test_the_command(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "prepare.py"
    small = ["dataset.num_train=2", "dataset.num_val=1", "dataset.size=16"]
    monkeypatch.setattr(sys, "argv", [str(script), *small, f"dataset.root={tmp_path}"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"synthetic is ready in {tmp_path}: 2 train, ")
    monkeypatch.setattr(sys, "argv", [str(script), "dataset=cityscapes", f"dataset.root={tmp_path}/none"])
    with pytest.raises(
        SystemExit, match=rf"error: {tmp_path}/none/{LEFT}: no such file, and Cityscapes gives"
    ) as caught:
        runpy.run_path(str(script), run_name="__main__")
    one_line(caught)
