"""Each case of the table in docs/data.md, made from a sound data set: its message in the report and in training."""

import contextlib
import io
import json
import re
import runpy
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_files import tiff
from test_sources import save

from pcr_seg.data import splits
from pcr_seg.data.check import check, num_errors, show, write
from pcr_seg.data.held_out import num_folds
from pcr_seg.data.prepare import manifest
from pcr_seg.data.sources import folder

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([\w ]+) \| (error|warning|note) \| (.+) \|$", PAGE, re.MULTILINE)
CLASSES = "0 ground 0 0 0\n1 cat 200 0 0\n255 void 9 9 90\n"
MASK = np.repeat(np.array([[0], [1], [1], [255]], np.uint8), 6, axis=1)  # 4 rows of 6


def make(root: Path) -> Path:
    """Six sound images of 6x4 with masks, two of them for val, and two without."""
    for number, name in enumerate(("train/a", "train/b", "train/deep/c", "train/d", "val/a", "val/v")):
        save(root / f"images/{name}.png", pixels(number))
        save(root / f"labels/{name}.png", MASK)
    for number in (6, 7):
        save(root / f"unlabeled/u{number}.png", pixels(number))
    (root / "classes.txt").write_text(CLASSES)
    return root


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (4, 6, 3), dtype=np.uint8)


def put(root: Path, name: str, content: np.ndarray | Image.Image, **options) -> None:
    """Save a file in the place of whatever has its name so far, with any suffix."""
    for path in (root / name).parent.glob(f"{Path(name).stem}.*"):
        path.unlink()
    save(root / name, content, **options)


def turned(root: Path, tag: int, width: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    put(root, "images/train/a.png", pixels(0)[:, :width], exif=exif)


def deep(root: Path, brightest: int) -> None:
    put(root, IMAGE, Image.fromarray(np.full((4, 6), brightest, np.uint16)))


def one_folder_higher(root: Path) -> None:
    for part in ("train", "val"):
        for path in (root / "images" / part).glob("*.png"):
            path.rename(root / f"images/{part}_{path.name}")
        shutil.rmtree(root / "images" / part)


def other_images(root: Path) -> None:
    remove(root, "images/val/*")
    for name in "vw":
        save(root / f"images/val/{name}.gif", pixels(0))


def single_class(root: Path) -> None:
    (root / "classes.txt").write_text("0 cat 255 255 255\n")
    all_masks(root, "**", np.where(MASK == 1, 255, 0))


def changed_tar(root: Path) -> dict:
    with tarfile.open(root / "x.tar", "w") as tar:
        tar.add(root / "unlabeled/u6.png", "u6.png")
    manifest(folder(root, unlabeled=str(root / "x.tar")), root / "x.manifest")
    (root / "x.tar").write_bytes((root / "x.tar").read_bytes()[1:])
    return {"unlabeled": str(root / "x.manifest")}


def bomb(path: Path) -> None:
    """A PNG header that promises 400 million pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def swapped() -> Image.Image:
    """Class ids whose palette has the colors of the classes the other way round."""
    image = Image.fromarray(np.where(MASK == 255, 2, MASK).astype(np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 0, 9, 9, 90])
    return image


def all_masks(root: Path, where: str, mask: np.ndarray) -> None:
    for path in (root / "labels").glob(f"{where}/*.png"):
        save(path, mask)


def remove(root: Path, pattern: str) -> None:
    for path in [path for path in root.glob(pattern) if path.is_file()]:
        path.unlink()


def no_colors(root: Path) -> None:
    put(root, "labels/train/a.png", pixels(0))
    (root / "classes.txt").write_text("0 ground 0 0 0\n1 cat 0 0 0\n")


def rare(root: Path) -> None:
    for path in [*(root / "images/train").rglob("*.png")]:
        save(path, pixels(len(str(path)) + ord(path.stem), 60, 60, 3))
    all_masks(root, "train/**", np.eye(1, 3600, 5).reshape(60, 60))


def few_masks(root: Path) -> None:
    shutil.rmtree(root / "images/val")
    remove(root, "images/train/[b-d].png")
    remove(root, "images/train/deep/c.png")


def thin(root: Path) -> None:
    for path in [*(root / "images/train").rglob("*.png")]:
        save(path, pixels(len(str(path)) + ord(path.stem), 60, 60, 3))
    all_masks(root, "train/**", np.tile(np.arange(60) % 20 < 3, (60, 1)))


IMAGE, MASKS = "images/train/a.png", "labels/train/a.png"  # what most cases break
TWO_PAGES = {"save_all": True, "append_images": [Image.fromarray(MASK)]}
CASES: dict[str, Callable[[Path], object]] = {  # they may return arguments of `folder`
    "no folder": lambda root: shutil.rmtree(root / "images"),
    "one folder higher": one_folder_higher,
    "no images": lambda root: remove(root, "images/val/*"),
    "other images": other_images,
    "val name": lambda root: (root / "images/val").rename(root / "images/validation"),
    "no training images": lambda root: shutil.rmtree(root / "images/train"),
    "no unlabeled images": lambda root: {"unlabeled": str(root / "nothing/*.png")},
    "manifest": lambda root: [(root / "x.manifest").write_text("a.png"), {"unlabeled": str(root / "x.manifest")}][1],
    "tar": lambda root: [(root / "x.tar").write_text("a.png" * 200), {"unlabeled": str(root / "x.tar")}][1],
    "tar changed": changed_tar,
    "not reached": lambda root: {"unlabeled": "http://127.0.0.1:1/*.tar"},
    "nothing there": lambda root: {"unlabeled": "memory://none/*.tar"},
    "no classes": lambda root: (root / "classes.txt").unlink(),
    "classes": lambda root: (root / "classes.txt").write_text("0 ground 0 0 0\n1 cat\n"),
    "class ids": lambda root: (root / "classes.txt").write_text("0 ground 0 0 0\n2 cat 1 1 1\n"),
    "not text": lambda root: (root / "classes.txt").write_bytes(b"0 gr\xfcn 0 0 0\n"),
    "same name": lambda root: save(root / "images/train/a.bmp", pixels(9)),
    "name of train": lambda root: save(root / "unlabeled/a.png", pixels(9)),
    "odd name": lambda root: save(root / "images/train/#1.png", pixels(9)),
    "empty": lambda root: (root / IMAGE).write_bytes(b""),
    "unreadable": lambda root: (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-9]),
    "too many pixels": lambda root: bomb(root / MASKS),
    "bands": lambda root: (root / IMAGE).with_suffix(".tif").write_bytes(tiff(5)) and (root / IMAGE).unlink(),
    "float": lambda root: put(root, "images/train/a.tif", Image.fromarray(np.ones((4, 6), np.float32))),
    "range": lambda root: [deep(root, 5000), {"max_value": 4095}][1],
    "channels": lambda root: {"channels": 4},
    "missing image": lambda root: (root / "images/train/e.png").symlink_to("nothing.png"),
    "missing mask": lambda root: remove(root, MASKS),
    "misnamed mask": lambda root: (root / MASKS).rename(root / "labels/train/A_mask.png"),
    "mask not read": lambda root: (root / MASKS).rename(root / "labels/train/a.json"),
    "JPEG mask": lambda root: put(root, "labels/train/a.jpg", MASK),
    "mask frames": lambda root: put(root, "labels/train/a.tif", MASK, **TWO_PAGES),
    "mask bits": lambda root: put(root, MASKS, Image.fromarray(np.array([[0, 300] * 3] * 4, np.uint16))),
    "mask mode": lambda root: put(root, "labels/train/a.tif", Image.fromarray(np.ones((4, 6), np.float32))),
    "no colors": no_colors,
    "mask colors": lambda root: put(root, MASKS, np.full((4, 6, 3), 9)),
    "palette": lambda root: put(root, MASKS, swapped()),
    "label values": lambda root: put(root, MASKS, np.full((4, 6), 7)),
    "size": lambda root: put(root, MASKS, np.ones((4, 7))),
    "rotation": lambda root: turned(root, 6),
    "one class": lambda root: all_masks(root, "**", np.where(MASK == 1, 255, 0)),
    "only class": single_class,
    "one class labeled": lambda root: all_masks(root, "train/**", np.where(MASK == 1, 255, 0)),
    "few masks": few_masks,
    "nothing labeled": lambda root: all_masks(root, "train/**", np.full((4, 6), 255)),
    "nothing to score": lambda root: all_masks(root, "val", np.full((4, 6), 255)),
    "dark": lambda root: deep(root, 4095),
    "copy in val": lambda root: shutil.copy(root / IMAGE, root / "images/val/v.png"),
    "frames": lambda root: put(root, IMAGE, pixels(0), save_all=True, append_images=[Image.fromarray(pixels(5))]),
    "turned": lambda root: turned(root, 3),
    "all ignored": lambda root: put(root, MASKS, np.full((4, 6), 255)),
    "copy": lambda root: put(root, "images/train/d.bmp", pixels(0)),
    "class missing": lambda root: all_masks(root, "val", np.zeros((4, 6))),
    "not read": lambda root: (root / "images/train/x.heic").touch(),
    "folder not read": lambda root: shutil.copytree(root / "images/val", root / "images/Val"),
    "mask alone": lambda root: save(root / "labels/val/other.png", MASK),
    "suffix": lambda root: (root / IMAGE).rename(root / "images/train/a.jpg"),
    "16 bits": lambda root: deep(root, 60_000),
    "16 bits in color": lambda root: cv2.imwrite(str(root / IMAGE), pixels(0).astype(np.uint16) * 256),
    "converted": lambda root: put(root, "images/train/a.tif", Image.fromarray(pixels(0)).convert("CMYK")),
    "rare class": rare,
    "no val": lambda root: shutil.rmtree(root / "images/val"),
    "thin objects": thin,
}


def test_the_table_and_the_cases_agree() -> None:
    assert len(ROWS) > 40
    assert [name for name, _, _ in ROWS] == list(CASES)


def test_no_error_names_a_key_that_its_command_may_refuse() -> None:
    """Resumed trainings and predictions print them as well, where no key of a data set can be set."""
    assert not [message for _, level, message in ROWS if level == "error" and "set dataset." in message]


def test_a_sound_data_set_has_no_findings(tmp_path: Path) -> None:
    source = folder(make(tmp_path))
    assert check(source)["findings"] == []
    splits.check(source, splits.make_split(source, "full"))


@pytest.mark.parametrize(("case", "level", "message"), ROWS, ids=[name for name, _, _ in ROWS])
def test_every_case_has_its_message(tmp_path: Path, case: str, level: str, message: str) -> None:
    options = CASES[case](make(tmp_path))
    options = options if isinstance(options, dict) else {}
    expected = re.escape(message).replace("…", ".+")
    try:
        report = check(folder(tmp_path, **options))
    except (ValueError, FileNotFoundError) as error:  # the layout is wrong: there is nothing to examine
        assert re.fullmatch(expected, str(error)) and level == "error"
    else:
        lines = {(f["kind"], f["level"]): f"{f['file']}: {f['what']}; {f['remedy']}" for f in report["findings"]}
        kind = {"misnamed mask": "missing mask", "mask not read": "missing mask"}.get(case, case)
        assert re.fullmatch(expected, lines[kind, level])
        assert bool(num_errors(report)) == (level == "error")
    if level == "error":
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            source = folder(tmp_path, **options)
            if source.train and not source.val:
                num_folds("auto", source)
            splits.check(source, splits.make_split(source, "full"))
        assert re.fullmatch(expected, str(caught.value))


def test_the_report_as_files_and_on_the_terminal(tmp_path: Path) -> None:
    root = make(tmp_path / "[set]")  # rich would take such a name for a style
    (root / IMAGE).write_bytes(b"")
    remove(root, "labels/train/b.png")
    report = check(folder(root))
    assert report["parts"]["train"]["images"] == 4 and report["parts"]["train"]["masks"] == 3
    assert report["parts"]["val"]["class_share"] == [0.333333, 0.666667]
    assert report["parts"]["unlabeled"]["size_median"] == [4, 6]
    markdown, content = (file.read_text() for file in write(report, tmp_path / "out/report"))
    assert json.loads(content) == report
    for text in ("| train | 4 | 3 | 6x4 |", "### error: empty (1)", f"- `{root / IMAGE}`: not readable", "1 cat"):
        assert text in markdown
    console = Console(width=400, record=True, file=io.StringIO())
    show(report, console)
    shown = console.export_text()
    assert str(root / IMAGE) in shown and "missing mask" in shown and "33.33%" in shown


def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    script = Path(__file__).parents[2] / "prepare.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys) -> None:
    words = ["dataset=folder", f"dataset.root={make(tmp_path / 'set')}"]
    with pytest.raises(SystemExit) as done:
        command(tmp_path, monkeypatch, "check", *words)
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert out.endswith(f"next: python prepare.py suggest {' '.join(words)}\n") and "Findings: none" in out
    command(tmp_path, monkeypatch, *words, "suggest")
    assert f"python train.py {' '.join(words)} split=full data.crop_size=" in capsys.readouterr().out
    (tmp_path / "set" / IMAGE).write_bytes(b"")
    with pytest.raises(SystemExit) as done:
        command(tmp_path, monkeypatch, *words, "action=check", "output=other")
    assert done.value.code == 1 and (tmp_path / "other.md").is_file()
    assert "errors: 1; correct them and check again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: action=chekc: choose one of prepare, check, suggest"):
        command(tmp_path, monkeypatch, *words, "action=chekc")


def test_commands_are_printed_as_they_are_typed(tmp_path, monkeypatch, capsys) -> None:
    """Brackets are not taken for styles."""
    root = make(tmp_path / "[x] set")
    shutil.copytree(root / "unlabeled", tmp_path / "more")
    words = ["dataset=folder", f"dataset.root={root}", f"dataset.unlabeled=['{root}/unlabeled','{tmp_path}/more']"]
    for action in ("suggest", "check"):
        with contextlib.suppress(SystemExit):
            command(tmp_path, monkeypatch, action, *words, f"output={tmp_path}/[x]")
    out = capsys.readouterr().out
    assert out.count("[x] set") >= 4 and "/more" in out and f"written: {tmp_path}/[x].md" in out


def test_a_value_of_a_wrong_type_is_one_line(tmp_path, monkeypatch) -> None:
    words = ["dataset=folder", f"dataset.root={make(tmp_path / 'set')}"]
    with pytest.raises(SystemExit, match=r"error: dataset\.max_value=12bit: choose a whole number or null"):
        command(tmp_path, monkeypatch, "check", *words, "dataset.max_value=12bit")


def test_square_images_that_are_turned_are_named(tmp_path: Path) -> None:
    """Of other images a mask that is not turned has another size."""
    root = make(tmp_path)
    turned(root, 6)
    assert "turned" not in {finding["kind"] for finding in check(folder(root))["findings"]}
    put(root, MASKS, MASK[:, :4])
    turned(root, 6, width=4)
    assert "turned" in {finding["kind"] for finding in check(folder(root))["findings"]}


def test_objects_are_reported(tmp_path: Path) -> None:
    thin(make(tmp_path))
    report = check(folder(tmp_path))
    assert [one["thickness"] for one in report["objects"]] == [pytest.approx(17, rel=0.1), pytest.approx(3, rel=0.2)]
    assert report["objects"][1]["kept"][16] == 0 < report["objects"][1]["kept"][4] < 0.8
    console = Console(width=200, record=True, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    assert re.search(r"cat +│ 12 +│ 60 +│ 3", text) and "kept at stride 16" in text
    assert "thin objects" in text and "class ground" not in text


def test_copies_are_found_in_any_format(tmp_path: Path) -> None:
    root = make(tmp_path)
    Image.open(root / "unlabeled/u6.png").save(root / "images/val/v.bmp")
    (root / "images/val/v.png").unlink()
    [finding] = check(folder(root))["findings"]
    assert finding["kind"] == "copy in val" and finding["file"] == str(root / "images/val/v.bmp")
