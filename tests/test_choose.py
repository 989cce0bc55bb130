"""The next images: much disagreement, spread over the prototypes; a list that trains."""

import csv
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, small_config

from pcr_seg.checkpoint import load
from pcr_seg.commands.choose import choose, cover, disagreement_by_prototype
from pcr_seg.config import CONF
from pcr_seg.data.files import Sample, read_image
from pcr_seg.pictures.panels import look
from pcr_seg.training.fit import fit


def value(rows: np.ndarray) -> float:
    return sum(sum(row[m] for row in rows) ** 0.5 for m in range(rows.shape[1]))


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_adds_most_and_the_set_is_nearly_the_best(seed: int) -> None:
    spread = np.random.default_rng(seed).random((9, 5)) ** 4
    chosen = cover(spread, 4)
    for i, row in enumerate(chosen):
        before = chosen[:i]
        values = {other: value(spread[[*before, other]]) for other in range(9) if other not in before}
        assert values[row] == pytest.approx(max(values.values()))
    best = max(value(spread[list(some)]) for some in itertools.combinations(range(9), 4))
    assert best * (1 - 1 / np.e) <= value(spread[chosen]) <= best


def test_copies_come_after_what_is_new() -> None:
    disagreement_of_two_kinds = np.array([[0.9, 0.0], [0.9, 0.0], [0.0, 0.5], [0.0, 0.01]])
    assert cover(disagreement_of_two_kinds, 4) == [0, 2, 1, 3], "a frame like the first waits; a sure one stays last"


def test_disagreement_falls_to_the_nearest_prototypes(trained: Path) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    image = next((trained.parent / "data").iterdir()) / "images/val/val_00001.png"
    found, [whole] = disagreement_by_prototype(predictor, Sample("a", image)), look(predictor, [read_image(image)])
    assert found.shape == (20,) and found.sum() == pytest.approx(whole.disagreement.mean(), rel=1e-5)
    number = int(whole.nearest[3, 4])
    assert found[number] == pytest.approx(whole.disagreement[whole.nearest == number].sum() / 48**2, rel=1e-5)


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
    assert all(0 < float(row["disagreement"]) < 1 and Path(row["image"]).is_file() for row in rows)

    few = choose(composed(checkpoint, "budget=3", f"output={tmp_path}/few", *dataset, name="choose"))
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


def test_users_mistakes_are_one_line(trained: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={trained}/checkpoints/last.ckpt"
    for budget in (0, 9):
        with pytest.raises(ValueError, match=rf"budget={budget}: .* has 8 unlabeled images; choose 1 to that"):
            choose(composed(checkpoint, f"budget={budget}", f"output={tmp_path}", name="choose"))
    with pytest.raises(ValueError, match=r"budget=many: is no whole number; give one"):
        choose(composed(checkpoint, "budget=many", f"output={tmp_path}", name="choose"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: cannot be written \(.*\); name another folder with output=FOLDER"):
        choose(composed(checkpoint, "budget=1", f"output={tmp_path}/file", name="choose"))
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints/last.ckpt")
    alone = f"checkpoint={tmp_path}/checkpoints/last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"splits/labeled\.txt: no such list"):
        choose(composed(alone, "budget=1", name="choose"))
    content["state_dict"]["method.bank.is_initialized"].fill_(False)
    torch.save(content, tmp_path / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"pcr has no prototypes"):
        choose(composed(alone, "budget=1", name="choose"))


def test_no_command_hides_a_module_that_python_needs() -> None:
    hidden = {path.stem for path in CONF.parent.glob("*.py")} & set(sys.stdlib_module_names)
    assert not hidden, "python train.py looks for modules beside train.py first"
