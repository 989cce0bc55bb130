"""Windows cover an image once, lie on the grid, and read as whole files do."""

import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcr_seg.data.files import DataError, Format, read_image
from pcr_seg.data.tiles import GRID, Cut, cuts, open_tiff, read_strip, read_window


@given(st.integers(1, 3000), st.integers(33, 700), st.integers(0, 150))
def test_kept_parts_cover_the_axis_once_and_keep_their_distance(size: int, tile: int, margin: int) -> None:
    try:
        found = cuts(size, tile, margin)
    except ValueError:
        assert tile < 2 * (-(-margin // GRID) * GRID) + GRID + 1
        return
    assert [cut.first for cut in found[1:]] == [cut.last for cut in found[:-1]]
    assert (found[0].first, found[-1].last) == (0, size)
    for cut in found:
        assert 0 <= cut.start <= cut.first < cut.last <= cut.stop <= size and cut.stop - cut.start <= tile
        assert cut.start % GRID == 0
        assert cut.start in (0, *range(cut.first - margin + 1)) and cut.stop >= min(size, cut.last + margin)
        assert (cut.stop - cut.start) % GRID == 1 or cut.stop == size


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_is_a_part_of_the_file_as_read_in_one_piece(tmp_path, mode: str, channels: int) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    rng, path = np.random.default_rng(0), tmp_path / "a.tif"
    bands = {"RGB": (3,), "RGBA": (4,)}.get(mode, ())
    values = rng.integers(0, 60_000 if mode == "I;16" else 256, (50, 70, *bands))
    values = values.astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(values).save(path, compression="tiff_adobe_deflate")
    format = Format(channels)
    with open_tiff(path) as file:
        window = read_window(file, Cut(32, 50, 40, 50), Cut(0, 33, 0, 30), format)
    np.testing.assert_array_equal(window, read_image(path, format)[32:50, 0:33])


def test_a_file_in_whole_rows_is_read_once_for_all_windows_beside_each_other(tmp_path, monkeypatch) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    values = np.random.default_rng(0).integers(0, 256, (3, 64, 96)).astype(np.uint8)
    rows, size = Cut(16, 48, 16, 48), {"height": 64, "width": 96, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        for name, blocks in {"rows": {}, "tiled": {"tiled": True, "blockxsize": 32, "blockysize": 32}}.items():
            with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **size, **blocks) as file:
                file.write(values)
    with open_tiff(tmp_path / "rows.tif") as file:
        strip = read_strip(file, rows, Format())
        for column in cuts(96, 33, 0):
            window = read_window(file, rows, column, Format())
            np.testing.assert_array_equal(strip[:, column.start : column.stop], window)
        monkeypatch.setattr("pcr_seg.data.tiles.STRIP_BYTES", 32 * 96 * 3 - 1)
        assert read_strip(file, rows, Format()) is None, "too large"
    with open_tiff(tmp_path / "tiled.tif") as file:
        monkeypatch.setattr("pcr_seg.data.tiles.STRIP_BYTES", 2**28)
        assert read_strip(file, rows, Format()) is None, "a window costs no more than itself"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_both_readers_read_the_same_bands(tmp_path, dtype: str) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    path, read_by_both = tmp_path / "a.tif", []
    for bands, photometric in itertools.product(range(1, 6), (None, "RGB", "MINISBLACK")):
        if photometric == "RGB" and bands < 3:
            continue
        values = np.random.default_rng(0).integers(0, 255, (bands, 20, 30)).astype(dtype)
        options = {"photometric": photometric} if photometric else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(
                path, "w", driver="GTiff", height=20, width=30, count=bands, dtype=dtype, **options
            ) as file:
                file.write(values * (257 if dtype == "uint16" else 1))
            for channels in (1, 3, 4):
                case, found = (bands, photometric, channels), []
                for reader in (of_window, read_image):
                    try:
                        found.append(reader(path, Format(channels, 65_535)))
                    except DataError as error:
                        assert re.search(r"a\.tif: (has )?\d bands? of|image is \S+ \(\d channels\)", str(error))
                assert len(found) in (0, 2), case
                if found:
                    np.testing.assert_array_equal(*found, err_msg=str(case))
                    read_by_both.append(case)
    assert {(1, None, 1), (1, None, 3)} <= set(read_by_both) and not [
        case for case in read_by_both if case[0] in (2, 5)
    ]
    if dtype != "float32":
        assert {(3, "RGB", 1), (3, "RGB", 3), (4, "RGB", 3)} <= set(read_by_both)
    if dtype == "uint8":
        assert (4, None, 4) in read_by_both


def of_window(path: Path, format: Format) -> np.ndarray:
    with open_tiff(path) as file:
        return read_window(file, Cut(0, 20, 0, 20), Cut(0, 30, 0, 30), format)


def test_what_a_window_does_not_read_is_one_line(tmp_path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    Image.new("P", (20, 20)).save(tmp_path / "palette.tif")
    with (
        open_tiff(tmp_path / "palette.tif") as file,
        pytest.raises(
            DataError, match=r"palette\.tif: 1 band of uint8 \(palette\), which tiles do not read .* -expand"
        ),
    ):
        read_window(file, Cut(0, 20, 0, 20), Cut(0, 20, 0, 20), Format())
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(OSError, match=r"text\.tif"), open_tiff(tmp_path / "text.tif"):
        pass
