"""Real small files of every kind, read as arrays or refused in one line."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from test_sources import colors, save

from pcr_seg.data import files
from pcr_seg.data.files import DataError, Format, Sample, image_size, nearly_black, read_header, read_image, read_mask


def tiff(samples: int, bits: int = 8, *, color: int = 1, planar: int = 1, kind: int = 1, big: bool = False) -> bytes:
    """A TIFF of 6x4 as GDAL writes one: `color` 1 grey, 2 RGB; `planar` 2 band after band; `kind` 3 floats."""
    size = 4 * 6 * bits // 8
    pixels = bytes(range(200))[: size // 4 * 4].ljust(size, b"\7") * samples
    strips = samples if planar == 2 else 1
    extra = samples - (3 if color == 2 else 1)
    tags = [
        (256, "H", [6]), (257, "H", [4]), (258, "H", [bits] * samples), (259, "H", [1]), (262, "H", [color]),
        (273, "L", [0] * strips), (277, "H", [samples]), (278, "H", [4]),
        (279, "L", [len(pixels) // strips] * strips), (284, "H", [planar]),
        *([(338, "H", [0] * extra)] if extra else []), (339, "H", [kind] * samples),
    ]  # fmt: skip
    head, count, entry, room = (16, "Q", "HHQ", 8) if big else (8, "H", "HHI", 4)
    data = head + struct.calcsize(f"<{count}") + len(tags) * (struct.calcsize(f"<{entry}") + room) + room
    length = sum(s for s in (struct.calcsize(f"<{len(v)}{t}") for _, t, v in tags) if s > room)
    directory, values = struct.pack(f"<{count}", len(tags)), b""
    for tag, letter, numbers in tags:
        if tag == 273:
            numbers = [data + length + strip * (len(pixels) // strips) for strip in range(strips)]
        packed = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        directory += struct.pack(f"<{entry}", tag, {"H": 3, "L": 4}[letter], len(numbers))
        if len(packed) <= room:
            directory += packed.ljust(room, b"\0")
        else:
            directory += struct.pack("<Q" if big else "<I", data + len(values))
            values += packed
    start = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) if big else b"II*\0" + struct.pack("<I", 8)
    return start + directory + bytes(room) + values + pixels


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"samples": 1}, (4, 6, 3)),
        ({"samples": 3, "color": 2}, (4, 6, 3)),
        ({"samples": 3, "color": 2, "planar": 2}, (4, 6, 3)),
        ({"samples": 4, "color": 2}, (4, 6, 3)),
        ({"samples": 3, "bits": 16, "color": 2}, (4, 6, 3)),
        ({"samples": 1, "bits": 16}, (4, 6, 3)),
        ({"samples": 3, "bits": 16}, "3 bands of 16 bits"),
        ({"samples": 4, "bits": 16}, "4 bands of 16 bits"),
        ({"samples": 4}, "4 bands of 8 bits"),
        ({"samples": 5}, "5 bands of 8 bits"),
        ({"samples": 5, "big": True}, "5 bands of 8 bits"),
        ({"samples": 5, "color": 2}, "5 bands of 8 bits"),
        ({"samples": 3, "bits": 32, "kind": 3, "color": 2}, r"3 bands of 32 bits \(float\)"),
        ({"samples": 3, "bits": 16, "color": 2, "planar": 2}, "3 bands of 16 bits one after another"),
        ({"samples": 3, "bits": 16, "planar": 2}, "3 bands of 16 bits one after another"),
        ({"samples": 2, "planar": 2}, "2 bands of 8 bits one after another"),
    ],
)
def test_bands_are_read_all_or_named(tmp_path: Path, options: dict, shape: tuple[int, ...] | str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(**options))
    readers = (read_image, image_size, read_header, lambda path: read_mask(Sample("a", path, path)))
    if not isinstance(shape, str):
        assert read_image(path, Format(max_value=65535)).shape == shape
        return
    for read in readers:
        with pytest.raises(DataError, match=rf"a\.tif: has {shape}, which are not read; save it as one band .*RGB"):
            read(path)


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
    with pytest.raises(DataError, match=r"deep\.png: values 0\.\.4095 are not in 0\.\.1023; .* dataset\.max_value"):
        read_image(path, Format(max_value=1023))


def test_nearly_black_is_said_of_16_bits_without_a_white_value(tmp_path):
    grey = save(tmp_path / "grey.png", Image.fromarray(np.array([[0, 4095]], np.uint16)))
    plain = save(tmp_path / "plain.png", np.array([[0, 9]]))
    for path, format, expected in ((grey, Format(), True), (grey, Format(3, 65535), False), (plain, Format(), False)):
        assert nearly_black(path, int(read_image(path, format).max()), format) is expected
    assert not nearly_black(grey, 32, Format())


def test_floats_need_to_know_what_is_white(tmp_path):
    path = save(tmp_path / "float.tif", Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))
    assert read_image(path, Format(max_value=1))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match=r"float\.tif: image has floating-point values, .* dataset\.max_value"):
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


@pytest.mark.parametrize(
    ("indices", "palette", "wrong"),
    [
        ([0, 1, 2], [200, 0, 0, 0, 0, 0, 7, 7, 7], 0),  # the third has a color of its own
        ([0, 1, 2], [0, 0, 0, 7, 7, 7, 200, 0, 0], 2),
        ([0, 1, 2], [200, 0, 0, 7, 7, 7, 8, 8, 8], None),  # one color may be chance
        ([0, 1, 2], [200, 0, 0, 0, 0, 0, 0, 0, 0], None),  # unused entries are black
        ([0, 1, 2], [0, 0, 0, 200, 0, 0, 7, 7, 7], None),
    ],
)
def test_palettes_that_know_some_of_the_colors(tmp_path, indices, palette, wrong):
    image = Image.fromarray(np.array([indices], np.uint8)).convert("P")
    image.putpalette(palette)
    path = save(tmp_path / "a.png", image)
    sample = Sample("a", path, path, None, Format(num_classes=3, colors=COLORS))
    if wrong is None:
        assert read_mask(sample).tolist() == [indices]
    else:
        with pytest.raises(DataError, match=rf"a\.png: mask's palette gives index {wrong} the color of class"):
            read_mask(sample)


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


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_image_of_a_wrong_checksum_is_refused(tmp_path, channels):
    Image.fromarray(colors()).convert("RGBA" if channels == 4 else "RGB").save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of its pixels
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="wrong checksum"):
        read_image(tmp_path / "a.png", Format(channels=channels))


@pytest.mark.parametrize(
    ("there", "remedy"),
    [
        (["10.png"], "add it, or use the image as unlabeled"),  # 10 is another image
        (["1_2.png"], "add it, or use the image as unlabeled"),  # this as well, though it is not there
        (["1 (copy).png"], "add it, or use the image as unlabeled"),  # its image is
        (["1x.png"], "add it, or use the image as unlabeled"),
        (["1_things/a.png"], "add it, or use the image as unlabeled"),
        (["1_mask.bmp", "1.json"], "1_mask.bmp is there; rename it to 1.bmp if it is this image's mask: "),
        (["1.jpg.png"], "1.jpg.png is there; rename it to 1.png if"),
        (
            ["1.json"],
            "1.json is there, which is not read as a mask; save it as 1.png (.png, .bmp, .tif, .tiff, .webp are",
        ),
        (["1.gif"], "1.gif is there, which is not read as a mask; save it as 1.png"),
        (["1.npy"], "1.npy is there, which is not read as a mask; save it as 1.png"),
        (["1_mask.jpg"], "1_mask.jpg is there, which is not read as a mask; save it as 1.png"),
    ],
)
def test_a_hint_is_given_only_where_a_file_may_be_meant(tmp_path, there, remedy):
    for name in ("images/1.jpg", "images/10.jpg", "images/1 (copy).jpg", *(f"labels/{name}" for name in there)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError) as error:
        read_mask(Sample("1", str(tmp_path / "images/1.jpg"), str(tmp_path / "labels/1.png")))
    start = f"{tmp_path}/labels/1.png: no mask for {tmp_path}/images/1.jpg"
    assert str(error.value).startswith(f"{start}{'; ' if remedy.startswith('add') else ', but '}{remedy}")


def test_missing_mask_names_mask_image_and_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no mask for .*a\.jpg; add it, or use .* as unlabeled"):
        read_mask(Sample("a", tmp_path / "a.jpg", tmp_path / "a.png"))
    with pytest.raises(ValueError, match=r"a\.jpg: labeled, but it has no mask; add one"):
        read_mask(Sample("a", tmp_path / "a.jpg"))


@pytest.mark.skipif(not files.HAS_SPNG, reason="imagecodecs is not installed (extra fast)")
@pytest.mark.parametrize("kind", ["plain", "gamma", "text", "palette", "alpha", "grey", "interlaced", "turned"])
def test_libspng_reads_what_pillow_reads_and_only_plain_files(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    image = image.convert({"palette": "P", "alpha": "RGBA", "grey": "L"}.get(kind, "RGB"))
    options, info = {}, PngInfo()
    if kind == "gamma":
        info.add(b"gAMA", struct.pack(">I", 45455))
    if kind == "text":
        info.add_text("Comment", "a word")
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    image.save(tmp_path / "a.png", pnginfo=info, **options)
    content = (tmp_path / "a.png").read_bytes()
    if kind == "interlaced":  # by its header alone: no writer at hand makes one
        content = content[:28] + b"\1" + content[29:]
        assert files._plain_png(content, {b"IHDR", b"IDAT", b"IEND"}) is None
        return
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png")).convert("RGB")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.array(expected))
    assert (files._plain_png(content, files._verify(content)) is not None) == (kind in ("plain", "gamma"))
