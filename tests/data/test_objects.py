"""Sizes and thickness of drawn objects, and masks after a stride beside what torch makes of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from test_sources import save

from pcr_seg.data import objects
from pcr_seg.data.objects import after, confusion, connected, iou, mean_kept, measure
from pcr_seg.data.sources import Source, folder


def drawn(draw=None, *arguments, side: int = 96) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    return mask if draw is None else draw(mask, *arguments)


def source_of(root: Path, masks: list[np.ndarray]) -> Source:
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("0 ground 0 0 0\n1 cat 200 0 0\n2 dog 0 200 0\n")
    for number, mask in enumerate(masks):
        save(root / f"images/train/a{number}.png", np.full((*mask.shape, 3), number))
        save(root / f"labels/train/a{number}.png", mask)
    return folder(root)


@pytest.mark.parametrize("width", [2, 4, 8, 20])
def test_a_stripe_is_as_thick_as_it_is(width: int) -> None:
    mask = drawn()
    mask[5:91, 40 : 40 + width] = 1
    [(area, size, thickness)] = connected(mask == 1)
    assert (area, size) == (86 * width, 86) and thickness == pytest.approx(width, rel=0.15)
    [(_, size, thickness)] = connected(np.eye(200, dtype=bool)[:, ::1] | np.eye(200, k=1, dtype=bool))
    assert size == 200 and thickness == pytest.approx(2, rel=0.1)


def test_a_disc_has_two_thirds_of_its_diameter() -> None:
    mask = drawn(cv2.circle, (48, 48), 30, 1, -1)
    [(_, size, thickness)] = connected(mask == 1)
    assert size == 61 and thickness == pytest.approx(2 / 3 * 61, rel=0.05)


def test_objects_at_the_edge_of_an_image_go_on_and_specks_do_not_count() -> None:
    mask = drawn()
    mask[:, :10] = 1  # cut by three edges: to its only one the pixels have 5 of 10 on average, as half of a stripe
    mask[50, 50] = 1
    mask[60:62, 70:72] = 1
    found = sorted(connected(mask == 1))
    assert [(area, size) for area, size, _ in found] == [(4, 2), (960, 96)]
    assert found[1][2] == pytest.approx(20, rel=0.1)
    assert connected(np.ones((40, 50), bool))[0][:2] == (2000, 50), "a class that fills the image has no edge"


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_masks_after_a_stride_are_torchs(stride: int, seed: int) -> None:
    mask = np.kron(np.random.default_rng(seed).integers(0, 3, (12, 16)), np.ones((7, 7))).astype(np.uint8)[:80, :96]
    one_hot = F.one_hot(torch.from_numpy(mask).long(), 3).permute(2, 0, 1)[None].float()
    logits = F.interpolate(F.avg_pool2d(one_hot, stride), mask.shape, mode="bilinear", align_corners=False)[0]
    best = logits.max(dim=0)
    clear = (logits.sort(dim=0).values[-1] - logits.sort(dim=0).values[-2] > 1e-4).numpy()  # no tie
    assert clear.mean() > 0.9
    assert (after(mask, stride)[clear] == best.indices.numpy()[clear]).all()


def test_iou_counts_known_pixels_only() -> None:
    truth, found = np.array([[0, 0, 1, 255], [1, 1, 255, 2]]), np.array([[0, 1, 1, 2], [1, 0, 0, 2]])
    assert iou(confusion(truth, found, 4)) == [round(1 / 3, 4), 0.5, 1.0, None]


def test_thin_objects_lose_by_strides_and_thick_ones_do_not(tmp_path: Path) -> None:
    thin = drawn(side=128)
    thin[10:120, 30:35] = 1
    thin[20:100, 60:120] = 2
    ground, cat, dog = measure(source_of(tmp_path, [thin] * 3), 128 * 128)
    assert cat.count == dog.count == 3 and (cat.size, dog.size) == (110, 80)
    assert 0.4 < cat.kept[4] < 1 and cat.kept[8] == cat.kept[16] == 0
    assert min(dog.kept.values()) > 0.9 and ground.share > dog.share > cat.share > 0
    mean = sum(one.kept[8] for one in (ground, cat, dog)) / 3
    assert mean_kept([ground, cat, dog], 8) == pytest.approx(mean)


def test_size_and_thickness_are_those_of_half_of_the_pixels(tmp_path: Path) -> None:
    large, small = drawn(), drawn()
    large[10:90, 10:90] = 1
    small[::12, ::12] = small[1::12, ::12] = small[::12, 1::12] = small[1::12, 1::12] = 1
    _, cat, dog = measure(source_of(tmp_path, [large, small, small]), 96 * 96)
    assert cat.count == 1 + 2 * 64 and cat.size == 80
    assert dog.count == 0 and dog.kept == {4: None, 8: None, 16: None}


def test_a_sample_is_measured_and_what_cannot_be_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [drawn(cv2.circle, (48, 48), 10 + number, 1, -1) for number in range(30)]
    source = source_of(tmp_path / "many", masks)
    monkeypatch.setattr(objects, "MOST", 8)
    assert measure(source, 96 * 96)[1].count == 8
    assert measure(source, 10**9)[1].count == 8, "at least ten of very large images, but for MOST"
    (tmp_path / "many/labels/train/a0.png").write_bytes(b"garbage")
    assert measure(source, 96 * 96)[1].count == 7
    tiny = source_of(tmp_path / "tiny", [np.zeros((20, 40), np.uint8)])
    assert measure(tiny, 800) is None
    ignored = source_of(tmp_path / "ignored", [np.full((64, 64), 255, np.uint8)])
    assert measure(ignored, 64 * 64) is None


def test_real_poles_are_thin_and_real_animals_are_not() -> None:
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not on this machine")
    camvid = folder(SHARED / "data/camvid")
    found = dict(zip(camvid.classes, measure(camvid, 10**6), strict=True))
    assert found["pole"].thickness < 5 and found["pole"].kept[4] < 0.8 < found["car"].kept[8]
    assert mean_kept(measure(folder(SHARED / "data/voc_animals"), 10**6), 16) > 0.9
