"""The pages: what they hold, and how they look in a real browser."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_run
from matplotlib.figure import Figure

from pcr_seg.report.pages import command, pictures_side_by_side, run_page, svg, sweep_page
from pcr_seg.report.tables import collect, compare

WIDTHS = {"desktop": 1280, "phone": 390}


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
    assert {place for example in details["examples"] for place in example["why"]} >= {
        "worst",
        "median",
        "best",
        "fixed",
    }
    page = run_page(trained)
    pictures = sum(len(example["pictures"]) for example in details["examples"] if example["why"] != ["fixed"])
    assert len(re.findall('src="data:image/(?:jpeg|png)', page)) == len(details["prototypes"]) + pictures
    assert all(word in page for word in ("prototype head", "stripes", "threshold: 0.2", "share of these that is right"))
    assert page.index("IoU of each class") < page.index("<h2>Training")
    for cell in details["confused"]:
        assert cell["pixels"] > 0 and f'href="#example-{cell["example"]}"' in page
        assert f'id="example-{cell["example"]}"' in page, "each link leads to a picture"


def test_curves_that_show_nothing_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", never_predicted=["<b>sky</b>"])
    curves = {"step": [1, 2, 3], "train/a_loss": [3, 2, 1], "train/b_loss": [0, 0, 0], "val/miou": [None, None, 0.5]}
    pd.DataFrame(curves).to_csv(folder / "metrics.csv", index=False)
    page = run_page(folder)
    assert page.count("<svg") == 1 and "a: 3 at 1" in page and "b: 0" not in page
    assert "Never predicted by the linear head: &lt;b&gt;sky" in page


def test_what_eval_left_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    measures = ("iou", "dice", "precision", "recall", "boundary_iou")
    scores = {key: {"sky": 0.25, "pit": None} for key in measures}
    best = {"class": "pit", "threshold": 0.3, "dice": 0.5, "dice_at_half": 0.4, "curve": [[0, 0.2, 1], [0.5, 0.9, 0.3]]}
    about = {
        "dataset": "set",
        "subset": "val",
        "num_images": 1,
        "network": "teacher",
        "protocol": "whole_image",
        "miou": 0.25,
    }
    (folder / "eval_set.json").write_text(json.dumps(about | scores | {"threshold": best}))
    page = run_page(folder)
    assert "1 image, teacher" in page and page.count("<td>25.0</td>") == 5 and "over 0.30" in page and "<svg" in page


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
    page = sweep_page(runs, ["Left out (old): a"], {runs.folder[0]: "runs/1.html"})
    assert page.count('<a href="runs/1.html">') == 1 and "n = 1" not in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "mIoU over labels", "Paired differences", "Gain of each class over supervised", "Diagnosis", "Cost", "Curves",
        "Runs",
    ]  # fmt: skip
    assert "&lt;b&gt;sky" in page and "<b>sky" not in page
    assert "Left out (old): a" in page
    assert "0.50 ± 0.71" in page, "coverage of seeds 0 and 1"


def test_runs_of_one_cell_are_shown_side_by_side(trained: Path) -> None:
    rows = pictures_side_by_side({"a": trained, "b": trained})
    assert [list(row) for row in rows] == [["image", "truth", "a", "b"]] * 3
    assert pictures_side_by_side({"a": trained, "b": trained / "checkpoints"}) == [], (
        "what one lacks cannot be compared"
    )
    one = compare(collect(str(trained))[0], [])
    assert "n = 1" in sweep_page(one, []) and "mIoU over labels" not in sweep_page(one, []), "one count is no line"


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
        if kind == "run":
            picture = page.locator(".zoom img").first
            small = picture.bounding_box()["width"]
            picture.click()
            assert picture.bounding_box()["width"] > 1.5 * small, "a click enlarges it"
            picture.click()
            assert picture.bounding_box()["width"] == small
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
