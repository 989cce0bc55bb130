"""Where the gallery finds a prototype, and what a module says of an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from omegaconf import OmegaConf

from pcr_seg.data.files import read_image
from pcr_seg.data.sources import Source
from pcr_seg.method import PrototypeBank, Supervised
from pcr_seg.pictures.panels import (
    assignment,
    best_pixels,
    crop,
    example_panel,
    feature_cosines,
    gallery,
    head_names,
    look,
    save_pictures,
    spread,
)
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.predictor import Predictor
from pcr_seg.training.fit import build_module


def make_predictor(tmp_path: Path, source: Source) -> Predictor:
    """A random network whose prototype (class 2, number 1) is the feature at row 3, column 4 of the second image."""
    torch.manual_seed(0)
    config = OmegaConf.to_container(small_config(tmp_path), resolve=True)
    predictor = build_module(config, list(source.classes)).predictor
    bank = predictor.method.bank
    with torch.inference_mode():
        features = predictor.network(normalize(as_tensor(read_image(source.val[1].image)))[None]).features[0]
        bank.prototypes[2, 1] = features[:, 3, 4]
        bank.is_initialized.fill_(True)
    return predictor


def test_gallery_finds_the_pixel_that_a_prototype_is(tmp_path: Path, tiny_set: Source) -> None:
    predictor = make_predictor(tmp_path, tiny_set)
    image = read_image(tiny_set.val[1].image)
    cosines, places = best_pixels(predictor, image)
    height, width = feature_cosines(predictor, image).shape[:2]
    assert cosines[2, 1].item() == pytest.approx(1)
    torch.testing.assert_close(places[2, 1], torch.tensor([3 / (height - 1), 4 / (width - 1)]))
    predictor.method.assigned[2] = torch.tensor([0.0, 3.0, 1.0, 0.0])
    [view] = gallery(predictor, tiny_set)
    assert (view.label, view.number, view.usage) == (2, 1, 0.75), "zero prototypes have seen no data: not shown"
    first = np.asarray(view.crops)[:72, :72]
    np.testing.assert_array_equal(first, np.asarray(crop(image, 3 / (height - 1), 4 / (width - 1))))
    assert (assignment(predictor, image)[3 * 48 // height, 4 * 48 // width]) == 2 * 4 + 1
    predictor.method.bank.is_initialized.fill_(False)
    assert gallery(predictor, tiny_set) == []


def test_crops_stay_inside_and_mark_their_place() -> None:
    image = np.full((60, 90, 3), 128, np.uint8)
    for row, column in ((0, 0), (1, 1), (0.5, 0.5), (1, 0)):
        marked = np.asarray(crop(image, row, column))
        assert marked.shape == (72, 72, 3)
        rows, columns = np.nonzero((marked != 128).any(axis=-1))
        wanted = [2 if at == 0 else 70 if at == 1 else 36 for at in (row, column)]
        assert abs(rows.mean() - wanted[0]) < 4 and abs(columns.mean() - wanted[1]) < 4


def test_a_batch_is_predicted_as_its_images_alone(tmp_path: Path, tiny_set: Source) -> None:
    predictor = make_predictor(tmp_path, tiny_set)
    images = [read_image(sample.image) for sample in tiny_set.val]
    for image, found in zip(images, look(predictor, images), strict=True):
        [alone] = look(predictor, [image])
        for head in ("linear", "prototype"):
            assert np.mean(found.labels[head] != alone.labels[head]) < 0.001
            np.testing.assert_allclose(found.confidence[head], alone.confidence[head], atol=1e-5)
        np.testing.assert_allclose(found.disagreement, alone.disagreement, atol=1e-5)
        np.testing.assert_array_equal(found.nearest, assignment(predictor, image))
    predictor.method.bank.is_initialized.fill_(False)
    [found] = look(predictor, images[:1])
    assert found.disagreement is None and found.nearest is None and list(found.labels) == ["linear"]


class Other(Supervised):
    """A method with a second predictor called "other", no bank, and a third one on demand."""

    def __init__(self, bank: PrototypeBank, names: tuple[str, ...]) -> None:
        super().__init__()
        self.predictors, self.names = [bank], names

    def heads(self, features: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {name: self.predictors[0].dense_logits(features, size) for name in self.names}


@pytest.mark.parametrize("names", [(), ("other",), ("other", "third")])
def test_a_method_may_have_any_heads_and_no_bank(tmp_path: Path, tiny_set: Source, monkeypatch, names) -> None:
    predictor = make_predictor(tmp_path, tiny_set)
    predictor.method = Other(predictor.method.bank, names)
    heads = ["linear", *names]
    assert head_names(predictor) == heads and predictor.bank is None
    [found] = look(predictor, [read_image(tiny_set.val[0].image)])
    assert list(found.labels) == heads and found.nearest is None and (found.disagreement is None) == (not names)
    titles = []
    monkeypatch.setattr("pcr_seg.pictures.visualize.panel", lambda rows, heads, legend: titles.extend(heads) or rows)
    rows = example_panel(predictor, tiny_set)
    assert titles == ["image", "truth", *(f"{head} head" for head in heads), "confidence"]
    assert [len(row) for row in rows] == [len(titles)] * 3
    monkeypatch.undo()
    save_pictures(predictor, {}, None, tiny_set, tmp_path)
    assert (tmp_path / "panel.png").is_file() and not (tmp_path / "prototypes").exists()


def test_the_nearest_prototypes_need_no_second_head(tmp_path: Path, tiny_set: Source) -> None:
    predictor = make_predictor(tmp_path, tiny_set)
    image = read_image(tiny_set.val[0].image)
    [found] = look(predictor, [image], linear=True)
    assert list(found.labels) == ["linear"] and found.disagreement is None
    np.testing.assert_array_equal(found.nearest, assignment(predictor, image))


def test_examples_come_from_all_over_the_set(tiny_set: Source) -> None:
    assert spread(tiny_set.train, 4) == tiny_set.train[::3]
    assert spread(tiny_set.val, 4) == tiny_set.val
