"""Real small files of every kind, read as arrays or refused in one line."""

import warnings

import numpy as np
import pytest
from PIL import Image
from test_sources import colors, save

from pcr_seg.data.files import Sample, image_size, read_image, read_mask


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_every_color_mode_reads_as_rgb(tmp_path, mode):
    image = Image.fromarray(colors()).convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    read = read_image(path)
    assert read.shape == (4, 6, 3) and read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.array(image.convert("RGB")))
    assert read.flags.writeable  # transforms work in place


def test_palette_with_transparency_reads_without_a_warning(tmp_path):
    image = Image.fromarray(colors()).convert("P")
    path = save(tmp_path / "a.png", image, transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_turns_image_and_size(tmp_path, suffix, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", colors(), exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), upright(colors()))
    assert image_size(path) == upright(colors()).shape[:2]


def test_jpeg_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", colors(), exif=exif)
    assert read_image(path).shape == (6, 4, 3) and image_size(path) == (6, 4)


def test_sixteen_bits_are_refused(tmp_path):
    path = save(tmp_path / "deep.png", Image.fromarray(np.full((4, 4), 4000, np.uint16)))
    with pytest.raises(ValueError, match=r"deep\.png: image has mode I;16; scale it to 0\.\.255"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size, lambda path: read_mask(Sample("a", path, path))])
def test_empty_garbled_and_missing_files(tmp_path, read):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"empty\.png: not readable as an image \(it is empty\); replace"):
        read(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"text\.png: not readable as an image .*; replace") as error:
        read(tmp_path / "text.png")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no "):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_truncated_files_at_every_tenth(tmp_path, suffix):
    data = save(tmp_path / f"a.{suffix}", colors(32, 32)).read_bytes()
    for tenth in range(1, 10):
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(ValueError, match=rf"a\.{suffix}: not readable as an image .*; replace"):
            read_image(tmp_path / f"a.{suffix}")


def test_palette_mask_reads_as_indices(tmp_path):
    labels = np.array([[0, 1, 2], [20, 255, 7]], np.uint8)
    image = Image.frombytes("P", (3, 2), labels.tobytes())
    image.putpalette(bytes(reversed(range(256))) * 3)
    mask = read_mask(Sample("a", tmp_path / "a.jpg", save(tmp_path / "a.png", image)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, labels)


def test_bilevel_mask_reads_as_zero_and_one(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(labels * 255).convert("1"))
    np.testing.assert_array_equal(read_mask(Sample("a", path, path)), labels)


def test_label_map_is_applied(tmp_path):
    path = save(tmp_path / "a.png", [[0, 11], [5, 3]])
    label_map = np.arange(256, dtype=np.uint8)[::-1]
    np.testing.assert_array_equal(read_mask(Sample("a", path, path, label_map)), [[255, 244], [250, 252]])


@pytest.mark.parametrize(("mode", "bands"), [("RGB", 3), ("RGBA", 4), ("I;16", 1)])
def test_masks_of_several_channels_or_more_bits_are_refused(tmp_path, mode, bands):
    image = Image.new(mode, (3, 2))
    path = save(tmp_path / "labels" / "a.png", image)
    expected = rf"labels/a\.png: mask is {mode} \({bands} channels\), expected one 8-bit channel .*; convert it with"
    with pytest.raises(ValueError, match=expected) as error:
        read_mask(Sample("a", tmp_path / "a.jpg", path))
    assert "\n" not in str(error.value)


def test_missing_mask_names_mask_image_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no mask for .*a\.jpg; add it, or use .* as unlabeled"):
        read_mask(Sample("a", tmp_path / "a.jpg", tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"a\.jpg: labeled, but it has no mask; add one"):
        read_mask(Sample("a", tmp_path / "a.jpg"))
