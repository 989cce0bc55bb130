"""Which images validate: the tool's, whole groups, and classes that stay in train."""

import pytest

from pcr_seg.data.imports.dividing import divide


def parts_of(subsets: list[str | None], **more) -> list[str]:
    number = len(subsets)
    settings = {"shown": [1] * number, "groups": [str(i) for i in range(number)], "val": 0.2, "seed": 0} | more
    return divide(subsets, **settings)[0]


def test_the_tools_own_division_is_kept() -> None:
    assert parts_of(["train", "val", "test", None]) == ["train", "val", "test", "train"]


def test_of_training_images_alone_a_share_is_drawn() -> None:
    parts = parts_of(["train"] * 20 + ["test"] * 3)
    assert parts.count("val") == 4 and parts[20:] == ["test"] * 3
    assert parts_of(["test"] * 10).count("val") == 2, "images of one subset are not divided at all"
    assert "val" not in parts_of([None] * 10, val=0.0)
    assert parts_of([None] * 20) == parts_of([None] * 20) != parts_of([None] * 20, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_the_share_is_about_right(seed: int) -> None:
    groups = [f"patient {i // 5}" for i in range(100)]
    parts = parts_of([None] * 100, groups=groups, seed=seed)
    assert all(len({part for part, group in zip(parts, groups, strict=True) if group == one}) == 1 for one in groups)
    assert parts.count("val") == 20


@pytest.mark.parametrize("seed", range(5))
def test_each_class_stays_in_train_and_is_scored_where_it_can(seed: int) -> None:
    shown = [1] * 16 + [1 | 2, 1 | 2, 1 | 4, 1]  # the third class is on one image, the second on two
    parts = parts_of([None] * 20, shown=shown, seed=seed)
    train, val = ({bits for bits, of in zip(shown, parts, strict=True) if of == part} for part in ("train", "val"))
    assert 5 in train and 3 in train and 3 in val and 5 not in val


def test_few_images() -> None:
    assert parts_of([None]) == ["train"]
    assert sorted(parts_of([None] * 2)) == ["train", "val"]
    assert sorted(parts_of([None] * 3, shown=[1, 2, 4])) == ["train", "train", "val"], "each class is on one image"
    assert parts_of([None] * 6, groups=["a"] * 6) == ["train"] * 6, "of one group nothing can be held out"
