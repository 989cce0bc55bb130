"""Which images belong together: by their names, by columns, as a user says."""

from pathlib import Path

import pytest

from pcr_seg.data.groups import grouped, levels, members

NAMES = [f"clip {clip}/frame_{frame:03d}" for clip in "abcd" for frame in range(5)]


def test_groups_by_names() -> None:
    assert grouped(NAMES, "auto") == ([name[:6] for name in NAMES], "how names begin, as clip a (4 groups)")
    flat = [name.replace("/", "_") for name in NAMES]
    assert grouped(flat, "auto") == ([name[:6] for name in flat], "how names begin, as clip a (4 groups)")
    assert grouped(flat, None) == (flat, "single images")
    photos = [f"IMG_{i}" for i in range(20)]
    assert grouped(photos, "auto") == (photos, "single images"), "one group is none"
    found, what = grouped(flat, r"clip (\w)")
    assert found == [name[5] for name in flat] and what == r"clip (\w) (4 groups)"
    copies = ["a_jpg.rf.12ab", "a_jpg.rf.34cd", "b_png.rf.12"]
    assert grouped(copies, "auto")[0] == ["a_jpg", "a_jpg", "b_png"]


def test_groups_by_columns_and_tables(tmp_path: Path) -> None:
    columns = [{"Patient": str(i % 3), "id": str(i)} for i in range(20)]
    assert grouped(NAMES, "auto", columns) == ([str(i % 3) for i in range(20)], "patient (3 groups)")
    assert grouped(NAMES, "id", columns)[1] == "id (20 groups)"
    table = tmp_path / "places.csv"
    table.write_text(
        "image,place\n" + "".join(f"{name.partition('/')[2]}.JPG,{i % 2}\n" for i, name in enumerate(NAMES))
    )
    assert grouped(NAMES[:5], str(table), columns[:5]) == (["1", "0", "1", "0", "1"], f"{table} (2 groups)")
    with pytest.raises(ValueError, match=r"group=ward: says nothing of any image, as clip a/frame_0.* \(Patient, id\)"):
        grouped(NAMES, "ward", columns)
    with pytest.raises(ValueError, match=r"group=\(: is no regular expression"):
        grouped(NAMES, "(", columns)
    with pytest.raises(FileNotFoundError, match="no such file; give one with two columns"):
        grouped(NAMES, str(tmp_path / "no.csv"), columns)


def test_levels_are_ever_finer_and_leave_the_last_word_out() -> None:
    names = ["a/clip1_001", "a/clip1_002", "a/clip2_001", "b/clip1_001", "b7"]
    finest = ["a/clip1", "a/clip1", "a/clip2", "b/clip1", "b"]
    assert list(levels(names)) == [["a", "a", "a", "b", "b"], finest]
    assert list(levels(["one", "two"])) == list(levels([])) == [], "a single word begins nothing"
    assert members(["x", "y", "x"]) == {"x": [0, 2], "y": [1]}
