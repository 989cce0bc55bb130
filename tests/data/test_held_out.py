"""What is held out where there is no val: groups stay together, classes are on both sides, no image is in two parts."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_sources import save

from pcr_seg.data import splits
from pcr_seg.data.held_out import deal, hold_out, hold_out_again, hold_out_list, num_folds
from pcr_seg.data.sources import Source, folder


def made(root: Path, shown: dict[str, int]) -> Source:
    """Images of 4x4 by name; the mask of each shows class 0 and one other."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{label} c{label} 0 0 {label}\n" for label in range(5)))
    for number, (name, label) in enumerate(shown.items()):
        save(root / f"images/train/{name}.png", np.full((4, 4, 3), number))
        save(root / f"labels/train/{name}.png", np.array([[0, label] * 2] * 4))
    return folder(root)


def names(parts: list) -> list[list[str]]:
    return [[sample.name for sample in part] for part in parts]


def is_a_partition(parts: list, source: Source) -> bool:
    dealt = [name for part in names(parts) for name in part]
    return sorted(dealt) == sorted(sample.name for sample in source.train) and len(set(dealt)) == len(dealt)


@pytest.mark.parametrize("pattern", ["patient{}_slice{}", "{}/{}", "scan-{}-{}", "2024 {} {}", "site{}.img{}"])
@pytest.mark.parametrize("number", [3, 4, 6])
def test_whole_groups_are_dealt_where_names_show_enough(tmp_path: Path, pattern: str, number: int) -> None:
    where = {pattern.format(patient, turn): patient for patient in range(6) for turn in range(5)}
    source = made(tmp_path, {name: 1 + turn % 2 for turn, name in enumerate(where)})
    parts, how = deal(source, number, seed=0, fewest=number)
    groups = [{where[name] for name in part} for part in names(parts)]
    assert is_a_partition(parts, source) and len(parts) == number and "whole groups by name" in how
    assert sum(map(len, groups)) == 6, "no group is in two parts"
    assert all(len(part) == 5 * len(group) for part, group in zip(parts, groups, strict=True))


def test_fewer_groups_than_parts_make_fewer_parts_if_these_will_do(tmp_path: Path) -> None:
    source = made(tmp_path, {f"clip{clip}_{frame}": 1 for clip in range(3) for frame in range(4)})
    parts, _ = deal(source, 4, seed=0, fewest=3)
    assert sorted("".join({name[:5] for name in part}) for part in names(parts)) == ["clip0", "clip1", "clip2"]
    parts, _ = deal(source, 4, seed=0, fewest=4)
    assert len(parts) == 4 and all(len({name[:5] for name in part}) == 3 for part in names(parts))


def test_names_that_begin_with_what_they_show_are_no_groups(tmp_path: Path) -> None:
    animals = ["cat", "dog", "cow", "horse"]
    source = made(tmp_path, {f"{name}_{turn}": 1 + animals.index(name) for name in animals for turn in range(6)})
    parts, _ = deal(source, 4, seed=0, fewest=3)
    assert is_a_partition(parts, source)
    assert all({name.split("_")[0] for name in part} == set(animals) for part in names(parts))


def test_neighbours_by_name_stay_together_in_one_clip(tmp_path: Path) -> None:
    source = made(tmp_path, {f"frame{turn}": 1 for turn in range(40)})
    [val], how = deal(source, 5, seed=3, fewest=3, scored=1)
    frames = sorted(int(sample.name[5:]) for sample in val)
    jumps = sum(later - earlier > 1 for earlier, later in pairwise(frames))
    assert len(val) == 8 and jumps <= 1 and "neighbours by name together" in how, "runs of four in the order of numbers"


@pytest.mark.parametrize("seed", range(6))
def test_a_class_of_two_images_is_scored_and_learned(tmp_path: Path, seed: int) -> None:
    source = made(tmp_path, {name: 2 if name in "ch" else 1 for name in "abcdefghij"})
    [val], how = deal(source, 5, seed, fewest=3, scored=1)
    assert len(set(names([val])[0]) & set("ch")) == 1 and how == f"image by image, drawn with seed {seed}"
    parts, _ = deal(source, 2, seed, fewest=2)
    assert [len(set(part) & set("ch")) for part in names(parts)] == [1, 1]


def test_a_draw_follows_from_the_seed(tmp_path: Path) -> None:
    source = made(tmp_path, {f"{turn:02}a": 1 for turn in range(30)})
    draws = [names(deal(source, 5, seed, fewest=3, scored=1)[0]) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({str(draw) for draw in draws}) == 3


def test_images_without_masks_are_never_held_out(tmp_path: Path) -> None:
    made(tmp_path, {f"a{turn}": 1 for turn in range(12)})
    for turn in range(4):
        (tmp_path / f"labels/train/a{turn}.png").unlink()
    source = folder(tmp_path)
    parts, _ = deal(source, 4, seed=0, fewest=4)
    assert sorted(name for part in names(parts) for name in part) == sorted(f"a{turn}" for turn in range(4, 12))


@pytest.mark.parametrize(
    ("masks", "typed", "folds"), [(20, "auto", 0), (19, "auto", 4), (3, "auto", 3), (50, 5, 5), (2, 0, 0)]
)
def test_number_of_folds(tmp_path: Path, masks: int, typed: str | int, folds: int) -> None:
    source = made(tmp_path, {f"a{turn}": 1 for turn in range(masks)})
    assert num_folds(typed, source) == folds


@pytest.mark.parametrize(
    ("masks", "typed", "message"),
    [
        (9, "all", r"folds=all: choose auto, 0 or a number from 2 on"),
        (9, 1, r"folds=1: choose auto"),
        (9, -2, r"folds=-2: choose auto"),
        (1, "auto", r"set: has no val images, and 1 in train with a mask, so nothing is left to score on; add masks"),
        (4, 5, r"set: has no val images, and 4 in train with a mask"),
    ],
)
def test_impossible_folds_are_one_line(tmp_path: Path, masks: int, typed: str | int, message: str) -> None:
    source = made(tmp_path / "set", {f"a{turn}": 1 for turn in range(masks)})
    with pytest.raises(ValueError, match=message):
        num_folds(typed, source)


def test_what_was_held_out_is_read_back(tmp_path: Path) -> None:
    source = made(tmp_path / "set", dict.fromkeys(("a", "b", "c.jpg", "d"), 1))
    val = [sample for sample in source.train if sample.name in ("b", "c.jpg")]
    held_out = hold_out(source, val, "held out of train, by hand")
    assert names([held_out.train, held_out.val]) == [["a", "d"], ["b", "c.jpg"]]
    path = tmp_path / "run/splits/val.txt"
    splits.write_list(path, held_out.held_out, held_out.val)
    assert hold_out_list(source, path) == hold_out_again(source, path) == held_out
    assert hold_out_again(held_out, path) is held_out, "a data set that has val images keeps them"
    assert hold_out_again(source, tmp_path / "none.txt") is source
    made(tmp_path / "set", {"e": 1})
    assert names([hold_out_list(folder(tmp_path / "set"), path).val]) == [["b", "c.jpg"]], "though one was added"
    other = made(tmp_path / "other", {"b": 1, "x": 1})
    assert hold_out_again(other, path) is other, "a list of other images says nothing of this data set"
    with pytest.raises(FileNotFoundError, match=r"val\.txt: c\.jpg is to be validated on, but other has no such image"):
        hold_out_list(other, path)


def test_a_list_of_labeled_images_leaves_out_what_is_held_out(tmp_path: Path) -> None:
    source = made(tmp_path / "set", dict.fromkeys("abcde", 1))
    (tmp_path / "some.txt").write_text("a\nb\nc.png\n")
    held_out = hold_out(source, [source.train[1]], "held out of train")
    split = splits.make_split(held_out, tmp_path / "some.txt")
    assert names([split.labeled, split.unlabeled]) == [["a", "c"], ["d", "e"]]
    splits.check(held_out, split)
    shutil.copy(source.train[0].image, source.train[1].image)
    with pytest.raises(ValueError, match=r"train/b\.png: val image, but a copy of .*train/a\.png; remove one"):
        splits.check(held_out, split)
