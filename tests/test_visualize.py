import colorsys
import subprocess
import sys

import numpy as np
import pytest

from pcr_seg.data.classes import distinct_colors
from pcr_seg.pictures.visualize import IGNORE_COLOR, colorize, heat, overlay, panel

COLORS = [(0, 0, 0), (200, 0, 0), (0, 100, 50)]


def picture(height: int, width: int, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_palette_is_distinct_and_repeatable():
    colors = distinct_colors(60)
    values = np.array(colors, dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1)[~np.eye(60, dtype=bool)]
    assert distances.min() > 20
    assert colors == distinct_colors(60)
    assert distinct_colors(5) == colors[:5]
    assert distinct_colors(0) == []
    # none of them can be taken for the grey of ignored pixels
    assert all(colorsys.rgb_to_hsv(*(channel / 255 for channel in color))[1] > 0.4 for color in colors)


def test_colorize_gives_every_id_its_color():
    mask = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)
    expected = [[COLORS[0], COLORS[1], COLORS[2]], [IGNORE_COLOR, COLORS[2], COLORS[1]]]
    painted = colorize(mask, COLORS)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted, expected)
    np.testing.assert_array_equal(colorize(mask.astype(np.int64), COLORS), expected)


def test_colorize_keeps_255_for_ignore_in_a_long_palette():
    colors = distinct_colors(300)
    painted = colorize(np.array([[254, 255, 299]]), colors)
    np.testing.assert_array_equal(painted, [[colors[254], IGNORE_COLOR, colors[299]]])


@pytest.mark.parametrize("strange", [3, -1])
def test_colorize_refuses_an_id_without_a_color(strange):
    with pytest.raises(ValueError, match=f"the id {strange}, but the palette has 3"):
        colorize(np.array([[0, strange]]), COLORS)


def test_overlay_mixes_and_keeps_the_image_where_nothing_is_claimed():
    mask = np.array([[1, 255]])
    np.testing.assert_array_equal(overlay(picture(1, 2, 100), mask, COLORS, 0.25), [[(125, 75, 75), (100, 100, 100)]])
    np.testing.assert_array_equal(overlay(picture(1, 2, 100), mask, COLORS, 0), picture(1, 2, 100))
    np.testing.assert_array_equal(overlay(picture(1, 2, 100), mask, COLORS, 1)[0, 0], COLORS[1])
    np.testing.assert_array_equal(overlay(picture(1, 2, 100), mask, COLORS, 1, background=1), picture(1, 2, 100))


def test_heat_rises_in_lightness_and_marks_what_is_missing():
    painted = heat(np.linspace(0, 1, 11)[None])
    lightness = painted[0] @ [0.2126, 0.7152, 0.0722]
    assert painted.dtype == np.uint8
    assert (np.diff(lightness) > 0).all()
    # whole numbers are values, too, and not rows of the colour table; rounding beyond 1 is clipped
    np.testing.assert_array_equal(heat(np.array([[0, 1]])), painted[:, [0, -1]])
    np.testing.assert_array_equal(heat(np.array([[-1e-6, 1 + 1e-6]])), painted[:, [0, -1]])
    np.testing.assert_array_equal(heat(np.array([[np.nan]])), [[IGNORE_COLOR]])


def test_panel_shows_every_picture_at_its_own_shape():
    rows = [[picture(10, 20, 10), picture(10, 20, 60)], [picture(300, 150, 110), picture(300, 150, 160)]]
    drawn = np.asarray(panel(rows, ["left", "right"], cell=64))
    for value, height, width in ((10, 32, 64), (60, 32, 64), (110, 64, 32), (160, 64, 32)):
        ys, xs = np.nonzero((drawn == value).all(axis=-1))
        # letters bring single pixels of any grey, so look at the rows and columns that are mostly of this one
        assert (np.bincount(ys) >= width).sum() == height, value
        assert (np.bincount(xs) >= height).sum() == width, value


def test_panel_grows_with_its_legend_and_shows_each_color():
    plain = panel([[picture(8, 8)]], ["image"])
    colors = distinct_colors(30)
    full = panel([[picture(8, 8)]], ["image"], [(f"class {i}", color) for i, color in enumerate(colors)])
    assert full.height > plain.height
    found = {tuple(color) for color in np.asarray(full).reshape(-1, 3).tolist()}
    assert set(colors) <= found


def test_panel_is_wide_enough_for_a_long_name_and_a_long_title():
    name = "a class whose name is far longer than the picture is wide"
    narrow = [[picture(64, 4)]]
    short, long = (np.asarray(panel(narrow, ["t"], [(text, (9, 200, 9))], cell=64)) for text in (name[:8], name))
    assert long.shape[1] > short.shape[1]
    for drawn in (long, np.asarray(panel(narrow, ["prototype assignment"], cell=64))):
        # nothing touches the edge
        assert (drawn[:, :2] == 255).all()
        assert (drawn[:, -2:] == 255).all()


def test_panel_wants_a_picture_for_each_title():
    with pytest.raises(ValueError, match="shorter"):
        panel([[picture(2, 2)]], ["a", "b"])


def test_drawing_needs_no_display_state():
    code = "import sys, pcr_seg.pictures.visualize, pcr_seg.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
