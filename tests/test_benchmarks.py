"""The benchmarks compare like with like, and what they found keeps its order of magnitude."""

import copy
from pathlib import Path

import growth
import levers
import loader
import method
import plain
import pytest
import run
import step
import torch
from measure import compare, peak_mebibytes
from torch.testing import assert_close

from pcr_seg.method import unimatch


def test_the_released_way_and_ours_agree() -> None:
    given = method.inputs(images=2, dim=16, crop=65, num_classes=5, num_prototypes=3)
    assert_close(method.ours(*given), method.released(*given), rtol=1e-4, atol=1e-6)


def test_every_lever_changes_nothing_but_the_cost(tmp_path: Path) -> None:
    for name, lever in levers.levers(tmp_path, side=128).items():
        message = f"{name}: " + "{}"
        assert_close(lever.ours(), lever.plain(), rtol=lever.tolerance, atol=lever.tolerance, msg=message.format)


def test_sampling_stays_far_cheaper_than_the_released_way() -> None:
    given = method.inputs(images=1, dim=128, crop=129, num_classes=21, num_prototypes=4)
    versions = {"released": lambda: method.released(*given), "ours": lambda: method.ours(*given)}
    released, ours = compare("", versions, repeats=3)
    assert ours["ratio"] < 1 / 2
    assert ours["mebibytes"] < released["mebibytes"] / 3  # exact, whatever else the machine does


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("bank update without loops", 0.9),
        ("prototype head at every pixel by upsampled products", 0.5),
        ("crop, then resize", 0.7),
        ("decoded pixels memory-mapped", 0.5),
    ],
)
def test_levers_still_pay(tmp_path: Path, name: str, most: float) -> None:
    lever = (levers.prototypes(side=128) | levers.data(tmp_path, side=256))[name]
    _, ours = compare(name, {"plain": lever.plain, "ours": lever.ours}, repeats=5, memory=False)
    assert ours["ratio"] < most  # several times what is measured on a quiet machine


def test_the_prototype_step_grows_at_most_linearly() -> None:
    rows = []
    for classes in (8, 256):
        given = method.inputs(images=1, dim=64, crop=65, num_classes=classes, num_prototypes=4)
        rows += [row | {"version": f"{classes}"} for row in compare("c", {"": lambda g=given: method.ours(*g)}, 5)]
    [(_, time, memory)] = growth.slopes([rows[0], rows[0], rows[1]])
    assert time < 1.2 and memory < 1.05


def test_peak_memory_is_what_was_held_at_once() -> None:
    def function() -> torch.Tensor:
        first = torch.ones(2**18)  # 1 MiB
        second = torch.ones(2**19)
        del first
        return second + 1

    assert peak_mebibytes(function) == pytest.approx(4, abs=0.01)


def test_tables_are_filled_in_between_their_markers() -> None:
    rows = compare("adding", {"one": lambda: torch.ones(3) + 1}, repeats=1)
    machine = {"cpu": "x", "threads": 1, "busy": 0, "date": "d", "commit": None, "versions": {}}
    results = {"method": {"machine": machine, "rows": rows, "targets": [("goal", "1", "2")]}}
    before = "text\n<!-- targets -->\n<!-- end -->\n<!-- method -->\nold\n<!-- end -->\nmore"
    after = run.filled(before, results)
    assert "old" not in after and "| adding | one |" in after and "| goal | 1 | 2 |" in after
    assert after.startswith("text\n") and after.endswith("\nmore") and run.filled(after, results) == after


def test_the_document_has_a_place_for_every_part() -> None:
    text = (run.ROOT / "docs/performance.md").read_text()
    assert all(f"<!-- {part} -->" in text for part in (*run.PARTS, "targets"))


def test_the_usual_loader_shows_what_ours_does(tmp_path: Path) -> None:
    samples = loader.write_pictures(tmp_path / "set", 1, 64, 96, ".png", {})
    image, mask = loader.UsualViews(samples, 32)[0, 0]
    assert image.shape == (3, 32, 32) and mask.shape == (32, 32) and image.dtype == torch.float32


def test_unimatchs_published_step_and_ours_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same boxes, and the same half of the channels dropped."""
    settings = ("method=unimatch", "model.dropout=0", "method.threshold=0.1")
    module = step.make_module(*settings, dataset="synthetic")
    batch = step.make_batch(2, 33, strong_views=2)
    boxes = torch.zeros(2, 2, 1, 33, 33, dtype=torch.bool)
    boxes[0, :, :, 4:20, 8:24] = boxes[1, :, :, 12:30, :10] = True
    drawn = iter(boxes)
    monkeypatch.setattr(unimatch, "small_boxes", lambda *size, **options: next(drawn))
    half = lambda x, share: x * (torch.arange(x.shape[1]) % 2)[:, None, None]  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "dropout2d", half)
    network = copy.deepcopy(module.student).train()
    theirs = plain.unimatch_step(network, torch.optim.SGD(network.parameters(), lr=0), batch, list(boxes[:, :, 0]), 0.1)
    unlabeled = batch["unlabeled"] | {"other": batch["other"]}
    ours = module.method(module.student.train(), module.teacher, batch["labeled"], unlabeled)
    assert theirs["supervised"] == pytest.approx(ours["supervised"].item(), rel=1e-4)
    assert theirs["strong"] / 2 == pytest.approx(ours["consistency"].item(), rel=1e-4)
    assert theirs["features"] == pytest.approx(ours["features"].item(), rel=1e-4)
