"""The pages: what they hold, and how they look in a real browser."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import small_config, write_run
from matplotlib.figure import Figure

from pcr_seg.report.pages import command, run_page, svg, sweep_page
from pcr_seg.report.tables import collect, compare
from pcr_seg.training.fit import fit

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny run."""
    root = tmp_path_factory.mktemp("trained")
    fit(small_config(root, "method.threshold=0.2"))
    return root / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Three methods, two splits, two seeds, with curves and classes that look like markup."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for method in ("supervised", "consistency", "pcr"):
        for count in (8, 16):
            for seed in (0, 1):
                folder = root / f"{method}{count}{seed}"
                iou = dict(zip(("<b>sky</b>", "sign"), rng.random(2), strict=True))
                write_run(folder, method=method, num_labeled=count, split=str(count), seed=seed, iou=iou)
                curves = {"step": range(9, 99, 10), "train/supervised_loss": rng.random(9), "pseudo/coverage": seed}
                pd.DataFrame(curves).to_csv(folder / "metrics.csv", index=False)
    return compare(collect(f"{root}/*")[0], ["supervised", "consistency"])


def test_a_run_leaves_all_that_its_page_shows(trained: Path) -> None:
    details = json.loads((trained / "details.json").read_text())
    for head, key in (("linear", "iou"), ("prototype", "iou_prototype")):
        counts = np.array(details["confusion"][head], dtype=float)
        assert counts.sum() == 3 * 48 * 48, "every validation pixel once"
        hit = counts.diagonal()
        iou = json.loads((trained / "summary.json").read_text())[key]
        expected = hit / np.maximum(counts.sum(0) + counts.sum(1) - hit, 1)
        assert [iou[name] or 0 for name in details["classes"]] == pytest.approx(expected, abs=1e-6)
    page = run_page(trained)
    assert page.count("<svg") == page.count("<figcaption>") - len(details["prototypes"]) >= 6
    assert page.count('src="data:image/jpeg') == len(details["prototypes"]) and page.count('src="data:image/png') == 1
    assert all(word in page for word in ("prototype head", "stripes", "threshold: 0.2", "pseudo/coverage"))


def test_the_command_is_what_a_person_types(tmp_path: Path) -> None:
    assert command(tmp_path) is None
    (tmp_path / ".hydra").mkdir()
    overrides = ["split.labeled='8'", "split='1_8'", "method=pcr", "dataset.root=my data"]
    (tmp_path / ".hydra/overrides.yaml").write_text("\n".join(f'- "{override}"' for override in overrides))
    assert command(tmp_path) == "python train.py split.labeled=8 split=1_8 method=pcr 'dataset.root=my data'"


def test_a_run_without_pictures_has_a_page_still(tmp_path: Path) -> None:
    page = run_page(write_run(tmp_path / "old"))
    assert "mIoU" in page and "<svg" not in page and "<img" not in page and "Confusion" not in page


def test_the_page_of_a_comparison_holds_every_table_and_escapes_names(runs: pd.DataFrame) -> None:
    page = sweep_page(runs, ["Left out (old): a"])
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "mIoU over labels", "Paired differences", "Gain of each class over supervised", "Diagnosis", "Cost", "Curves",
        "Runs",
    ]  # fmt: skip
    assert "&lt;b&gt;sky" in page and "<b>sky" not in page
    assert "Left out (old): a" in page
    assert "0.50 ± 0.71" in page, "coverage of seeds 0 and 1"


def test_points_tell_their_values_on_hover() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], [30, 40], label="a & b", color="C1")
    text = svg(figure, "title")
    assert re.findall("<title>(.*?)</title>", text) == ["a &amp; b: 30 at 1", "a &amp; b: 40 at 2"]
    assert "var(--c1, #ff7f0e)" in text and "#000000" not in text
    (x1, y1), (x2, y2) = ([float(v) for v in pair] for pair in re.findall(r'cx="(.*?)" cy="(.*?)"', text))
    assert 0 < x1 < x2 < 6.4 * 72 and 4.8 * 72 > y1 > y2 > 0, "upwards to the right"


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_pages_in_a_browser(trained: Path, runs: pd.DataFrame, tmp_path: Path, browser, kind: str) -> None:
    (tmp_path / "page.html").write_text(run_page(trained) if kind == "run" else sweep_page(runs, []), encoding="utf-8")
    page, troubles = browser.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: troubles.extend([request.url] if request.url.startswith("http") else []))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    for device, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"something sticks out on a {device}"
        narrowest = page.evaluate("Math.min(...[...document.querySelectorAll('svg')].map(x => x.clientWidth))")
        assert narrowest >= 300, f"charts are too small to read on a {device}"
    light, dark = (brightness(page, scheme) for scheme in ("light", "dark"))
    assert light["paper"] > 200 > 60 > dark["paper"] and dark["ink"] > 200 > 60 > light["ink"]
    page.close()
    assert not troubles


def brightness(page, scheme: str) -> dict[str, float]:
    """Mean of red, green and blue (0..255) of the page and of the writing in its charts."""
    page.emulate_media(color_scheme=scheme)
    style = "getComputedStyle(document.querySelector('{}')).{}"
    colors = {"paper": style.format("body", "backgroundColor"), "ink": style.format("svg text", "fill")}
    return {
        name: np.mean([int(x) for x in re.findall(r"\d+", page.evaluate(code))[:3]]) for name, code in colors.items()
    }
