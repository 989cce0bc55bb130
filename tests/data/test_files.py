"""Real small files of every kind, read as arrays or refused in one line."""

import warnings

import numpy as np
import pytest
from PIL import Image
from test_sources import colors, save

from pcr_seg.data.files import DataError, Format, Sample, image_size, read_image, read_mask


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


def test_sixteen_bits_are_scaled_from_the_value_that_is_white(tmp_path):
    values = np.array([[0, 1000, 4095]], np.uint16)
    path = save(tmp_path / "deep.png", Image.fromarray(values))
    assert read_image(path, Format(max_value=4095))[0].tolist() == [[0] * 3, [62] * 3, [255] * 3]
    assert read_image(path)[0, :, 0].tolist() == [0, 4, 16]  # of 65535
    assert read_image(path, Format(1, 4095)).shape == (1, 3, 1)
    with pytest.raises(DataError, match=r"deep\.png: values 0\.\.4095 are not in 0\.\.1023; set dataset\.max_value"):
        read_image(path, Format(max_value=1023))


def test_floats_need_to_know_what_is_white(tmp_path):
    path = save(tmp_path / "float.tif", Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))
    assert read_image(path, Format(max_value=1))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match=r"float\.tif: image has floating-point values; set dataset\.max_value"):
        read_image(path)
    path = save(tmp_path / "nan.tif", Image.fromarray(np.array([[0.0, np.nan]], np.float32)))
    with pytest.raises(DataError, match=r"nan\.tif: values nan\.\.nan are not in 0\.\.1"):
        read_image(path, Format(max_value=1))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK"])
def test_channels(tmp_path, mode):
    image = Image.fromarray(colors()).convert(mode)
    path = save(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(read_image(path, Format(channels=1))[..., 0], np.array(image.convert("L")))
    if mode in ("RGBA", "CMYK"):
        np.testing.assert_array_equal(read_image(path, Format(channels=4)), np.array(image))
        assert image_size(path, Format(channels=4)) == (4, 6)
    else:
        for read in (read_image, image_size):
            with pytest.raises(DataError, match=rf"image is {mode} \(\d channels\), but dataset\.channels=4"):
                read(path, Format(channels=4))


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


COLORS = {(0, 0, 0): 0, (200, 0, 0): 1, (0, 0, 255): 255}
LABELS = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)


def painted() -> Image.Image:
    palette = np.zeros((256, 3), np.uint8)
    palette[list(COLORS.values())] = list(COLORS)
    return Image.fromarray(palette[LABELS])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_colors(tmp_path, mode, suffix):
    path = save(tmp_path / f"a.{suffix}", painted().convert(mode))
    np.testing.assert_array_equal(read_mask(Sample("a", path, path, None, Format(3, None, 2, COLORS))), LABELS)


@pytest.mark.parametrize("colors", [{}, {(200, 0, 0): 0}, {(255, 255, 255): 0}])
def test_a_color_that_is_no_class_is_refused(tmp_path, colors):
    path = save(tmp_path / "a.png", painted())
    with pytest.raises(DataError, match=r"a\.png: mask (has the color \(0, 0, 0\), which no|is RGB .* no colors of)"):
        read_mask(Sample("a", path, path, None, Format(colors=colors)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGB"])
def test_black_and_white_masks_by_color(tmp_path, mode):
    image = Image.fromarray(np.where(LABELS == 1, 255, 0).astype(np.uint8)).convert(mode)
    path = save(tmp_path / "a.png", image)
    format = Format(num_classes=2, colors={(0, 0, 0): 0, (255, 255, 255): 1}, masks="colors")
    np.testing.assert_array_equal(read_mask(Sample("a", path, path, None, format)), LABELS == 1)


def test_palettes_that_contradict_the_classes_are_refused(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 0, 0])
    path, format = tmp_path / "a.png", Format(num_classes=2, colors=COLORS)
    image.save(path)
    with pytest.raises(DataError, match=r"a\.png: mask's palette gives index 0 the color of class 1"):
        read_mask(Sample("a", path, path, None, format))
    assert read_mask(Sample("a", path, path, None, format._replace(masks="colors"))).tolist() == [[1, 0]]
    image.putpalette([0, 0, 0, 200, 0, 0])  # agrees
    image.save(path)
    assert read_mask(Sample("a", path, path, None, format)).tolist() == [[0, 1]]
    image.putpalette([200, 0, 0, 7, 7, 7])  # has colors of its own: the indices count
    image.save(path)
    assert read_mask(Sample("a", path, path, None, format)).tolist() == [[0, 1]]


def test_masks_of_16_bits_hold_ids_as_well(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(LABELS.astype(np.uint16)))
    np.testing.assert_array_equal(read_mask(Sample("a", path, path)), LABELS)


def test_a_turned_mask_is_turned_as_its_image_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", LABELS, exif=exif)
    np.testing.assert_array_equal(read_mask(Sample("a", path, path)), np.rot90(LABELS, -1))


@pytest.mark.parametrize("kind", ["GIF", "PPM", "EPS", "PDF"])
def test_other_formats_are_never_opened(tmp_path, kind):
    Image.fromarray(colors()).save(tmp_path / "a.png", kind)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"a\.png: not readable as an image \(unknown format\); replace"):
            read(tmp_path / "a.png")


def test_every_damaged_bit_of_a_png_mask_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", np.kron(LABELS % 3, np.ones((8, 8))))
    content, whole, noticed = path.read_bytes(), read_mask(Sample("a", path, path)), 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_mask(Sample("a", path, path)), whole)
        except DataError:
            noticed += 1
    assert noticed > 0.99 * 8 * len(content)


def test_missing_mask_names_mask_image_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no mask for .*a\.jpg; add it, or use .* as unlabeled"):
        read_mask(Sample("a", tmp_path / "a.jpg", tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"a\.jpg: labeled, but it has no mask; add one"):
        read_mask(Sample("a", tmp_path / "a.jpg"))
