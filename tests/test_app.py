"""The page, in a real browser: an image in, both heads out, a pixel's answer, nothing asked of a network."""

from html import escape
from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from PIL import Image

from pcr_seg.checkpoint import load
from pcr_seg.commands.app import (
    Shown,
    areas,
    describe,
    files_of,
    fitted,
    launch,
    make_page,
    swatch,
    title,
    view_of,
)
from pcr_seg.method import Supervised
from pcr_seg.pictures.panels import look


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


def test_a_large_image_is_predicted_by_windows_that_fit_together(trained: Path, monkeypatch) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    image = np.random.default_rng(0).integers(0, 256, (150, 300, 3), dtype=np.uint8)
    [whole] = look(predictor, [image])
    monkeypatch.setattr("pcr_seg.commands.app.PIECE", 129)
    monkeypatch.setattr("pcr_seg.commands.app.MARGIN", 32)
    seen: list[float] = []
    found = view_of(predictor, image, seen.append)
    assert len(seen) > 4 and seen == sorted(seen) and seen[0] == 0 and seen[-1] < 1
    for head, labels in found.labels.items():
        assert labels.shape == (150, 300) and (labels == whole.labels[head]).mean() > 0.5, "pooling sees the window"
    assert found.nearest.shape == found.disagreement.shape == (150, 300) and found.disagreement.max() <= 1


def test_files_have_the_images_size_and_areas_add_up(trained: Path, tmp_path: Path) -> None:
    predictor = load(trained / "checkpoints/last.ckpt")
    image = np.full((40, 56, 3), 200, np.uint8)
    [view] = look(predictor, [image])
    labels = np.zeros((40, 56), np.uint8)
    labels[:10] = 3
    view.labels["linear"] = labels
    shown = Shown("photo.jpg", image, view)
    mask, overlay = (np.asarray(Image.open(file)) for file in files_of(predictor, shown, 0.5, tmp_path))
    assert (mask == labels).all() and overlay.shape == (40, 56, 3)
    assert (overlay[10:] == 200).all() and (overlay[:10] != 200).any(), "background is left alone"
    text = areas(predictor, labels)
    assert "25.0%" in text and "75.0%" in text and "560 pixels" in text and "rings" not in text
    assert fitted(image).shape == (400, 560, 3) and fitted(np.zeros((100, 4000, 3), np.uint8)).shape == (34, 1334, 3)


@pytest.mark.filterwarnings("default")  # Gradio calls what the newest pandas would rather not be called
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(trained: Path, tmp_path: Path, browser, width: int, scheme: str) -> None:
    pytest.importorskip("gradio", reason="needs gradio (extra: app)")
    predictor = load(trained / "checkpoints/last.ckpt")
    pixels = np.random.default_rng(1).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "notes.png").write_text("no image")
    blocks = make_page(predictor, trained)
    address = launch(blocks, "127.0.0.1", None, trained)
    page, strangers, errors = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), [], []
    local = (address, "data:", "blob:")
    page.on("request", lambda request: strangers.extend([] if request.url.startswith(local) else [request.url]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(address)
        assert "your image" in page.locator("h2").inner_text() and "rings" in page.locator(".legend").first.inner_text()
        page.set_input_files("input[type=file]", [tmp_path / "wide.png", tmp_path / "notes.png"])
        page.get_by_text("Point at a pixel").wait_for()
        overlay = page.locator(".prediction", has_text="what is where").locator("img")
        overlay.wait_for()
        assert "pixels" in page.locator(".pixel").first.inner_text(), "the area of each class"
        page.get_by_text("wide_overlay").wait_for()
        page.get_by_text("How sure it is").click()
        for name in ("linear head", "prototype head", "how sure"):
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
        page.get_by_text(f"row {y}, column {x}").wait_for()
        words = page.locator(".pixel", has_text="nearest prototype").inner_text()
        label, number = divmod(look(predictor, [pixels])[0].nearest[y, x].item(), 4)
        assert f"{predictor.class_names[label]} number {number}" in " ".join(words.split())
        crops = page.locator(".stretched", has_text="what this prototype is nearest to").locator("img")
        crops.wait_for()
        with Image.open(trained / f"prototypes/{label}_{number}.jpg") as expected:
            assert crops.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(expected.size)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "something sticks out"
        page.get_by_label("image", exact=True).click()
        page.get_by_role("option", name="notes.png").click()
        page.get_by_text("notes.png: not readable as an image").wait_for()
        page.reload()
        page.get_by_text("Try an example").click()
        page.get_by_text("Point at a pixel").wait_for()
    finally:
        page.close()
        blocks.close()
    assert not strangers and not errors
