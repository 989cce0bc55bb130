"""Manifests of unlabeled images: the same images in the same order as from their folder, or from tars."""

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.files import Sample, num_bytes, read_bytes, read_image
from pcr_seg.data.pool import Pool
from pcr_seg.data.prepare import manifest
from pcr_seg.data.sources import Source, folder
from pcr_seg.data.splits import check, make_split, split_of_run, write


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four training images, two to validate on, and seven without masks, whose names sort in another way as paths."""
    root = tmp_path / "set"
    for part in ("images/train", "images/val", "labels/train", "labels/val", "unlabeled/day"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("0 ground 0 0 0\n1 figure 255 0 0\n")
    for part, number in (("train", 4), ("val", 2)):
        for i in range(number):
            image(100 * number + i).save(root / f"images/{part}/{part}{i}.png")
            Image.fromarray(np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 2).save(
                root / f"labels/{part}/{part}{i}.png"
            )
    for i, name in enumerate(("a", "a-b", "j", "day/a", "day/ä", "day/street_00012", "z")):
        image(i).save(root / f"unlabeled/{name}.{('jpg', 'png')[i % 2]}")
    return root


def with_manifest(root: Path, **options: str) -> Source:
    file = root / "unlabeled.manifest"
    assert manifest(folder(root, **options), file) == []
    return folder(root, unlabeled=str(file))


def files(samples: tuple[Sample, ...]) -> list[tuple[str, str]]:
    return [(sample.name, sample.image) for sample in samples]


def test_a_manifest_is_the_folder(root: Path) -> None:
    listed, pool = folder(root), with_manifest(root).unlabeled
    assert files(pool) == files(listed.unlabeled) and len(pool) == 7
    assert pool[-1] == listed.unlabeled[-1] and pool[1:5:2] == listed.unlabeled[1:5:2]
    assert [pool.find(sample.name) for sample in listed.unlabeled] == list(listed.unlabeled)
    assert [pool.find(name) for name in ("", "a-a", "zz")] == [None] * 3
    assert pool.sizes.tolist() == [Path(sample.image).stat().st_size for sample in listed.unlabeled]
    with pytest.raises(IndexError):
        pool[7]


def test_a_training_sees_the_same_images_in_the_same_order(root: Path) -> None:
    options = {"crop_size": 8, "batch_size": 2, "num_workers": 0}
    one, other = (SegmentationData(s, 2, **options) for s in (folder(root), with_manifest(root)))
    assert files(one.split.unlabeled) == files(other.split.unlabeled)
    batches = [[batch["name"] for batch in data.train_dataloader()["unlabeled"]] for data in (one, other)]
    assert batches[0] == batches[1] and len(batches[0]) > 3


def test_a_worker_gets_the_name_of_the_file_alone(root: Path) -> None:
    pool = with_manifest(root).unlabeled
    content = pickle.dumps(pool)
    assert len(content) < 500 and files(pickle.loads(content)) == files(pool)


def test_manifest_and_images_move_together(root: Path) -> None:
    with_manifest(root)
    moved = root.rename(root.with_name("moved"))
    pool = folder(moved, unlabeled=str(moved / "unlabeled.manifest")).unlabeled
    check(folder(moved), make_split(folder(moved), 2))
    assert all(read_image(sample.image).shape == (12, 16, 3) for sample in pool)
    assert files(pool) == files(folder(moved).unlabeled)


@pytest.mark.parametrize("place", ["elsewhere", "elsewhere/inside", "."])
def test_images_elsewhere(root: Path, tmp_path: Path, place: str) -> None:
    """The manifest may lie beside, above or apart from its images."""
    shutil.copytree(root / "unlabeled", tmp_path / "elsewhere/inside")
    file = tmp_path / place / "x.manifest"
    source = folder(root, unlabeled=str(tmp_path / "elsewhere/inside"))
    assert manifest(source, file) == []
    assert files(Pool(file)) == files(source.unlabeled)


def pack(root: Path, shard: str, **options: str) -> Path:
    """The unlabeled images in a tar, each with a file that is no image beside it, as WebDataset has them."""
    path = root / "shards" / shard
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, options.get("mode", "w")) as tar:
        for file in sorted((root / "unlabeled").rglob("*.*g")):
            name = str(file.relative_to(root / "unlabeled"))
            tar.add(file, name)
            note = tarfile.TarInfo(name.rpartition(".")[0] + ".json")
            note.size = 2
            tar.addfile(note, io.BytesIO(b"{}"))
    return path


def test_images_in_tars_are_read_by_their_places(root: Path) -> None:
    pack(root, "00.tar"), pack(root, "01.tar")
    source = with_manifest(root, unlabeled=str(root / "shards/*.tar"))
    assert len(source.unlabeled) == 14
    for sample in reversed(source.unlabeled):
        shard, _, name = sample.name.removeprefix("shards/").partition("/")
        [file] = (root / "unlabeled").glob(f"{name}.*")
        assert shard in ("00", "01") and read_bytes(sample.image) == file.read_bytes()
        assert num_bytes(sample.image) == file.stat().st_size
        assert np.array_equal(read_image(sample.image), read_image(file))
    check(source, make_split(source, 2))


def test_decoded_images_of_tars_are_kept(root: Path, tmp_path: Path) -> None:
    pack(root, "00.tar")
    source = with_manifest(root, unlabeled=str(root / "shards/00.tar"))
    data = SegmentationData(source, "full", crop_size=8, batch_size=2, num_workers=0, cache=str(tmp_path / "cache"))
    assert len(list(data.train_dataloader()["unlabeled"])) > 2 and len(list((tmp_path / "cache").iterdir())) >= 6


def test_bad_images_are_left_out_and_named(root: Path) -> None:
    (root / "unlabeled/day/a.png").write_bytes(b"")
    [bad] = manifest(folder(root), root / "x.manifest")
    assert "day/a.png: not readable as an image (it is empty)" in bad and len(Pool(root / "x.manifest")) == 6
    shutil.rmtree(root / "unlabeled")
    with pytest.raises(ValueError, match="no images without masks; set dataset"):
        manifest(folder(root), root / "x.manifest")


def test_the_check_of_a_manifest(root: Path) -> None:
    """Copies of val images by their sizes, and a look at some images."""
    shutil.copy(root / "images/val/val1.png", root / "unlabeled/day/copy.png")
    source = with_manifest(root)
    with pytest.raises(ValueError, match=r"val1\.png: val image, but a copy of .*day/copy\.png"):
        check(source, make_split(source, 2))
    (root / "unlabeled/day/copy.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"copy\.png: no such image"):
        check(source, make_split(source, 2))


def test_names_of_training_images_are_refused(root: Path) -> None:
    image(9).save(root / "unlabeled/train2.jpg")
    file = root / "x.manifest"
    shutil.move(root / "images/train/train2.png", root / "kept.png")
    manifest(folder(root), file)
    shutil.move(root / "kept.png", root / "images/train/train2.png")
    with pytest.raises(ValueError, match=r"unlabeled/train2\.jpg: same name as .*images/train/train2\.png"):
        folder(root, unlabeled=str(file))


def test_a_run_keeps_its_split_and_its_manifest(root: Path, tmp_path: Path) -> None:
    source = with_manifest(root)
    split = make_split(source, 2)
    write(split, tmp_path / "splits")
    lines = (tmp_path / "splits/unlabeled.txt").read_text().splitlines()
    assert len(lines) == 1 + 2 + 1 and lines[-1].startswith("# and the 7 images of ")
    again = split_of_run(source, tmp_path / "splits")
    assert again.labeled == split.labeled and files(again.unlabeled) == files(split.unlabeled)
    image(9).save(root / "unlabeled/more.png")
    other = with_manifest(root)
    with pytest.raises(ValueError, match=r"unlabeled\.manifest: is not what the run has"):
        split_of_run(other, tmp_path / "splits")
    with pytest.raises(ValueError, match=r"is not what the run has"):  # by the images that stand in its folder
        split_of_run(folder(root), tmp_path / "splits")


def test_a_missing_manifest(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.manifest: no such manifest; write it with prepare\.py manifest"):
        folder(root, unlabeled=str(root / "x.manifest"))
