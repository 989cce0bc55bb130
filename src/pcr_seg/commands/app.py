"""A local page to try a model: drop an image, see each head, point at a pixel for its class and prototype."""

import os
from html import escape
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from pcr_seg.commands.opening import open_checkpoint
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import View, head_names, look
from pcr_seg.predictor import Predictor

CSS = """
.stretched img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.legend span { white-space: nowrap; margin-right: 1.2em; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid #888; }
.pixel table { width: 100%; margin: .4em 0 0; }
.pixel tr, .pixel tr > * { border: 0 !important; padding: .25em 1em .25em 0 !important; text-align: left; }
"""

# Gradio tells of clicks alone: where the mouse rests on a prediction for a moment counts as one.
HOVER = """() => {
    let waiting;
    document.addEventListener("mousemove", ({target, clientX, clientY}) => {
        clearTimeout(waiting);
        const click = new MouseEvent("click", {bubbles: true, clientX, clientY});
        if (target.matches(".prediction img")) waiting = setTimeout(() => target.dispatchEvent(click), 100);
    });
}"""

SIDE = 512  # Gradio locates a click only in pictures that it does not enlarge: small ones get whole multiples of pixels


def enlargement(image: np.ndarray) -> int:
    """How many times each pixel is repeated, so that the longer side is at least SIDE."""
    return -(-SIDE // max(image.shape[:2]))


def swatch(name: str, color: visualize.Color) -> str:
    """A class's name behind a square of its color, as HTML. Both are a checkpoint's, which may be a stranger's."""
    return f'<span><i style="background: rgb{tuple(int(value) for value in color)}"></i>{escape(name)}</span>'


def title(predictor: Predictor) -> str:
    """What the model is, and the colors of its classes, as HTML."""
    legend = "".join(swatch(*pair) for pair in zip(predictor.class_names, predictor.palette, strict=True))
    about = escape(f"{predictor.name}, trained on {predictor.metadata.get('dataset', 'images')}")
    return f'<h2>pcr-seg</h2><p>{about}</p><p class="legend">{legend}</p>'


def describe(predictor: Predictor, view: View, x: int, y: int) -> str:
    """What each head takes a pixel for, how surely, and the prototype nearest to it, as HTML."""
    classes = [swatch(*pair) for pair in zip(predictor.class_names, predictor.palette, strict=True)]
    rows = []
    for head, labels in view.labels.items():
        rows.append((f"{escape(head)} head", f"{classes[labels[y, x]]} {view.confidence[head][y, x]:.0%}"))
    if view.nearest is not None:
        label, number = divmod(view.nearest[y, x].item(), predictor.bank.prototypes.shape[1])
        rows.append(("nearest prototype", f"{classes[label]} number {number}"))
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="pixel legend">Pixel at row {y}, column {x}<table>{cells}</table></div>'


def make_page(predictor: Predictor, prototypes: Path):
    """Make the page of a model (gradio.Blocks); `prototypes` holds a run's pictures CLASS_NUMBER.jpg of its bank."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs one more package: pip install 'pcr-seg[app]'") from error

    palette = predictor.palette
    num_prototypes = 0 if predictor.bank is None else predictor.bank.prototypes.shape[1]
    heads = head_names(predictor)

    def show(image: np.ndarray | None) -> list:
        if image is None:
            return [None] * (5 + len(heads))  # a view, its pixel and crops, overlay and confidence, and the heads
        [view] = look(predictor, [image])
        overlay = visualize.overlay(image, view.labels["linear"], palette)
        maps = [visualize.colorize(view.labels[head], palette) for head in heads]
        pictures = [overlay, *maps, visualize.heat(view.confidence["linear"])]
        times = enlargement(image)
        pictures = [picture.repeat(times, axis=0).repeat(times, axis=1) for picture in pictures]
        return [view, "Point at a pixel of any prediction.", None, *pictures]

    def ask(view: View | None, event: gradio.SelectData) -> tuple[str, str | None]:
        if view is None:
            return "", None
        x, y = (place // enlargement(view.labels["linear"]) for place in event.index)
        crops = None
        if view.nearest is not None:
            label, number = divmod(view.nearest[y, x].item(), num_prototypes)
            crops = prototypes / f"{label}_{number}.jpg"
        return describe(predictor, view, x, y), str(crops) if crops and crops.is_file() else None

    def picture(label: str, height: int = 320, style: str = "prediction") -> gradio.Image:
        look = {"height": height, "buttons": ["download", "fullscreen"], "elem_classes": style, "format": "png"}
        return gradio.Image(label=label, interactive=False, **look)

    with gradio.Blocks(title="pcr-seg", analytics_enabled=False) as page:
        gradio.HTML(title(predictor))
        view = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                image = gradio.Image(
                    label="your image", image_mode="RGB", sources=["upload", "clipboard"], height=320,
                    elem_classes="stretched",
                )  # fmt: skip
                pixel = gradio.HTML(padding=True)
                crops = picture("what this prototype is nearest to", 260, "stretched")
            with gradio.Column(scale=4, min_width=300):
                with gradio.Row():
                    overlay, confidence = picture("overlay"), picture("confidence, blue to yellow")
                with gradio.Row():
                    maps = [picture(f"{head} head") for head in heads]
        pictures = [overlay, *maps, confidence]
        image.change(show, image, [view, pixel, crops, *pictures], show_progress="minimal")
        for some in pictures:
            some.select(ask, view, [pixel, crops], show_progress="hidden")
    return page


def serve(cfg: DictConfig) -> None:
    """Open the page of a checkpoint on this machine alone, unless `host` says otherwise, until it is interrupted."""
    predictor = open_checkpoint(cfg)
    page = make_page(predictor, Path(cfg.checkpoint).resolve().parents[1] / "prototypes")
    print(f"{launch(page, cfg.host, cfg.port)} shows {cfg.checkpoint}; Ctrl-C ends it", flush=True)
    page.block_thread()


def launch(page, host: str, port: int | None) -> str:
    """Start the server, on a free port for None, and return its address; fonts are the system's, not a network's."""
    import gradio

    theme = gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, run_history=False,
        enable_monitoring=False, ssr_mode=False, footer_links=[], theme=theme, css=CSS, js=HOVER, quiet=True,
    )  # fmt: skip
    return address
