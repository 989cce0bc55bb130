"""Pseudo-labels as a data set: byte-equal however often it is killed and by however many processes, and it trains."""

import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, composed
from faults import TRAIN, die_at, finish, start, start_torchrun
from PIL import Image

from pcr_seg.checkpoint import load
from pcr_seg.cluster import Place
from pcr_seg.commands.autolabel import autolabel, own_groups
from pcr_seg.data.prepare import manifest
from pcr_seg.data.sources import Source, folder
from pcr_seg.pictures.panels import look

SCRIPT = TRAIN.with_name("autolabel.py")
OPTIONS = ("device=cpu", "batch_size=2", "threshold=0.5", "maps=[confidence,disagreement]")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images, some of another size, one in a folder below, one that is damaged."""
    root = tmp_path_factory.mktemp("images") / "pool"
    (root / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        size = (40, 30, 3) if i in (2, 5) else (32, 48, 3)
        name = f"deep/{i}.jpg" if i == 4 else f"{i}.png"
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / name)
    (root / "3b.png").write_bytes(b"damaged")
    return root


def arguments(trained: Path, images: Path | str, output: Path, *overrides: str) -> list[str]:
    return [f"checkpoint={trained}/checkpoints/last.ckpt", f"images={images}", f"output={output}", *overrides]


def label(trained: Path, images: Path | str, output: Path, *overrides: str) -> dict[str, str]:
    return autolabel(composed(*arguments(trained, images, output, *overrides), name="autolabel"))


def content(output: Path) -> dict[str, bytes]:
    return {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def labeled(trained: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that nothing happens to."""
    output = tmp_path_factory.mktemp("labeled") / "labels"
    assert list(label(trained, images, output, *OPTIONS)) == ["pool/3b"]
    return output


def test_masks_are_what_the_checkpoint_says(trained: Path, images: Path, labeled: Path) -> None:
    predictor, source = load(trained / "checkpoints/last.ckpt"), folder(labeled)
    assert list(source.classes) == predictor.class_names and source.palette == tuple(predictor.palette)
    assert [sample.name for sample in source.train] == [f"pool/{i}" for i in (*"0123567", "deep/4")]
    ignored = 0
    for sample in source.train:
        [found] = look(predictor, [np.asarray(Image.open(sample.image))])
        mask, confidence = np.asarray(Image.open(sample.mask)), found.confidence["linear"]
        clear = np.abs(confidence - 0.5) > 1e-4  # what a batch of two rounds otherwise
        expected = np.where(confidence >= 0.5, found.labels["linear"], 255)
        assert np.array_equal(mask[clear], expected[clear])
        ignored += (mask == 255).sum()
        for kind, values in (("confidence", confidence), ("disagreement", found.disagreement)):
            picture = np.asarray(Image.open(labeled / kind / "train" / f"{sample.name}.png")).astype(int)
            assert np.abs(picture - 255 * values).max() < 0.6
    assert 0 < ignored < 8 * 32 * 48, "the threshold leaves some pixels out"


@pytest.mark.parametrize("number", [1, 12, 20])
def test_a_killed_command_goes_on_and_ends_byte_equal(
    trained: Path, images: Path, labeled: Path, tmp_path: Path, number: int
) -> None:
    """Killed before the number-th file gets its name."""
    output, log, whole = tmp_path / "labels", tmp_path / "log", content(labeled)
    command = arguments(trained, images, output, *OPTIONS)
    kill = die_at, ("pathlib", "Path.replace"), number
    assert finish(start(command, log, *kill, script=SCRIPT)) == -signal.SIGKILL, log.read_text()
    complete = {name: data for name, data in content(output).items() if not Path(name).name.startswith(".")}
    assert complete.items() <= whole.items() and len(complete) < len(whole)
    if number > 1:
        assert len(folder(output).train) == sum(name.startswith("images/") for name in complete), "a data set already"
    assert list(label(trained, images, output, *OPTIONS)) == ["pool/3b"]
    assert content(output) == whole


def test_two_processes_of_torchrun_write_the_same(trained: Path, images: Path, labeled: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = arguments(trained, images, tmp_path / "labels", *OPTIONS)
    assert finish(start_torchrun(command, log, script=SCRIPT)) == 0, log.read_text()[-3000:]
    assert content(tmp_path / "labels") == content(labeled)
    lines = [line for line in log.read_text().splitlines() if line.startswith("process ")]
    assert sorted(line[:30] for line in lines) == [
        "process 0 of 2: 4 images label", "process 1 of 2: 4 images label",
    ]  # fmt: skip
    assert all("images/s" in line for line in lines)


def test_what_is_done_is_not_done_again(trained: Path, images: Path, labeled: Path, capsys) -> None:
    times = {name: (labeled / name).stat().st_mtime_ns for name in content(labeled) if name.startswith("labels")}
    label(trained, images, labeled, *OPTIONS)
    assert "1 images labeled" in capsys.readouterr().out, "of the damaged image's pair"
    again = {name for name, time in times.items() if (labeled / name).stat().st_mtime_ns != time}
    assert again == {"labels/train/pool/5.png"}
    for change, message in {
        "threshold=0.6": "threshold=0.5",
        "maps=[confidence]": "maps=",
        "batch_size=1": "batch",
    }.items():
        with pytest.raises(ValueError, match=rf"output=.*: holds labels of {message}.*; go on with that, or name"):
            label(trained, images, labeled, *OPTIONS, change)


def test_its_folder_trains(trained: Path, tiny_set: Source, tmp_path: Path) -> None:
    from pcr_seg.training.fit import fit

    place = Path(tiny_set.train[0].image).parent
    label(trained, place, tmp_path / "labels", "device=cpu")
    data = ["dataset=folder", f"dataset.root={tmp_path}/labels", "backbone=tiny", "model=deeplab_tiny"]
    small = [word for word in SMALL if not word.startswith("split=")]
    cfg = composed(
        f"output={tmp_path}/run", *data, *small, "split=full", "method=supervised", "folds=0", "model.channels=8"
    )
    assert fit(cfg)["num_labeled"] == 10, "of twelve, two are held out"


def test_manifests_and_tars(trained: Path, images: Path, tmp_path: Path) -> None:
    """Members of a tar stand in the data set as files."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("0.png", "deep/4.jpg"):
            tar.add(images / name, name)
    label(trained, tmp_path / "shard.tar", tmp_path / "of tar", "device=cpu")
    assert (tmp_path / "of tar/images/train" / f"{tmp_path.name}/shard/0.png").read_bytes() == (
        images / "0.png"
    ).read_bytes()
    root = tmp_path / "set"
    (root / "images/train").mkdir(parents=True), (root / "unlabeled").symlink_to(images)
    (root / "classes.txt").write_text("0 a 0 0 0\n")
    Image.new("RGB", (8, 8)).save(root / "images/train/x.png"), (root / "labels/train").mkdir(parents=True)
    Image.new("L", (8, 8)).save(root / "labels/train/x.png")
    left_out = manifest(folder(root), tmp_path / "all.manifest")
    assert len(left_out) == 1
    assert label(trained, tmp_path / "all.manifest", tmp_path / "of manifest", "device=cpu") == {}
    assert len(folder(tmp_path / "of manifest").train) == 8


def test_users_mistakes_are_one_line(trained: Path, images: Path, tmp_path: Path) -> None:
    for words, message in {
        ("maps=[color]",): "maps: color is none of confidence, disagreement",
        ("threshold=2",): "threshold=2: choose 0 to 1",
        ("threshold=high",): "threshold=high: choose a number",
        ("batch_size=0",): "batch_size=0",
        ("on_error=rise",): "on_error=rise: choose skip or raise",
    }.items():
        with pytest.raises(ValueError, match=message):
            label(trained, images, tmp_path / "out", *words)
    with pytest.raises(ValueError, match=r"images=.*/none: no such file or folder; correct the path"):
        label(trained, tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match=r"output=.*/pool/labels: lies in images=.*/pool; name a folder outside"):
        label(trained, images, images / "labels")
    for name in ("classes.txt", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(ValueError, match=rf"output=.*/{name}: has {name} of another data set; name a new folder"):
            label(trained, images, tmp_path / name)
    with pytest.raises(ValueError, match=r"3b\.png: not readable"):
        label(trained, images, tmp_path / "out", "device=cpu", "on_error=raise")


def test_groups_fall_to_the_processes_in_turn() -> None:
    every = [[list(group) for group in own_groups(7, 2, Place(rank, 3, 0))] for rank in range(3)]
    assert every == [[[0, 1], [6]], [[2, 3]], [[4, 5]]]
