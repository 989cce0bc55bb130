"""The generated data set: reproducible, complete, and as varied as it promises."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pcr_seg.data import sources
from pcr_seg.data.files import read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.data.synthetic import CLASSES, NUM_APPEARANCES, draw_appearances, draw_image, synthetic, write

SMALL = {"num_train": 4, "num_val": 2, "num_unlabeled": 2, "size": 32}


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def draw_many(count: int, size: int = 48) -> list[tuple[np.ndarray, np.ndarray]]:
    appearances = draw_appearances(np.random.default_rng(0))
    return [draw_image(np.random.default_rng(i), appearances, size) for i in range(count)]


def test_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        synthetic(str(tmp_path / name), **SMALL)
    first, second = files(tmp_path / "first"), files(tmp_path / "second")
    assert len(first) == 4 + 4 + 2 + 2 + 2 + 1  # images and masks, unlabeled images, classes.txt
    assert first == second


@pytest.mark.parametrize("more", [{"num_train": 6}, {"num_val": 3}, {"num_unlabeled": 0}])
def test_an_image_depends_on_its_own_number_alone(tmp_path: Path, more: dict[str, int]) -> None:
    few, many = synthetic(str(tmp_path), **SMALL), synthetic(str(tmp_path), **SMALL | more)
    for part in ("train", "val", "unlabeled"):
        assert len(getattr(many, part)) == (SMALL | more)[f"num_{part}"]
        for first, second in zip(getattr(few, part), getattr(many, part), strict=False):
            assert first.name == second.name
            assert Path(first.image).read_bytes() == Path(second.image).read_bytes()


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    first, second = (synthetic(str(tmp_path), seed=seed, **SMALL) for seed in (0, 1))
    pairs = zip(first.train + first.val + first.unlabeled, second.train + second.val + second.unlabeled, strict=True)
    for one, other in pairs:
        assert (read_image(one.image) != read_image(other.image)).any()
    for one, other in zip(first.train + first.val, second.train + second.val, strict=True):
        assert (read_mask(one) != read_mask(other)).any()


def test_no_image_occurs_twice(tmp_path: Path) -> None:
    source = synthetic(str(tmp_path), **SMALL)
    samples = source.train + source.val + source.unlabeled
    assert len({read_image(sample.image).tobytes() for sample in samples}) == len(samples) == 8


def test_written_as_a_folder_data_set(tmp_path: Path) -> None:
    source = synthetic(str(tmp_path), **SMALL)
    (target,) = tmp_path.iterdir()  # nothing but the finished set
    again = sources.folder(target, name="synthetic")
    assert again == source
    assert (source.classes, source.palette, source.test) == (tuple(CLASSES), tuple(CLASSES.values()), ())
    assert [len(part) for part in (source.train, source.val, source.unlabeled)] == [4, 2, 2]
    for sample in source.train + source.val:
        assert read_image(sample.image).shape == (32, 32, 3)
        assert read_mask(sample).shape == (32, 32)
    assert all(sample.mask is None for sample in source.unlabeled)


def test_every_class_occurs_and_no_other_label(tiny_set: Source) -> None:
    train, val = (np.stack([read_mask(sample) for sample in part]) for part in (tiny_set.train, tiny_set.val))
    assert set(np.unique(train)) == set(range(len(CLASSES)))
    assert set(np.unique(val)) <= set(range(len(CLASSES)))  # three images need not show all


def test_nothing_is_written_into_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(
        ValueError, match=rf"^dataset\.root={tmp_path}: holds files that are no generated set; say dataset=f"
    ):
        synthetic(str(tmp_path), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt: is a file; name a folder"):
        synthetic(str(tmp_path / "notes.txt"), **SMALL)


def test_generated_sets_and_lists_share_a_folder(tmp_path: Path) -> None:
    for name in ("splits", ".hidden", "seed0_4_2_2_32px", "tmpabc1"):
        (tmp_path / name).mkdir()
    first = synthetic(str(tmp_path), **SMALL)
    assert synthetic(str(tmp_path), seed=1, **SMALL).train != first.train
    (tmp_path / "notes.txt").touch()  # somebody's, but what is generated is there already
    assert synthetic(str(tmp_path), **SMALL) == first
    (tmp_path / "classes.txt").touch()  # a data set, which was forgotten to name
    with pytest.raises(ValueError, match="say dataset=folder to read it"):
        synthetic(str(tmp_path), **SMALL)


def interrupt(*_: object) -> None:
    raise RuntimeError("interrupted")


def test_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = synthetic(str(tmp_path), **SMALL)
    monkeypatch.setattr("pcr_seg.data.synthetic.draw_image", interrupt)
    assert synthetic(str(tmp_path), **SMALL) == source


def test_the_slower_of_two_writers_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "set"
    write(target, seed=0, **SMALL)
    (target / "classes.txt").write_text("the faster one's")
    before = files(tmp_path)
    write(target, seed=0, **SMALL)
    assert files(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcr_seg.data.synthetic.draw_image", interrupt)
    with pytest.raises(RuntimeError, match="interrupted"):
        write(tmp_path / "set", seed=0, **SMALL)
    assert not list(tmp_path.iterdir())


def test_appearances_differ_and_show_their_pattern() -> None:
    pairs = draw_appearances(np.random.default_rng(0))
    assert pairs.shape == (len(CLASSES), NUM_APPEARANCES, 2, 3)
    assert pairs.min() >= 0 and pairs.max() <= 255
    for share in (0, 0.5):  # at the path's stops, and half of the way to the next one
        dark, light = np.moveaxis((1 - share) * pairs + share * np.roll(pairs, -1, axis=1), 2, 0)
        assert np.linalg.norm(dark - light, axis=-1).min() > 50
    for colors in pairs.mean(axis=2):
        assert min(np.linalg.norm(a - b) for a, b in combinations(colors, 2)) > 10


def test_images_show_several_appearances_of_each_class() -> None:
    drawn = draw_many(80)
    for label in range(len(CLASSES)):
        colors = [image[mask == label].mean(axis=0) for image, mask in drawn if (mask == label).sum() > 100]
        kinds: list[np.ndarray] = []
        for color in colors:  # 45 is far beyond noise and jitter at one place of the path
            if all(np.linalg.norm(color - kind) > 45 for kind in kinds):
                kinds.append(color)
        assert len(kinds) >= 3


def test_objects_are_patterns_and_the_background_is_plain() -> None:
    drawn = draw_many(40)
    spread = [
        np.median([image[mask == label].std(axis=0).mean() for image, mask in drawn if (mask == label).sum() > 100])
        for label in range(len(CLASSES))
    ]
    assert spread[0] < 14  # the noise of 12 levels
    assert min(spread[1:]) > 20
