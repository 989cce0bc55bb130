"""Views of images whose colors are their own coordinates, so that each pixel tells where it comes from."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import references as ref
import torch

from pcr_seg import pixels
from pcr_seg.data import transforms

PADDING = (124, 116, 104)  # ImageNet's mean color


def ramp(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    row, column = np.mgrid[:height, :width]
    return np.stack([column, row, np.full_like(row, 7)], axis=-1).astype(np.uint8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def views(image: np.ndarray, mask: np.ndarray, count: int, crop_size: int, **options) -> Iterator[tuple]:
    """Image and mask of the views at `count` seeds."""
    for seed in range(count):
        yield transforms.geometric(image, mask, crop_size, **options, generator=np.random.default_rng(seed))


@pytest.mark.parametrize("size", [(120, 200), (61, 47), (250, 240)])
def test_a_view_is_the_crop_of_the_image_scaled_whole(size: tuple[int, int]) -> None:
    content = ramp(*size)
    for seed in range(60):
        given = (content, content[..., 0], 96, (0.5, 2.0), 255)
        image, mask = transforms.geometric(*given, generator=np.random.default_rng(seed))
        expected, expected_mask = ref.geometric(*given, generator=np.random.default_rng(seed))
        assert ((mask == 255) == (expected_mask == 255)).all()  # padding at the same place
        off = np.abs(image.astype(int) - expected)
        assert off.max() <= 2 and off.mean() < 1  # a ramp's values are pixels of the image: edges are rounded to them


def test_views_are_distributed_as_albumentations_distributes_them() -> None:
    content, drawn = ramp(100, 100), {"here": [], "there": []}
    usual = ref.albumentations_geometric(40)
    usual.set_random_state(np.random.default_rng(0), random.Random(0))
    for seed in range(1500):
        ours = transforms.geometric(content, content[..., 0], 40, generator=np.random.default_rng(seed))[0]
        theirs = usual(image=content, mask=content[..., 0])["image"]
        for image, values in zip((ours, theirs), drawn.values(), strict=True):
            red, green = image[20, :, 0].astype(int), image[:, 20, 1].astype(int)
            values.append((green[-1] - green[0], red[0] > red[-1], red.min(), green[0]))
    for here, there in zip(np.array(drawn["here"]).T, np.array(drawn["there"]).T, strict=True):
        grid = np.arange(0, 100, 5)
        distance = np.abs(np.searchsorted(np.sort(here), grid) - np.searchsorted(np.sort(there), grid)).max() / 1500
        assert distance < 0.06  # Kolmogorov-Smirnov at 1 %


def recolored(image: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Photometric views at `count` seeds."""
    transform = transforms.photometric()
    for seed in range(count):
        transforms.reseed(transform, seed)
        yield transform(image=image)["image"]


@pytest.mark.parametrize("options", [{}, {"pad_label": 255}, {"pad_label": 0}])
def test_padding_is_mean_color_and_pad_label(options: dict) -> None:
    content, labels = noise(20, 30, 3), np.full((20, 30), 3, np.uint8)
    image, mask = next(views(content, labels, 1, 64, scale=(1, 1), **options))
    inside = np.zeros((64, 64), bool)
    inside[22:42, 17:47] = True  # evenly on both sides
    assert (mask == np.where(inside, 3, options.get("pad_label", 255))).all()
    assert (image[~inside] == PADDING).all()
    shown = image[22:42, 17:47]
    assert (shown == content).all() or (shown == content[:, ::-1]).all()
    padding = pixels.normalize(pixels.as_tensor(image))[:, torch.from_numpy(~inside)]
    assert padding.abs().max() < 0.01


def test_padding_is_even_at_every_scale() -> None:
    for _, mask in views(noise(31, 40, 3), np.zeros((31, 40), np.uint8), 50, 96):
        for axis in (0, 1):
            inside = np.flatnonzero((mask == 0).any(axis))
            assert abs(inside[0] - (95 - inside[-1])) <= 1


@pytest.mark.parametrize("size", [(10, 10), (65, 65), (300, 200), (30, 400), (400, 30)])
def test_crop_has_its_size_whatever_the_image_has(size: tuple[int, int]) -> None:
    for image, mask in views(noise(*size, 3), np.zeros(size, np.uint8), 10, 65):
        assert image.shape == (65, 65, 3) and image.dtype == np.uint8
        assert mask.shape == (65, 65) and mask.dtype == np.uint8


@pytest.mark.parametrize("channel", [0, 1])
def test_mask_shows_the_same_place_as_the_image(channel: int) -> None:
    content, padded = ramp(120, 200), 0
    for image, mask in views(content, content[..., channel], 60, 128):
        inside = mask != 255
        # A nearest neighbour is up to a pixel and a half of the original away from the bilinear mean.
        assert abs(image[..., channel].astype(int) - mask)[inside].max() <= 2
        padded += not inside.all()
    assert 0 < padded < 60  # both cases were seen


def test_image_is_interpolated_but_labels_are_not() -> None:
    black = noise(100, 100) < 128
    image = np.where(black, 0, 200).astype(np.uint8)[..., None].repeat(3, axis=-1)
    labels = np.where(black, 3, 200).astype(np.uint8)
    labels[:50:7] = 255
    for blended, mask in views(image, labels, 20, 96):
        assert set(np.unique(mask)) <= {3, 200, 255}
        assert len(np.unique(blended)) > 5  # padding has three


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.75, 1.33)])
def test_half_of_the_views_shrink_and_half_enlarge(scale: tuple[float, float]) -> None:
    sizes = []
    for _, mask in views(noise(100, 100, 3), np.zeros((100, 100), np.uint8), 1500, 201, scale=scale):
        height, width = (mask == 0).any(1).sum(), (mask == 0).any(0).sum()
        assert height == width
        sizes.append(width / 100)
    sizes = np.array(sizes)
    smaller, larger = sizes[sizes < 0.995], sizes[sizes > 1.005]
    assert scale[0] - 0.01 <= sizes.min() and sizes.max() <= scale[1] + 0.01
    assert len(smaller) / 1500 == pytest.approx(0.5, abs=0.07)  # 3.4 standard deviations
    assert np.percentile(smaller, [25, 50, 75]) == pytest.approx(np.linspace(scale[0], 1, 5)[1:4], abs=0.04)
    assert np.percentile(larger, [25, 50, 75]) == pytest.approx(np.linspace(1, scale[1], 5)[1:4], abs=0.08)


@pytest.mark.parametrize("scale", [[0.5, 1.0], (0.3, 0.6), (1.0, 1.0), (1.2, 2.0)])
def test_a_range_on_one_side_of_1_is_uniform(scale: tuple[float, float]) -> None:
    content = noise(100, 100, 3), np.zeros((100, 100), np.uint8)
    sizes = np.array([(mask == 0).any(1).sum() / 100 for _, mask in views(*content, 1000, 221, scale=scale)])
    assert np.percentile(sizes, [0, 25, 50, 75, 100]) == pytest.approx(np.linspace(*scale, 5), abs=0.05)


def test_half_of_the_views_are_mirrored_and_none_stands_on_its_head() -> None:
    mirrored = 0
    for image, _ in views(ramp(120, 120), np.zeros((120, 120), np.uint8), 300, 48):
        (left, top), (right, bottom) = image[0, 0, :2].astype(int), image[-1, -1, :2].astype(int)
        assert bottom > top
        mirrored += left > right
    assert mirrored / 300 == pytest.approx(0.5, abs=0.08)


def test_crop_lies_anywhere() -> None:
    content, corners = ramp(40, 40), set()
    for image, _ in views(content, content[..., 0], 600, 35, scale=(1, 1)):
        corners.add((int(image[..., 1].min()), int(image[..., 0].min())))
    assert corners == {(row, column) for row in range(6) for column in range(6)}


def test_view_follows_from_the_seed() -> None:
    content = ramp(90, 90)
    first, second = (list(views(content, content[..., 0], 10, 64)) for _ in range(2))
    for (image, mask), (same_image, same_mask) in zip(first, second, strict=True):
        assert (image == same_image).all() and (mask == same_mask).all()
    assert len({image.tobytes() for image, _ in first}) == 10


def test_photometric_changes_colors_as_often_as_published() -> None:
    content, flat = noise(16, 16, 3), np.full((8, 8, 3), (40, 90, 200), np.uint8)
    images = list(recolored(content, 400))
    assert all(image.shape == content.shape and image.dtype == np.uint8 for image in images)
    gray = np.mean([(image == image[..., :1]).all() for image in images])
    changed = np.mean([(image != content).any() for image in images])
    flat_changed = np.mean([(image != flat).any() for image in recolored(flat, 400)])  # blur leaves it as it is
    assert gray == pytest.approx(0.2, abs=0.06)
    assert flat_changed == pytest.approx(1 - 0.2 * 0.8, abs=0.06)
    assert changed == pytest.approx(1 - 0.2 * 0.8 * 0.5, abs=0.06)


@pytest.mark.parametrize("axis", [0, 1])
def test_photometric_moves_nothing(axis: int) -> None:
    place = np.arange(48).reshape((48, 1) if axis == 0 else (1, 48)).repeat(48, axis=1 - axis)
    bright = (place >= 13) & (place < 40)
    content = np.where(bright, 160, 60).astype(np.uint8)[..., None].repeat(3, axis=-1)
    for image in recolored(content, 100):
        gray = image.astype(int).sum(-1)
        # Blur softens an edge on both sides alike, so the middle between dark and bright stays where it was.
        assert ((gray > (gray.min() + gray.max()) / 2) == bright).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_other_channel_counts(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    shown, mask = next(views(image, np.zeros((20, 30), np.uint8), 1, 32))
    assert shown.shape == (32, 32, channels)
    view = pixels.as_tensor(shown)
    assert (view.permute(1, 2, 0).numpy() == shown).all()
    padding = pixels.normalize(view)[:, torch.from_numpy(mask == 255)]
    assert padding.numel() and padding.abs().max() < 0.01
    color = transforms.photometric()
    transforms.reseed(color, 3)
    changed = transforms.recolor(color, shown)
    assert changed.shape == shown.shape and (changed != shown).any()
    assert (changed[..., 3:] == shown[..., 3:]).all()  # the fourth keeps its values
