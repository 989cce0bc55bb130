"""The page, in a real browser: an image in, both heads out, a pixel's answer, nothing asked of a network."""

from html import escape
from pathlib import Path

import numpy as np
import pytest
from conftest import composed, small_config
from PIL import Image

from pcr_seg.checkpoint import load
from pcr_seg.commands.app import describe, launch, make_page, swatch, title
from pcr_seg.method import Supervised
from pcr_seg.pictures.panels import look
from pcr_seg.training.fit import fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    fit(small_config(root, "method.threshold=0.2"))
    return root / "run"


def test_page_is_for_this_machine_alone_by_default() -> None:
    assert composed("checkpoint=x", name="app").host == "127.0.0.1"


def test_a_pixels_description_names_what_the_heads_say(trained: Path) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    predictor.class_names = ["<background>", *predictor.class_names[1:]]
    [view] = look(predictor, [np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)])
    assert view.nearest.shape == view.labels["linear"].shape == view.confidence["prototype"].shape == (40, 56)
    view = view._replace(nearest=view.nearest.copy())
    view.labels["linear"][7, 31], view.confidence["linear"][7, 31] = 0, 0.42
    view.labels["prototype"][7, 31], view.nearest[7, 31] = 2, 4 * 4 + 3  # four prototypes of each class
    text = describe(predictor, view, 31, 7)
    assert "row 7, column 31" in text and "42%" in text and "rings</span> number 3" in text and "checks</span>" in text
    assert "&lt;background&gt;" in text and "<background>" not in text


MARKUP = "<img src=x onerror=alert(1)>"


def test_what_a_strangers_checkpoint_says_is_text(trained: Path) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    predictor.name, predictor.metadata["dataset"], predictor.class_names = MARKUP, MARKUP, [MARKUP] * 5
    predictor.palette = [(1.0, 2, "3")] * 5
    text = title(predictor)
    assert "<img" not in text and text.count("&lt;img") == 2 + 5 and text.count("rgb(1, 2, 3)") == 5
    with pytest.raises(ValueError, match="invalid literal"):
        swatch("a", ('0)" onmouseover="alert(1)', 0, 0))


def test_a_method_may_have_another_head_and_no_bank(trained: Path) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    bank, predictor.method = predictor.method.bank, Supervised()
    predictor.method.heads = lambda features, size: {MARKUP: bank.dense_logits(features, size)}
    [view] = look(predictor, [np.zeros((40, 56, 3), np.uint8)])
    text = describe(predictor, view, 31, 7)
    assert "linear head" in text and f"{escape(MARKUP)} head" in text
    assert "<img" not in text and "nearest prototype" not in text


@pytest.mark.filterwarnings("default")  # Gradio calls what the newest pandas would rather not be called
def test_page_in_a_browser(trained: Path, tmp_path: Path, browser) -> None:
    pytest.importorskip("gradio", reason="needs gradio (extra: app)")
    predictor = load(trained / "checkpoints/last.ckpt")
    pixels = np.random.default_rng(1).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    blocks = make_page(predictor, trained / "prototypes")
    address = launch(blocks, "127.0.0.1", None)
    page, strangers, errors = browser.new_page(viewport={"width": 1280, "height": 900}), [], []
    local = (address, "data:", "blob:")
    page.on("request", lambda request: strangers.extend([] if request.url.startswith(local) else [request.url]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(address)
        assert page.locator("h2").inner_text() == "pcr-seg" and "rings" in page.locator(".legend").first.inner_text()
        page.set_input_files("input[type=file]", tmp_path / "wide.png")
        page.get_by_text("Point at a pixel").wait_for()
        for name in ("overlay", "linear head", "prototype head", "confidence"):
            picture = page.locator(".prediction", has_text=name).locator("img")
            picture.wait_for()
            assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [4 * 160, 4 * 64], (
                "each pixel four times"
            )

        # The picture is as wide as its frame and lies in the middle of its height.
        frame = picture.bounding_box()
        x, y, scale = 120, 16, frame["width"] / 160
        top = (frame["height"] - 64 * scale) / 2
        picture.click(position={"x": (x + 0.5) * scale, "y": top + (y + 0.5) * scale})
        page.locator(".pixel").wait_for()
        words = page.locator(".pixel").inner_text()
        assert f"row {y}, column {x}" in words
        label, number = divmod(look(predictor, [pixels])[0].nearest[y, x].item(), 4)
        assert f"{predictor.class_names[label]} number {number}" in " ".join(words.split())
        crops = page.locator(".stretched", has_text="what this prototype is nearest to").locator("img")
        crops.wait_for()
        with Image.open(trained / f"prototypes/{label}_{number}.jpg") as expected:
            assert crops.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(expected.size)
        picture.hover(position={"x": (x - 50 + 0.5) * scale, "y": top + (y + 20 + 0.5) * scale})
        page.get_by_text(f"row {y + 20}, column {x - 50}").wait_for()
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "something sticks out on a phone"
    finally:
        page.close()
        blocks.close()
    assert not strangers and not errors
