"""Which images validate: the tool's, whole groups, and classes that stay in train."""

from pathlib import Path

import pytest

from pcr_seg.data.imports.dividing import divide, grouped


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


NAMES = [f"clip {clip}/frame_{frame:03d}" for clip in "abcd" for frame in range(5)]


def test_groups_by_names() -> None:
    none = [{}] * 20
    assert grouped(NAMES, none, "auto") == ([name[:6] for name in NAMES], "folder (4 groups)")
    flat = [name.replace("/", "_") for name in NAMES]
    assert grouped(flat, none, "auto") == ([name[:12] for name in flat], "name up to its last number (4 groups)")
    assert grouped(flat, none, None) == (flat, "single images")
    photos = [f"IMG_{i}" for i in range(20)]
    assert grouped(photos, none, "auto") == (photos, "single images"), "one group is none"
    found, what = grouped(flat, none, r"clip (\w)")
    assert found == [name[5] for name in flat] and what == r"clip (\w) (4 groups)"
    copies = ["a_jpg.rf.12ab", "a_jpg.rf.34cd", "b_png.rf.12"]
    assert grouped(copies, none, "auto")[0] == ["a_jpg", "a_jpg", "b_png"]


def test_groups_by_columns_and_tables(tmp_path: Path) -> None:
    columns = [{"Patient": str(i % 3), "id": str(i)} for i in range(20)]
    assert grouped(NAMES, columns, "auto") == ([str(i % 3) for i in range(20)], "patient (3 groups)")
    assert grouped(NAMES, columns, "id")[1] == "id (20 groups)"
    table = tmp_path / "places.csv"
    table.write_text(
        "image,place\n" + "".join(f"{name.partition('/')[2]}.JPG,{i % 2}\n" for i, name in enumerate(NAMES))
    )
    assert grouped(NAMES[:5], columns[:5], str(table)) == (["1", "0", "1", "0", "1"], f"{table} (2 groups)")
    with pytest.raises(ValueError, match=r"group=ward: says nothing of any image, as clip a/frame_0.* \(Patient, id\)"):
        grouped(NAMES, columns, "ward")
    with pytest.raises(ValueError, match=r"group=\(: is no regular expression"):
        grouped(NAMES, columns, "(")
    with pytest.raises(FileNotFoundError, match="no such file; give one with two columns"):
        grouped(NAMES, columns, str(tmp_path / "no.csv"))
