"""Manifests of unlabeled images: the same images in the same order from their folder, from tars and from URLs."""

import functools
import gc
import io
import os
import pickle
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from conftest import small_config
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.features import FixedView, FrozenFeatures
from pcr_seg.data.files import Sample, image_size, num_bytes, read_bytes, read_header, read_image
from pcr_seg.data.pool import Pool
from pcr_seg.data.prepare import manifest
from pcr_seg.data.sources import Source, folder
from pcr_seg.data.splits import check, make_split, split_of_run, write
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.mlp import MLP
from pcr_seg.training.checkpoints import LAST, PREVIOUS
from pcr_seg.training.fit import fit


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
        for file in sorted((root / "unlabeled").rglob("*.*")):
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


def test_headers_in_tars_are_those_of_the_files(root: Path) -> None:
    """Long before the pixels, on further pages, or sideways."""
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in {
        "l.jpg": {"icc_profile": bytes(150_000), "exif": exif},
        "l.png": {"icc_profile": np.random.default_rng(1).bytes(150_000)},
        "l.tif": {"save_all": True, "append_images": [large]},
        "l.webp": {"lossless": True, "exif": exif},
        "l.bmp": {},
    }.items():
        shutil.rmtree(root / "unlabeled"), (root / "unlabeled").mkdir()
        large.save(root / "unlabeled" / name, **options)
        [found] = folder(root, unlabeled=str(pack(root, "00.tar"))).unlabeled
        file = root / "unlabeled" / name
        assert read_header(found.image) == read_header(file) and image_size(found.image) == image_size(file), name


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


class Server(SimpleHTTPRequestHandler):
    """A folder over http, with parts of files (RFC 9110, section 14)."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    gives_parts = True
    sent: list[int] = []  # noqa: RUF012  bytes of each part, of all servers

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not (wanted and self.gives_parts and file.is_file()):
            super().do_GET()
            return
        content, start = file.read_bytes(), int(wanted[1])
        part = content[start : int(wanted[2]) + 1 if wanted[2] else None]
        if not part:
            self.send_error(416)
            return
        self.sent.append(len(part))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(root: Path) -> Iterator[str]:
    """Of the data set's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.sent.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pools(root: Path, url: str) -> tuple[Pool, Pool]:
    """The images of two tars, on this disk and at the URL; the manifests are here.manifest and there.manifest."""
    pack(root, "00.tar"), pack(root, "01.tar")
    for place, name in ((root, "here"), (url, "there")):
        assert manifest(folder(root, unlabeled=f"{place}/shards/*.tar"), root / f"{name}.manifest") == []
    return Pool(root / "here.manifest"), Pool(root / "there.manifest")


def test_tars_at_a_url_are_those_of_a_disk(root: Path, url: str) -> None:
    here, there = pools(root, url)
    assert [sample.name for sample in there] == [sample.name for sample in here] and len(there) == 14
    assert there.sizes.tolist() == here.sizes.tolist() and there.find(there[3].name) == there[3]
    Server.sent.clear()
    assert [read_bytes(sample.image) for sample in there] == [read_bytes(sample.image) for sample in here]
    assert Server.sent == [512 + size for size in there.sizes], "one request for each, of its place alone"
    assert all(np.array_equal(read_image(a.image), read_image(b.image)) for a, b in zip(here, there, strict=True))


def test_a_manifest_needs_a_small_part_of_a_tar(root: Path, url: str) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 1000, 3), np.uint8))
    for name in ("l1.jpg", "l2.png", "l3.jpg"):
        large.save(root / "unlabeled" / name)
    shard = pack(root, "00.tar")
    assert manifest(folder(root, unlabeled=f"{url}/shards/00.tar"), root / "x.manifest") == []
    assert sum(Server.sent) < shard.stat().st_size / 4


@pytest.mark.parametrize("pattern", ["unlabeled", "unlabeled/**"])
def test_images_below_a_url(root: Path, url: str, pattern: str) -> None:
    listed = folder(root).unlabeled
    assert manifest(folder(root, unlabeled=f"{url}/{pattern}"), root / "x.manifest") == []
    there = Pool(root / "x.manifest")
    assert len(there) == 7 and there.sizes.tolist() == [num_bytes(sample.image) for sample in there]
    for sample in listed:
        found = there.find(f"unlabeled/{quote(sample.name)}")
        assert read_bytes(found.image) == read_bytes(sample.image)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_training_from_a_url_is_that_from_a_disk(root: Path, url: str, tmp_path: Path) -> None:
    """Losses and scores to the last digit, with workers, and after a restart."""
    pools(root, url)

    def train(name: str, *more: str) -> bytes:
        data = ["dataset=folder", f"dataset.root={root}", f"dataset.unlabeled={root}/{name}.manifest", "split=2"]
        small = ["backbone=tiny", "model=deeplab_tiny", "folds=0", "method.threshold=0.2", "data.num_workers=2"]
        fit(small_config(tmp_path / name, *data, *small, *more))
        return (tmp_path / name / "run/metrics.csv").read_bytes()

    expected = train("here")
    assert train("there") == expected
    run = tmp_path / "there/run"
    shutil.copy(run / "checkpoints" / PREVIOUS, run / "checkpoints" / LAST)
    for file in ("metrics.csv", "summary.json"):
        (run / file).unlink()
    assert train("there", f"resume={run}") == expected


class Bytes(Dataset):
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> bytes:
        if index < 2:
            gc.collect()  # of what a worker inherited, too
        return read_bytes(self.pool[index].image)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_leave_the_connections_of_their_parent_alone(root: Path, url: str) -> None:
    here, there = pools(root, url)
    expected = [read_bytes(sample.image) for sample in here]
    assert [read_bytes(sample.image) for sample in there] == expected
    workers = DataLoader(Bytes(there), None, num_workers=2, multiprocessing_context="fork")
    assert list(workers) == expected
    again = threading.Thread(target=read_bytes, args=[there[0].image], daemon=True)
    again.start()
    again.join(20)
    assert not again.is_alive(), "waits for an answer that a worker took away"


def test_pixels_and_features_of_a_url_are_kept(root: Path, url: str, tmp_path: Path) -> None:
    _, there = pools(root, url)
    source, options = folder(root, unlabeled=there.file), {"crop_size": 8, "batch_size": 2, "num_workers": 0}
    data = SegmentationData(source, "full", cache=str(tmp_path / "cache"), steps_per_epoch=14, **options)
    first = [batch["weak"] for batch in data.train_dataloader()["unlabeled"]]
    Server.sent.clear()
    again = [batch["weak"] for batch in data.train_dataloader()["unlabeled"]]
    assert all(map(torch.equal, first, again)) and not Server.sent
    network = MLP(TimmBackbone("test_efficientnet", output_stride=16, freeze="all"), 2).eval()
    kept = [FrozenFeatures(network, folder=str(tmp_path / "features")) for _ in range(2)]
    kept[0].compute(there[:3], torch.device("cpu"))
    assert len(Server.sent) == 3 and all(kept[1].has(sample, FixedView()) for sample in there[:3])


def test_a_tar_that_changed_is_noticed(root: Path, url: str) -> None:
    here, there = pools(root, url)
    shard = root / "shards/01.tar"
    for content in (b"x" + shard.read_bytes(), shard.read_bytes()[:2000]):
        shard.write_bytes(content)
        for pool in (here, there):
            with pytest.raises(ValueError, match=r"01\.tar.*; .*write the manifest again") as error:
                read_image(pool[-1].image)
            assert "\n" not in str(error.value)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"^http.*01\.tar@.*: no such image; correct the path$"):
        read_image(there[-1].image)


def test_places_that_cannot_be_read_are_one_line(root: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pools(root, url)
    for place, message in {
        f"{url}/none/*.tar": r"none/\*\.tar: nothing is there; correct the URL",
        f"{url}/shards/9*.tar": r"9\*\.tar: no file has such a name; correct the pattern",
        f"{url}/none.tar": r"none\.tar: nothing is there \(404.*\); correct the URL",
        "http://127.0.0.1:1/*.tar": r"tar: cannot be read \(.*connect.*\); see to the connection and the credentials",
        "nowhere://a/*.tar": r"tar: cannot be read \(Protocol not known: nowhere\)",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            folder(root, unlabeled=place)
        assert "\n" not in str(error.value) and place in str(error.value)
    with pytest.raises(ValueError, match=r"unlabeled: lie in different stores; choose one$"):
        folder(root, unlabeled=[f"{url}/shards/*.tar", str(root / "unlabeled")])
    monkeypatch.setattr(Server, "gives_parts", False)
    with pytest.raises(ValueError, match=r"tar@.*its server gives no parts of files; "):
        manifest(folder(root, unlabeled=f"{url}/shards/*.tar"), root / "x.manifest")


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"tar: Install s3fs to access S3; pip install 'pcr-seg\[remote\]'"):
        folder(root, unlabeled="s3://bucket/*.tar")
