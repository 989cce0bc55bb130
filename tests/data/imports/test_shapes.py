"""Shapes as pixels, compared with their definitions; small masks from PNGs of every kind."""

import base64
import io
import zlib

import numpy as np
import pytest
from exports import border, inside, oval
from PIL import Image

from pcr_seg.data.imports.shapes import (
    Draw,
    bitmap,
    box,
    clipped,
    dots,
    ellipse,
    line,
    png_mask,
    polygon,
    polygons,
    run_lengths,
    shape,
    turned,
)  # fmt: skip

SIZE = (40, 60)


def pixels(draw: Draw, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask, top, left = draw(size)
    whole = np.zeros(size, bool)
    window = whole[top : top + mask.shape[0], left : left + mask.shape[1]]
    assert window.shape == mask.shape, "nothing lies outside of the image"
    window[:] = mask
    return whole


@pytest.mark.parametrize("seed", range(8))
def test_polygons_lie_where_they_are_defined_to_lie(seed: int) -> None:
    random = np.random.default_rng(seed)
    ring = random.uniform([-20, -20], [80, 60], (random.integers(3, 9), 2)).tolist()  # partly outside, crossing itself
    found, expected = pixels(polygon(ring)), inside(ring, SIZE)
    assert ((found != expected) & ~border(expected)).sum() == 0 and found.any() == expected.any()


def test_whole_boxes_are_exact_and_holes_are_cut_out_of_the_union() -> None:
    draw = polygons([box(2, 3, 20, 15), box(10, 10, 30, 30)], [box(12, 12, 18, 14)])
    expected = np.zeros(SIZE, bool)
    expected[3:15, 2:20] = expected[10:30, 10:30] = True
    expected[12:14, 12:18] = False
    assert np.array_equal(pixels(draw), expected)


def test_far_away_is_no_pixel_and_what_is_no_ring_is_none() -> None:
    for ring in ([[100, 5], [130, 5], [110, 30]], [[-1e12, -5], [-1e9, -8], [-1e10, -9]]):
        assert not pixels(polygon(ring)).any()
    assert pixels(polygon([[-1e12, -1e12], [1e12, -1e12], [1e12, 1e12], [-1e12, 1e12]])).all()
    assert polygon([[1, 1], [2, 2]]) is None and polygons([]) is None
    with pytest.raises(ValueError, match="no numbers"):
        polygon([[1, 1], [2, float("nan")], [3, 3]])


def test_turned_rings_and_ellipses() -> None:
    ring = turned(box(10, 10, 20, 14), 90, 10, 10)
    assert np.allclose(ring, [[10, 10], [10, 20], [6, 20], [6, 10]]), "clockwise, as y points down"
    found = pixels(polygon(turned(ellipse(30, 20, 18, 7), 25, 30, 20)))
    expected = oval(30, 20, 18, 7, 25, SIZE)
    assert ((found != expected) & ~border(expected)).sum() == 0


def test_lines_and_dots_are_cut_at_the_images_border() -> None:
    assert line([[0, 0], [5, 5]], None) is None and dots([3, 3], None) is None and line([[1, 1]], 3) is None
    found = pixels(line([[-30, 20], [90, 20]], 4))
    assert found[:, 0].sum() == found[:, 59].sum() and 3 <= found[:, 30].sum() <= 5
    assert not pixels(line([[-30, -20], [90, -20]], 4)).any()
    assert 0 < pixels(dots([0, 0], 6)).sum() < 0.3 * pixels(dots([30, 20], 6)).sum() + 6


@pytest.mark.parametrize("place", [(-3, -4), (0, 0), (36, 55), (50, 10), (-20, 0)])
def test_bitmaps_are_clipped(place: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((10, 12)) > 0.5
    padded = np.zeros((100, 140), bool)
    padded[place[0] + 30 : place[0] + 40, place[1] + 40 : place[1] + 52] = mask
    assert np.array_equal(pixels(bitmap(mask, *place)), padded[30:70, 40:100])
    assert clipped(mask, *place, SIZE).mask.size <= mask.size


def test_run_lengths_go_along_rows_and_fill_the_mask() -> None:
    assert run_lengths([1, 2, 3], 2, 3).tolist() == [[False, True, True], [False] * 3]
    for counts in ([1, 2], [1, 2, 4], [7, -1], []):
        with pytest.raises(ValueError, match="do not fill"):
            run_lengths(counts, 2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P+", "RGB", "RGBA"])
def test_masks_in_pngs_of_every_kind(mode: str) -> None:
    mask = np.random.default_rng(0).random((9, 14)) > 0.5
    image, more = Image.fromarray(mask.astype(np.uint8) * (1 if mode[0] == "P" else 255)), {}
    if mode[0] == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
        more = {"transparency": 0} if mode == "P+" else {}
    elif "A" in mode:
        image = Image.merge(mode, [Image.new("L", image.size, 9)] * (len(mode) - 1) + [image])
    else:
        image = image.convert(mode)
    content = io.BytesIO()
    image.save(content, "PNG", **more)
    for text in (content.getvalue(), base64.b64encode(zlib.compress(content.getvalue())).decode()):
        assert np.array_equal(png_mask(text), mask)
    with pytest.raises(ValueError, match="not a PNG"):
        png_mask(content.getvalue()[:20])


def test_a_shape_that_cannot_be_made_says_so() -> None:
    drawers = {"ring": polygon, "line": lambda points: line(points, None)}
    assert shape("  a\n b ", "ring", drawers, [[1, 1], [9, 1], [9, 9]]).label == "a b"
    odd = [[1, 1], [2, "x"]]
    found = [shape(None, "ring", drawers, odd), shape("", "box", drawers, odd), shape(3, "line", drawers, odd[:1] * 2)]
    assert [one[:2] for one in found] == [(None, "damaged ring"), (None, "box"), ("3", "line")]
    assert all(one.draw is None for one in found)
