"""Whatever a user's data set looks like: any image size, crop, number of classes, batch, and masks of nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.files import Format, Sample
from pcr_seg.data.sources import Source
from pcr_seg.data.streams import Views
from pcr_seg.data.whole import WholeImages
from pcr_seg.method import cross_entropy, ohem_cross_entropy
from pcr_seg.training.fit import fit

# The same examples in each run, and no search for a smaller one after a failure, which takes minutes.
ANY = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def write_sample(folder: Path, size: tuple[int, int], num_classes: int, channels: int, ignored: bool) -> Sample:
    rng = np.random.default_rng([*size, num_classes])
    pixels = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
    labels = rng.choice(np.array([*range(num_classes), 255], np.uint8), size)
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(folder / "image.png")
    Image.fromarray(np.full(size, 255, np.uint8) if ignored else labels).save(folder / "mask.png")
    return Sample("a", folder / "image.png", folder / "mask.png", None, Format(channels, None, num_classes))


@ANY
@given(sizes, st.integers(1, 97), st.integers(2, 255), st.sampled_from([1, 3, 4]), st.booleans(), st.integers(0, 99))
@example((1, 1), 1, 2, 3, False, 0)
@example((1, 1), 64, 255, 1, True, 1)
@example((1, 7), 16, 2, 3, False, 2)  # these shrink, one pixel to none if nothing is done about it
@example((7, 1), 16, 2, 3, False, 3)
@example((1, 1), 16, 2, 3, False, 8)
@example((5000, 10), 65, 255, 3, False, 2)
@example((10, 5000), 33, 2, 4, True, 3)
def test_a_view_of_anything(tmp_path_factory, size, crop, num_classes, channels, ignored, seed) -> None:
    sample = write_sample(tmp_path_factory.mktemp("view"), size, num_classes, channels, ignored)
    [whole] = [WholeImages((sample,))[0]]
    assert whole["image"].shape == (channels, *size) and whole["mask"].shape == size
    for scale in ((0.5, 2.0), (1.0, 1.0)):
        labeled = Views((sample,), crop, scale, 255)[0, seed]
        assert labeled["image"].shape == (channels, crop, crop) and labeled["mask"].shape == (crop, crop)
        shown = set(labeled["mask"].unique().tolist())
        assert shown <= ({255} if ignored else set(whole["mask"].unique().tolist()) | {255})
        plain = Views((sample._replace(mask=None),), crop, scale, 255, strong_color=True, strong_views=2)[0, seed]
        assert plain["strong"].shape == (2, channels, crop, crop)
        assert torch.equal(plain["weak"], labeled["image"])  # the mask changes nothing in the image
        assert plain["valid"].any() or 1 in size  # one pixel in padding may be missed by a crop


@ANY
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 5))
def test_batches_of_any_size(tmp_path_factory, count, batch, steps) -> None:
    sample = write_sample(tmp_path_factory.mktemp("batch"), (9, 7), 2, 3, False)
    train = tuple(sample._replace(name=f"{i}") for i in range(count + 1))
    source = Source("any", ("a", "b"), ((0, 0, 0), (1, 1, 1)), train, (), (sample,), ())
    options = {"crop_size": 8, "batch_size": batch, "steps_per_epoch": steps, "num_workers": 0}
    data = SegmentationData(source, count, **options)
    for loader in data.train_dataloader().values():
        assert [len(loaded["name"]) for loaded in loader] == [batch] * steps


@ANY
@given(st.integers(1, 3), st.integers(2, 255), st.integers(1, 40))
def test_losses_where_nothing_is_labeled(batch, num_classes, side) -> None:
    logits = torch.randn(batch, num_classes, side, side, requires_grad=True)
    labels = torch.full((batch, side, side), 255)
    for loss in (cross_entropy(logits, labels), ohem_cross_entropy(logits, labels, min_kept=10)):
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize(
    ("num_classes", "batch", "crop", "channels", "ignored"), [(255, 3, 33, 4, True), (2, 2, 32, 1, False)]
)
def test_a_training_on_anything(tmp_path, num_classes, batch, crop, channels, ignored) -> None:
    root = tmp_path / "set"
    for part, size in (("train/a", (1, 1)), ("train/b", (80, 3)), ("train/c", (40, 40)), ("val/v", (7, 90))):
        folder = root / "made" / part
        folder.mkdir(parents=True)
        # Some of them labeled with nothing at all; two classes are labeled in any case.
        sample = write_sample(folder, size, num_classes, channels, ignored and part in ("train/a", "train/b"))
        for kind, path in (("images", sample.image), ("labels", sample.mask)):
            (root / kind / part).parent.mkdir(parents=True, exist_ok=True)
            path.rename(root / kind / f"{part}.png")
    lines = (f"{i} class{i} {i} 0 0\n" for i in range(num_classes))
    (root / "classes.txt").write_text("".join(lines))
    (root / "two.txt").write_text("b\nc\n")
    words = ["dataset=folder", f"dataset.root={root}", f"dataset.channels={channels}", f"split={root}/two.txt",
             "recipe=synthetic", "optimizer=adamw_scratch", "model.channels=8", "recipe.grid_cells=8",
             f"data.crop_size={crop}", f"global_batch={batch}", "data.steps_per_epoch=1",
             "data.num_workers=0"]  # fmt: skip
    summary = fit(small_config(root, *words))
    assert summary["iterations"] == 2 and 0 <= summary["miou_last"] <= 1
