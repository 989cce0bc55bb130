"""Images found by what annotations call them; subsets by names; formats by both ends of a file."""

import unicodedata
from pathlib import Path

import pytest
from exports import picture

from pcr_seg.data.imports.images import Images, ends, files_of, path_parts, read_json, subset_of, subset_of_file


@pytest.fixture
def images(tmp_path: Path) -> Images:
    names = [
        "a/one.jpg", "b/one.jpg", "b/Two Words.PNG", "c/tre\u0301s.jpg", "c/1234abcd-x.jpg", "train/t.jpg", "val/t.jpg",
    ]  # fmt: skip
    for seed, name in enumerate(names):
        picture(tmp_path / name, 5 + seed, 7, seed)
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden/one.jpg", 4, 4)
    return Images([tmp_path])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/elsewhere/x/b/one.jpg", "b/one.jpg"),
        (r"D:\data\a\one.jpg", "a/one.jpg"),
        ("two words.png", "b/Two Words.PNG"),
        ("upload/1/99aabbcc-two_words.png", "b/Two Words.PNG"),
        ("Two Words", "b/Two Words.PNG"),
        (unicodedata.normalize("NFC", "tre\u0301s.jpg"), "c/tre\u0301s.jpg"),
        ("https://host/c/1234abcd-x.jpg?key=1#2", "c/1234abcd-x.jpg"),
        ("/data/local-files/?d=c%2F1234abcd-x.jpg", "c/1234abcd-x.jpg"),
    ],
)
def test_names_of_other_systems_and_servers(images: Images, text: str, found: str) -> None:
    assert images.relative(images.find(text)) == Path(found)


def test_which_of_several_is_meant(images: Images, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="2 images are called so"):
        images.find("one.jpg")
    assert images.find("one.jpg", near=tmp_path / "a") == tmp_path / "a/one.jpg"
    assert images.find("../b/one.jpg", near=tmp_path / "a") == tmp_path / "b/one.jpg"
    size = (tmp_path / "b/one.jpg").stat().st_size
    assert images.find("one.jpg", num_bytes=size) == tmp_path / "b/one.jpg"
    assert images.find("t.jpg", subset="val") == tmp_path / "val/t.jpg"
    with pytest.raises(LookupError, match="no image of this name"):
        images.find("three.jpg")


def test_a_record_says_what_is_wrong_or_takes_what_is_embedded(images: Images) -> None:
    assert images.record("x/three.jpg").problem.startswith("no image of this name")
    record = images.record("x/three.jpg", embedded=b"content")
    assert (record.name, record.image, record.problem) == ("x/three.jpg", b"content", "")
    assert images.record("train/t.jpg").subset == "train" and images.record("b/one.jpg").subset is None


def test_subsets_by_names(tmp_path: Path) -> None:
    assert subset_of(["data", "train2017"]) == "train" and subset_of(["valid"]) == "val"
    assert subset_of(["trains", "value"]) is None and subset_of(["train", "test_1"]) == "test"
    for name, subset in {"instances_train2017.json": "train", "val.json": "val", "training-1.json": "train",
                         "train/x.json": "train", "annotations/x.json": None}.items():  # fmt: skip
        assert subset_of_file(tmp_path / name, tmp_path) == subset


def test_files_and_their_ends(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    for name in ("b.JSON", "a.json", ".c.json", "__MACOSX/d.json", "e.txt"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf {"start": 1' + b" " * 200_000 + b', "end": 2}')
    assert [file.name for file in files_of(tmp_path, ".json")] == ["a.json", "b.JSON"]
    text = ends(tmp_path / "a.json")
    assert text.startswith("{") and '"end"' in text and len(text) < 140_000
    assert read_json(tmp_path / "a.json") == {"start": 1, "end": 2}
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not readable as JSON"):
        read_json(tmp_path / "a.json")
    assert path_parts("data:image/png;base64,AAAA") == [] and path_parts("./a//b.jpg") == ["a", "b.jpg"]
