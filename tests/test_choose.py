"""The next images: doubtful, apart from each other and of several groups; a list that trains."""

import csv
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, small_config

from pcr_seg.checkpoint import load
from pcr_seg.commands.choose import choose, spread, survey_file
from pcr_seg.config import CONF
from pcr_seg.data.files import Sample, read_image
from pcr_seg.data.sources import folder
from pcr_seg.data.splits import make_split
from pcr_seg.inference import sliding_window
from pcr_seg.pictures.panels import look
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.training.fit import fit


def farthest(places: np.ndarray, scores: np.ndarray, known: list, budget: int) -> list[int]:
    """The naive way: all distances anew for each choice."""
    chosen: list[int] = []
    for _ in range(budget):
        there = [*known, *places[chosen]]
        values = [
            -1 if i in chosen else scores[i] * min((np.linalg.norm(places[i] - other) for other in there), default=1)
            for i in range(len(places))
        ]
        chosen.append(int(np.argmax(values)))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_each_choice_is_doubtful_and_far_from_those_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places, scores, known = rng.random((20, 3)), rng.random(20), list(rng.random((seed, 3)))
    assert spread(scores, 8, places=places, known=known) == farthest(places, scores, known, 8)
    assert spread(scores, 8) == list(np.argsort(-scores)[:8]), "without places the scores alone"


def test_no_group_gives_more_than_twice_its_share_while_others_have_images() -> None:
    scores = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1.0])
    groups = [*"aaaaaa", "b", "c", "c"]
    assert spread(scores, 3, groups=groups) == [0, 1, 6], "two of three groups' three"
    assert spread(scores, 5, groups=groups) == [0, 1, 2, 3, 6]
    assert spread(scores, 9, groups=groups) == [0, 1, 2, 3, 4, 5, 6, 7, 8], "all, where all are wanted"


def test_copies_come_last() -> None:
    places = np.array([[1.0, 0], [1, 0], [0, 1], [0.9, 0.1]])
    assert spread(np.array([0.9, 0.9, 0.5, 0.1]), 3, places=places) == [0, 2, 3], "the copy has no distance"


@pytest.mark.parametrize("protocol", [None, partial(sliding_window, window=32, stride=24)])
def test_a_survey_is_the_mean_over_pixels(trained: Path, protocol) -> None:
    predictor = load(trained / "checkpoints/last.ckpt", protocol=protocol)
    file = next((trained.parent / "data").iterdir()) / "images/val/val_00001.png"
    [view] = look(predictor, [read_image(file)])
    doubt, place = survey_file(predictor, Sample("a", str(file)), "doubt")
    differ, same = survey_file(predictor, Sample("a", str(file)), "disagreement")
    assert doubt == pytest.approx(1 - view.confidence["linear"].mean(), rel=1e-5)
    assert differ == pytest.approx(view.disagreement.mean(), rel=1e-5)
    assert np.linalg.norm(place) == pytest.approx(1) and np.array_equal(place, same)
    if protocol is None:
        pixels = normalize(as_tensor(read_image(file))[None], predictor.network)
        features = predictor.network(pixels).features[0].flatten(1).mean(dim=1).numpy()
        assert place == pytest.approx(features / np.linalg.norm(features), abs=1e-6)


def names(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_the_list_trains_and_a_missing_mask_is_named(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.copytree(next((trained.parent / "data").iterdir()), tmp_path / "set")
    labeled = names(run / "splits/labeled.txt")
    bare = names(run / "splits/unlabeled.txt")[:2]
    (tmp_path / "set/unlabeled").mkdir()
    for name in bare:  # images that nobody has labeled yet
        (tmp_path / f"set/images/train/{name}.png").rename(tmp_path / f"set/unlabeled/{name}.png")
        (tmp_path / f"set/labels/train/{name}.png").rename(tmp_path / f"{name}.png")
    dataset = ["dataset=folder", f"dataset.root={tmp_path}/set"]
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    chosen = choose(composed(checkpoint, "budget=8", "device=cpu", *dataset, name="choose"))
    assert sorted(chosen) == sorted(names(run / "splits/unlabeled.txt")), "the budget takes all that are unlabeled"
    assert names(run / "next/labeled.txt") == labeled + chosen
    with (run / "next/new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == chosen and [row["rank"] for row in rows] == [str(i) for i in range(1, 9)]
    assert all(0 < float(row["doubt"]) < 1 and Path(row["image"]).is_file() for row in rows)
    for row in rows:
        copy = run / f"next/images/{row['name']}.png"
        assert copy.read_bytes() == Path(row["image"]).read_bytes()
    noted = json.loads((run / "next/annotations.json").read_text())
    assert {image["file_name"] for image in noted["images"]} == {f"{name}.png" for name in chosen}
    assert (run / "next/new.html").read_text().count("data:image/jpeg") == 16

    few = choose(composed(checkpoint, "budget=3", f"output={tmp_path}/few", "format=labelme", *dataset, name="choose"))
    assert {path.stem for path in (tmp_path / "few/labelme").glob("*.json")} == set(few)
    assert few == chosen[:3], "a smaller budget takes the first of them"
    again = [f"split={run}/next/labeled.txt", *dataset, "backbone=tiny", "trainer.max_epochs=1"]
    with pytest.raises(ValueError, match=rf"2 of 12 names are not images for training, first ({bare[0]}|{bare[1]})"):
        fit(small_config(tmp_path / "again", *again))
    for name in bare:  # drawn
        (tmp_path / f"set/unlabeled/{name}.png").rename(tmp_path / f"set/images/train/{name}.png")
        (tmp_path / f"{name}.png").rename(tmp_path / f"set/labels/train/{name}.png")
    (tmp_path / "set/unlabeled").rmdir()
    again[0] = f"split={tmp_path}/few/labeled.txt"
    summary = fit(small_config(tmp_path / "again", *again))
    assert (summary["num_labeled"], summary["num_unlabeled"], summary["split_family"]) == (7, 5, "own")


def test_names_in_folders_and_photos_that_cannot_be_read(trained: Path, tmp_path: Path, capsys) -> None:
    run, root = tmp_path / "run", tmp_path / "set"
    shutil.copytree(trained, run)
    shutil.copytree(next((trained.parent / "data").iterdir()), root)
    for part in ("images", "labels"):  # names as published lists have them
        (root / part / "train").rename(tmp_path / part)
        (root / part / "train").mkdir()
        (tmp_path / part).rename(root / part / "train/JPEGImages")
    labeled, bare = (names(run / f"splits/{name}.txt") for name in ("labeled", "unlabeled"))
    (run / "splits/labeled.txt").write_text("".join(f"JPEGImages/{name}.png\n" for name in labeled))
    (root / f"images/train/JPEGImages/{bare[0]}.png").write_bytes(b"")
    words = ["budget=8", "device=cpu", "dataset=folder", f"dataset.root={root}"]
    chosen = choose(composed(f"checkpoint={run}/checkpoints/last.ckpt", *words, name="choose"))
    assert sorted(chosen) == sorted(f"JPEGImages/{name}" for name in bare[1:])
    assert f"left out: {root}/images/train/JPEGImages/{bare[0]}.png: not readable" in capsys.readouterr().out
    split = make_split(folder(root), str(run / "next/labeled.txt"))
    assert len(split.labeled) == len(labeled) + 7


def test_users_mistakes_are_one_line(trained: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={trained}/checkpoints/last.ckpt"
    for budget, remedy in {
        "9": ".* has 8 unlabeled images; choose 1 to that",
        "0": "choose a whole number of 1 or more",
        "many": "choose a whole number of 1 or more",
    }.items():
        with pytest.raises(ValueError, match=f"budget={budget}: {remedy}"):
            choose(composed(checkpoint, f"budget={budget}", f"output={tmp_path}", name="choose"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: cannot be written \(.*\); name another folder with output=FOLDER"):
        choose(composed(checkpoint, "budget=1", f"output={tmp_path}/file", name="choose"))
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints/last.ckpt")
    alone = f"checkpoint={tmp_path}/checkpoints/last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"splits/labeled\.txt: no such list"):
        choose(composed(alone, "budget=1", name="choose"))
    for key, answer in {
        "score=entropy": "score=entropy: choose doubt or disagreement",
        "diversity=color": "diversity=color: choose features or null",
        "format=voc": "format=voc: choose coco, labelme or null",
        "group=ward": "group=ward: says nothing of any image",
    }.items():
        with pytest.raises(ValueError, match=answer):
            choose(composed(checkpoint, "budget=1", key, name="choose"))


def test_a_method_of_one_head_chooses_by_doubt(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    content["pcr_seg"]["method"] = {"_target_": "pcr_seg.method.supervised.Supervised"}
    content["state_dict"] = {key: x for key, x in content["state_dict"].items() if not key.startswith("method.")}
    shutil.copytree(trained / "splits", tmp_path / "run/splits")
    (tmp_path / "run/checkpoints").mkdir()
    torch.save(content, tmp_path / "run/checkpoints/last.ckpt")
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    assert len(choose(composed(checkpoint, "budget=2", "diversity=null", "format=null", name="choose"))) == 2
    assert not (tmp_path / "run/next/images").exists()
    with pytest.raises(ValueError, match=r"score=disagreement: pcr has no second head to disagree; choose score=doubt"):
        choose(composed(checkpoint, "budget=2", "score=disagreement", name="choose"))


@pytest.mark.parametrize(("device", "width"), [("desktop", 1280), ("phone", 390)])
def test_the_page_in_a_browser(trained: Path, tmp_path: Path, browser, device: str, width: int) -> None:
    checkpoint = f"checkpoint={trained}/checkpoints/last.ckpt"
    choose(composed(checkpoint, "budget=3", f"output={tmp_path}", "format=null", name="choose"))
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto((tmp_path / "new.html").as_uri())
    assert page.locator("figure").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width, f"something sticks out on a {device}"
    picture = page.locator(".zoom img").nth(1)
    small = picture.bounding_box()["width"]
    picture.click()
    assert picture.bounding_box()["width"] > 2 * small, "a click enlarges it"
    picture.click()
    assert picture.bounding_box()["width"] == small
    page.close()


def test_no_command_hides_a_module_that_python_needs() -> None:
    hidden = {path.stem for path in CONF.parent.glob("*.py")} & set(sys.stdlib_module_names)
    assert not hidden, "python train.py looks for modules beside train.py first"
