"""A walk: a tool's COCO file becomes a data set, a model, a page, the next images, and predictions that come back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import composed, small_config
from PIL import Image

from pcr_seg.commands.choose import choose
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.commands.predict import predict
from pcr_seg.data.annotations import annotations
from pcr_seg.data.check import check, num_errors
from pcr_seg.data.files import read_mask
from pcr_seg.data.imports.importing import import_export
from pcr_seg.data.sources import folder
from pcr_seg.data.suggest import suggest
from pcr_seg.data.synthetic import synthetic
from pcr_seg.report.write import report
from pcr_seg.training.fit import fit


def test_from_a_coco_file_to_the_next_one(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="needs the extra: imports")
    made = synthetic(str(tmp_path / "drawn"), num_train=20, num_val=1, num_unlabeled=30, size=48)
    photos = tmp_path / "photos"
    photos.mkdir()
    for sample in (*made.train, *made.unlabeled):
        shutil.copy(sample.image, photos)
    with annotations(tmp_path, "coco", made.classes) as annotate:
        for sample in made.train:
            annotate(Path(sample.image).name, Path(sample.image), read_mask(sample))

    found = import_export(tmp_path / "annotations.json", tmp_path / "mine", images=photos)
    assert found.parts == {"train": 16, "val": 4, "test": 0, "unlabeled": 30} and not found.left
    source = folder(tmp_path / "mine")
    assert num_errors(check(source)) == 0
    assert "split.labeled" in suggest(source).overrides or "split" in suggest(source).overrides

    data = ["dataset=folder", f"dataset.root={tmp_path}/mine", "recipe=synthetic", "optimizer=adamw_scratch"]
    fit(small_config(tmp_path, *data, "data.num_workers=0", "split=8", "method=consistency", "method.threshold=0.2"))
    run = tmp_path / "run"
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    assert len(evaluate(composed(checkpoint, "device=cpu", name="eval"))["images"]) == 4
    report(str(run), tmp_path / "page")
    page = (tmp_path / "page/report.html").read_text()
    assert all(words in page for words in ("Worst", "Best", "Confusion", "Evaluations"))

    chosen = choose(composed(checkpoint, "budget=10", "device=cpu", name="choose"))
    rest = {sample.name for sample in (*source.train, *source.unlabeled)}
    labeled = set((run / "splits/labeled.txt").read_text().splitlines())
    assert len(set(chosen)) == 10 and set(chosen) <= rest - labeled
    back = import_export(run / "next/annotations.json", tmp_path / "again", images=run / "next/images", val=0.2)
    assert sum(back.parts.values()) == 10

    images = f"images={run}/next/images"
    maps = ["maps=[index]", "format=coco", f"output={tmp_path}/out", "device=cpu"]
    predict(composed(checkpoint, images, *maps, name="predict"))
    returned = import_export(tmp_path / "out/annotations.json", tmp_path / "returned", images=run / "next/images")
    assert returned.parts == back.parts
    preloaded, predicted = ((tmp_path / f"{place}/annotations.json").read_text() for place in ("run/next", "out"))
    assert preloaded == predicted, "what choose.py preloads is what predict.py says"
    sources = [folder(tmp_path / place) for place in ("again", "returned")]
    one, other = ({sample.name: sample for sample in (*source.train, *source.val)} for source in sources)
    for name in chosen:
        index = np.asarray(Image.open(tmp_path / f"out/index/{name}.png"))
        if name in other:  # all but images of nothing but background
            np.testing.assert_array_equal(read_mask(other[name]), index, err_msg="each pixel comes back")
            np.testing.assert_array_equal(read_mask(one[name]), index)
        else:
            assert not index.any()
