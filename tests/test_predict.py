"""Maps and areas of files, folders and globs, each at its own size; TIFF files by tiles."""

import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from PIL import Image
from rich.progress import Progress
from torch import nn

from pcr_seg.checkpoint import load
from pcr_seg.commands.maps import MAPS, batches, check_maps, draw_maps
from pcr_seg.commands.opening import choose_device
from pcr_seg.commands.predict import named_images, predict, predict_tiles
from pcr_seg.config import CONF
from pcr_seg.data.files import Format, read_image
from pcr_seg.data.imports.importing import import_export
from pcr_seg.data.sources import find_images
from pcr_seg.inference import whole_image
from pcr_seg.method import PCR, Supervised, upsample
from pcr_seg.models.deeplab import SegmentorOutput
from pcr_seg.pictures.panels import assignment, look
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.predictor import Predictor

ALL_MAPS = f"maps=[{','.join(MAPS)}]"


def command(checkpoint: Path, images: Path | str, output: Path, *overrides: str):
    return composed(
        f"checkpoint={checkpoint}", f"images='{images}'", f"output={output}", "device=cpu", *overrides, name="predict"
    )


def noise(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(picture).save(path)
    return picture


@pytest.mark.parametrize("size", [(48, 48), (37, 61), (130, 20)])
def test_prediction_keeps_each_images_size(trained: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    picture = noise(tmp_path / "in/deep/a.png", height, width)
    Image.fromarray(picture[..., 0]).save(tmp_path / "in/grey.jpg")
    checkpoint = trained / "checkpoints/last.ckpt"
    content = predict(command(checkpoint, tmp_path / "in", tmp_path / "out"))
    assert list(content["images"]) == ["deep/a", "grey"]
    for kind, mode in (("index", "L"), ("color", "RGB"), ("overlay", "RGB"), ("confidence", "L")):
        with Image.open(tmp_path / "out" / kind / "deep/a.png") as image:
            assert (image.size, image.mode) == ((width, height), mode)
    predictor = load(checkpoint)
    with torch.no_grad():
        logits = predictor.network(normalize(as_tensor(picture))[None]).logits
    expected = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/index/deep/a.png")), expected.byte().numpy())


def test_the_two_headed_maps_and_areas_say_what_the_module_does(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    pictures = {name: noise(tmp_path / f"in/{name}.png", 40, 56, seed) for seed, name in enumerate("abc")}
    predict(command(checkpoint, tmp_path / "in", tmp_path / "out", ALL_MAPS, "batch_size=2"))
    content = json.loads((tmp_path / "out/areas.json").read_text())
    predictor, total = load(checkpoint), np.zeros(5, int)
    for name, picture in pictures.items():
        [found] = look(predictor, [picture])
        maps = {kind: np.asarray(Image.open(tmp_path / f"out/{kind}/{name}.png")).astype(int) for kind in MAPS}
        assert np.abs(maps["disagreement"] - 255 * found.disagreement).max() < 0.51
        assert np.array_equal(maps["prototype"], assignment(predictor, picture))
        assert np.asarray(Image.open(tmp_path / f"out/prototype_color/{name}.png")).shape == (40, 56, 3)
        pixels = content["images"][name]["pixels"]
        assert list(pixels.values()) == [int((maps["index"] == label).sum()) for label in range(5)]
        total += list(pixels.values())
    assert list(content["total"]["pixels"].values()) == total.tolist() and total.sum() == 3 * 40 * 56
    assert content["total"]["share"]["dots"] == pytest.approx(total[3] / total.sum(), abs=1e-6)


def test_maps_of_files_and_globs_and_only_those_asked_for(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    images = next((trained.parent / "data").iterdir()) / "images/val"
    one = predict(command(checkpoint, images / "val_00001.png", tmp_path / "one", "maps=[index]"))
    assert list(one["images"]) == ["val_00001"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["areas.json", "index"]
    some = predict(command(checkpoint, images / "*0[12].png", tmp_path / "some"))
    assert list(some["images"]) == ["val_00001", "val_00002"]


def test_users_mistakes_are_one_line(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"images=.*nothing: no image there"):
        predict(command(checkpoint, tmp_path / "nothing", tmp_path / "out"))
    with pytest.raises(ValueError, match=r"maps: masks is none of index, color"):
        predict(command(checkpoint, tmp_path, tmp_path / "out", "maps=[index,masks]"))
    for wrong in ("batch_size=0", "batch_size=big", "on_error=rise", "tile=big", "maps=0"):
        with pytest.raises(ValueError, match=wrong):
            predict(command(checkpoint, tmp_path, tmp_path / "out", wrong))
    with pytest.raises(ValueError, match=r"device=gpu:7: not on this machine"):
        choose_device("gpu:7")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device=gpu: not on this machine"):
            choose_device("gpu")
    predictor = load(checkpoint)
    predictor.method.bank.is_initialized.fill_(False)
    lacking = "maps: disagreement needs a second head, prototype needs prototypes, which this checkpoint of pcr has not"
    with pytest.raises(ValueError, match=lacking):
        check_maps(list(MAPS), predictor)
    noise(tmp_path / "in/a.png", 8, 8), noise(tmp_path / "in/a.jpg", 8, 8)
    with pytest.raises(ValueError, match=r"a\.png: its maps would be called as those of .*a\.jpg; rename"):
        named_images(str(tmp_path / "in"), tmp_path / "out")
    noise(tmp_path / "odd[1].png", 8, 8)
    assert find_images(tmp_path / "odd[1].png") == (str(tmp_path), [str(tmp_path / "odd[1].png")])


def test_neighbors_of_one_size_share_a_batch(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 8), (8, 8), (8, 9), (8, 8)]
    for i, size in enumerate(sizes):
        noise(tmp_path / f"frame_{i}.png", *size)
    found = list(batches(named_images(str(tmp_path), tmp_path / "out"), Format(), 2, pytest.fail))
    assert [[name for name, _ in batch] for batch in found] == [
        ["frame_0", "frame_1"], ["frame_2"], ["frame_3"], ["frame_4"],
    ]  # fmt: skip


def photos(folder: Path, number: int = 4) -> Path:
    for i in range(number):
        noise(folder / f"photo_{i}.png", 24, 32, i)
    return folder


def test_maps_of_an_earlier_prediction_are_no_images(trained: Path, tmp_path: Path, capsys) -> None:
    checkpoint, folder = trained / "checkpoints/last.ckpt", photos(tmp_path / "photos")
    noise(folder / "color/mine.png", 24, 32)
    expected = ["color/mine", *(f"photo_{i}" for i in range(4))]
    for output in (folder / "maps", folder / "maps", folder / "others"):
        assert list(predict(command(checkpoint, folder, output))["images"]) == expected
    content = predict(command(checkpoint, folder, folder / "others/../maps", "maps=index"))
    assert list(content["images"]) == expected
    assert "left out: 40 maps of earlier predictions" in capsys.readouterr().out, "of maps/ and of others/"
    (folder / "maps/areas.json").unlink()
    assert list(predict(command(checkpoint, folder, folder / "maps"))["images"]) == expected, "of a run that was killed"
    with pytest.raises(ValueError, match=r"others/index: maps of an earlier prediction alone; give a file"):
        predict(command(checkpoint, folder / "others/index", tmp_path / "out"))


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    runpy.run_path(str(CONF.with_name("predict.py")), run_name="__main__")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_that_cannot_be_read_are_named_and_the_others_predicted(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, batch_size: int
) -> None:
    folder = photos(tmp_path / "photos")
    (folder / "a_bad.jpg").write_bytes(b"x"), (folder / "photo_1b.png").write_bytes(b"")
    (folder / "z_gone.png").symlink_to(folder / "nothing.png")
    arguments = [f"checkpoint={trained}/checkpoints/last.ckpt", f"images={folder}", "device=cpu"]
    arguments.append(f"batch_size={batch_size}")
    with pytest.raises(SystemExit, match=r"^error: 3 images could not be read; they are named above and in .*[^\n]$"):
        run_script(monkeypatch, *arguments, f"output={tmp_path}/out")
    content, printed = json.loads((tmp_path / "out/areas.json").read_text()), capsys.readouterr().out
    assert list(content["images"]) == [f"photo_{i}" for i in range(4)] == index_maps(tmp_path / "out")
    assert sum(content["total"]["pixels"].values()) == 4 * 24 * 32 and "4 of 7 images" in printed
    assert set(content["failed"]) == {"a_bad", "photo_1b", "z_gone"}
    for line in content["failed"].values():
        assert f"left out: {line}\n" in printed
    with pytest.raises(SystemExit, match=r"^error: .*a_bad\.jpg: not readable .*; replace or remove it$"):
        run_script(monkeypatch, *arguments, f"output={tmp_path}/strict", "on_error=raise")


def test_only_bad_images_are_no_division_by_zero(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    content = predict(command(trained / "checkpoints/last.ckpt", tmp_path, tmp_path / "out"))
    assert list(content["failed"]) == ["a"] and set(content["total"]["share"].values()) == {0.0}


def index_maps(output: Path) -> list[str]:
    return sorted(path.stem for path in (output / "index").iterdir())


def test_an_interrupt_keeps_what_is_done(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return look(*arguments, **options)

    monkeypatch.setattr("pcr_seg.commands.maps.look", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run_script(
            monkeypatch, f"checkpoint={trained}/checkpoints/last.ckpt", f"images={photos(tmp_path / 'photos')}",
            f"output={tmp_path}/out", "device=cpu",
        )  # fmt: skip
    assert stopped.value.code == 130
    assert f"interrupted: 2 of 4 images are done; see {tmp_path}/out/areas.json\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/areas.json").read_text())
    assert list(content["images"]) == ["photo_0", "photo_1"] == index_maps(tmp_path / "out")
    assert sum(content["total"]["pixels"].values()) == 2 * 24 * 32


def test_a_map_that_cannot_be_written_is_one_line(trained: Path, tmp_path: Path) -> None:
    checkpoint, folder = trained / "checkpoints/last.ckpt", photos(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: cannot be written \(.*\); .* output=FOLDER"):
        predict(command(checkpoint, folder, tmp_path / "file"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index").write_text("")
    with pytest.raises(OSError, match=r"index/photo_\d\.png: cannot be written \(.*\); .* output=FOLDER"):
        predict(command(checkpoint, folder, tmp_path / "out"))


class Other(Supervised):
    """A method with a second predictor and no prototypes."""

    def heads(self, features: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"other": upsample(features[:, : self.num_classes].flip(1), size)}


def other_predictor() -> Predictor:
    method = Other()
    method.num_classes = 4
    palette = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (0, 0, 0)]
    torch.manual_seed(0)
    return Predictor(Convolutional(), method, list("abcd"), palette, whole_image, name="other").eval()


def test_a_method_may_have_another_head_and_no_bank(trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pcr_seg.commands.predict.open_checkpoint", lambda cfg: other_predictor())
    folder, checkpoint = photos(tmp_path / "photos"), trained / "checkpoints/last.ckpt"
    maps = "maps=[index,confidence,disagreement]"
    predict(command(checkpoint, folder, tmp_path / "out", maps))
    [found] = look(other_predictor(), [read_image(folder / "photo_0.png")])
    assert list(found.labels) == ["linear", "other"] and found.nearest is None and found.disagreement.max() > 0
    picture = np.asarray(Image.open(tmp_path / "out/disagreement/photo_0.png")).astype(int)
    assert np.abs(picture - 255 * found.disagreement).max() < 0.51
    with pytest.raises(ValueError, match="maps: prototype needs prototypes, which this checkpoint of other has not"):
        predict(command(checkpoint, folder, tmp_path / "out", "maps=[disagreement,prototype]"))


# --------------------------------------------------------------------------------------------- tiles


class Convolutional(nn.Module):
    """Three convolutions, stride 8: a pixel depends on those less than 32 away, and on no pooling of the image."""

    num_classes, feature_dim = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        )
        self.linear_head = nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> SegmentorOutput:
        features = self.layers(images)
        return SegmentorOutput(20 * self.linear_head(features), features, None)


def convolutional_predictor() -> Predictor:
    torch.manual_seed(0)
    network, method = Convolutional(), PCR(4, 8)
    method.bank.prototypes.normal_()
    method.bank.is_initialized.fill_(True)
    palette = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (0, 0, 0)]
    return Predictor(network, method, list("abcd"), palette, whole_image).eval()


def write_tiff(path: Path, height: int, width: int, **options) -> None:
    """Blobs of color, written a strip at a time."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    rng, profile = np.random.default_rng(0), {"driver": "GTiff", "dtype": "uint8", "photometric": "RGB", "count": 3}
    with rasterio.open(path, "w", height=height, width=width, compress="lzw", **profile | options) as file:
        for top in range(0, height, 32):
            small = rng.integers(0, 256, (3, 2, width // 16 + 1), np.uint8)
            strip = small.repeat(16, axis=1).repeat(16, axis=2)[:, : height - top, :width]
            file.write(strip, window=((top, top + strip.shape[1]), (0, width)))


def by_tiles(path: Path, output: Path, maps: list[str], tile: int, margin: int) -> dict:
    cfg = OmegaConf.create({"output": str(output), "tile": tile, "margin": margin})
    predictor = convolutional_predictor()
    predictor.method.bank.is_initialized.fill_("prototype" in maps)
    with Progress(disable=True) as progress:
        return predict_tiles(predictor, path, Format(), cfg, maps, path.stem, progress)


def test_tiles_show_no_seams_and_keep_their_place_on_earth(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    place = rasterio.Affine(0.2, 0, 500_000, 0, -0.2, 5_400_000)
    write_tiff(tmp_path / "map.tif", 449, 609, crs="EPSG:32632", transform=place)
    result = by_tiles(tmp_path / "map.tif", tmp_path / "out", list(MAPS), tile=240, margin=32)
    predictor, image = convolutional_predictor(), read_image(tmp_path / "map.tif")
    [found] = look(predictor, [image])
    for kind, expected in draw_maps(predictor, image, found, list(MAPS)).items():
        with rasterio.open(tmp_path / f"out/{kind}/map.tif") as file:
            picture = np.moveaxis(file.read(), 0, 2).squeeze()
            assert (file.crs.to_epsg(), file.transform) == (32632, place)
        assert picture.dtype == expected.dtype and picture.shape == expected.shape
        if kind in ("confidence", "disagreement"):
            assert np.abs(picture.astype(int) - expected).max() <= 1, kind
        else:
            assert np.mean(picture != expected) < 1e-4, kind  # ties, in another order of additions
    labels = found.labels["linear"]
    assert (result["height"], result["width"]) == labels.shape
    counts = np.bincount(labels.ravel(), minlength=4)
    assert np.abs(np.array(list(result["pixels"].values())) - counts).max() < 10 and len(set(counts)) == 4


def test_tiles_without_margins_do_show_seams(tmp_path: Path) -> None:
    write_tiff(tmp_path / "map.tif", 449, 609)
    by_tiles(tmp_path / "map.tif", tmp_path / "out", ["confidence"], tile=240, margin=0)
    image = read_image(tmp_path / "map.tif")
    expected = 255 * look(convolutional_predictor(), [image])[0].confidence["linear"]
    picture = np.asarray(Image.open(tmp_path / "out/confidence/map.tif"))
    assert np.abs(picture - expected).max() > 10


MEASURE = """
import resource, sys
from pathlib import Path
from test_predict import by_tiles
import torch
torch.set_num_threads(1)
for name in ("small", "large"):
    by_tiles(Path(sys.argv[1], f"{name}.tif"), Path(sys.argv[1], "out"), ["index"], 512, 32)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KiB on Linux")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    write_tiff(tmp_path / "small.tif", 1024, 1024)
    write_tiff(tmp_path / "large.tif", 4096, 4096)  # 48 MiB; the logits of each head would have 256
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    small, large = (int(line) / 1024 for line in result.stdout.split())
    assert large - small < 24, f"{small:.0f} MiB for one megapixel, {large:.0f} MiB for 16"


def test_tiles_are_for_large_tiffs_and_others_stay_as_they_are(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tiff(tmp_path / "in/large.tif", 200, 180)
    noise(tmp_path / "in/photo.png", 200, 180)
    checkpoint = trained / "checkpoints/last.ckpt"
    overrides = ("tile=161", "margin=32", "maps=[index]")
    content = predict(command(checkpoint, tmp_path / "in", tmp_path / "out", *overrides))
    assert sorted(path.name for path in (tmp_path / "out/index").iterdir()) == ["large.tif", "photo.png"]
    assert [sum(image["pixels"].values()) for image in content["images"].values()] == [200 * 180] * 2
    with pytest.raises(ValueError, match=r"tile=161: choose at least 289, or a smaller margin"):
        predict(command(checkpoint, tmp_path / "in", tmp_path / "out", "tile=161", "margin=128"))


def test_a_geotiff_keeps_its_place_without_tiles(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed (extra: tiles)")
    place = rasterio.Affine(0.2, 0, 500_000, 0, -0.2, 5_400_000)
    (tmp_path / "in").mkdir()
    write_tiff(tmp_path / "in/ortho.tif", 90, 75, crs="EPSG:32632", transform=place)
    write_tiff(tmp_path / "in/plain.tif", 90, 75)
    checkpoint = trained / "checkpoints/last.ckpt"
    content = predict(command(checkpoint, tmp_path / "in", tmp_path / "out", ALL_MAPS))
    predictor, image = load(checkpoint), read_image(tmp_path / "in/ortho.tif")
    [found] = look(predictor, [image])
    for kind, expected in draw_maps(predictor, image, found, list(MAPS)).items():
        names = sorted(path.name for path in (tmp_path / "out" / kind).iterdir())
        assert names == ["ortho.tif", "plain.png"]
        with rasterio.open(tmp_path / "out" / kind / "ortho.tif") as file:
            assert (file.crs.to_epsg(), file.transform, file.dtypes[0]) == (32632, place, expected.dtype)
            assert np.array_equal(np.moveaxis(file.read(), 0, 2).squeeze(), expected), kind
    assert sum(content["images"]["ortho"]["pixels"].values()) == 90 * 75
    again = predict(command(checkpoint, tmp_path / "in", tmp_path / "in/out"))
    assert list(predict(command(checkpoint, tmp_path / "in", tmp_path / "in/out"))["images"]) == list(again["images"])

    monkeypatch.setitem(sys.modules, "rasterio", None)
    predict(command(checkpoint, tmp_path / "in/ortho.tif", tmp_path / "without", "maps=[index]"))
    assert [path.name for path in (tmp_path / "without/index").iterdir()] == ["ortho.png"]
    assert "1 GeoTIFF files: their maps become PNG" in capsys.readouterr().out


def test_a_damaged_tiff_is_left_out_with_and_without_tiles(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tiff(tmp_path / "in/good.tif", 200, 180)
    content = (tmp_path / "in/good.tif").read_bytes()
    (tmp_path / "in/cut.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "in/no.tif").write_bytes(b"no tiff")
    damaged = bytearray(content)
    damaged[-3000:] = bytes(3000)
    (tmp_path / "in/worn.tif").write_bytes(damaged)
    checkpoint = trained / "checkpoints/last.ckpt"
    for overrides in ([], ["tile=161", "margin=32"]):
        output = tmp_path / f"out{len(overrides)}"
        content = predict(command(checkpoint, tmp_path / "in", output, "maps=[index]", *overrides))
        assert {"cut", "no"} <= set(content["failed"]) and "good" in content["images"]
        assert all("in/" in line and "\n" not in line for line in content["failed"].values())
        assert index_maps(output) == sorted(content["images"]), "nothing of a map is left where its image fails"


@pytest.mark.parametrize("format", ["coco", "labelme"])
def test_annotations_come_back_as_they_were_predicted(trained: Path, tmp_path: Path, format: str) -> None:
    for name, size in {"deep/a": (40, 56), "b c": (37, 61)}.items():
        noise(tmp_path / f"in/{name}.png", *size)
    (tmp_path / "in/bad.png").write_bytes(b"x")
    checkpoint = trained / "checkpoints/last.ckpt"
    predict(command(checkpoint, tmp_path / "in", tmp_path / "out", f"format={format}", "maps=index"))
    place = tmp_path / "out" / {"coco": "annotations.json", "labelme": "labelme"}[format]
    import_export(place, tmp_path / "new", images=tmp_path / "in")
    classes = (tmp_path / "new/classes.txt").read_text().splitlines()
    assert [line.split()[1] for line in classes] == load(checkpoint).class_names
    for name in ("deep/a", "b c"):
        [found] = (tmp_path / "new/labels").rglob(f"{Path(name).name}.png")
        mask, again = (np.array(Image.open(path)) for path in (tmp_path / f"out/index/{name}.png", found))
        assert (mask == again).mean() > (0.999 if format == "coco" else 0.5)


def test_annotations_are_refused_before_the_work_starts(trained: Path, tmp_path: Path) -> None:
    noise(tmp_path / "in/a.tif", 40, 80)
    settings = [trained / "checkpoints/last.ckpt", tmp_path / "in", tmp_path / "out"]
    with pytest.raises(ValueError, match="format=voc: choose coco or labelme, or leave it out"):
        predict(command(*settings, "format=voc"))
    with pytest.raises(ValueError, match=r"format=coco: .*a\.tif is predicted by tiles"):
        predict(command(*settings, "format=coco", "tile=64", "margin=0"))
    assert not (tmp_path / "out").exists()
