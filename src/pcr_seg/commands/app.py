"""A local page to try a model: drop images, see the classes, point at a pixel for its class and nearest prototype."""

import os
import tempfile
from collections.abc import Callable
from html import escape
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from pcr_seg.commands.opening import open_checkpoint, run_folder
from pcr_seg.data import annotations, tiles
from pcr_seg.data.files import DataError, read_image
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

# Gradio reports clicks only. So when the mouse rests on a prediction for a moment, this script makes a click of it.
HOVER = """() => {
    let waiting;
    document.addEventListener("mousemove", ({target, clientX, clientY}) => {
        clearTimeout(waiting);
        const click = new MouseEvent("click", {bubbles: true, clientX, clientY});
        if (target.matches(".prediction img")) waiting = setTimeout(() => target.dispatchEvent(click), 100);
    });
}"""

SIDE = 512  # least side of a shown picture: Gradio would enlarge smaller ones, and then locate clicks wrongly
MOST_SIDE = 1536  # larger pictures are shown with fewer pixels; the files to download have all
PIECE, MARGIN = 1024, 128  # larger images are predicted by windows with this margin, to show progress meanwhile


class Shown(NamedTuple):
    """The image that the page shows."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8
    view: View  # its prediction


def enlargement(image: np.ndarray) -> int:
    """Return how many times to repeat each pixel, so that the longer side is at least `SIDE`."""
    return -(-SIDE // max(image.shape[:2]))


def reduction(image: np.ndarray) -> int:
    """Return n so that the longer side is at most `MOST_SIDE` if every n-th pixel is shown."""
    return -(-max(image.shape[:2]) // MOST_SIDE)


def fitted(picture: np.ndarray) -> np.ndarray:
    """Return a picture in the size in which the page shows it."""
    times, step = enlargement(picture), reduction(picture)
    return picture[::step, ::step].repeat(times, axis=0).repeat(times, axis=1)


def view_of(predictor: Predictor, image: np.ndarray, progress: Callable[[float], None]) -> View:
    """Predict an image (H, W, channels); if a side is longer than `PIECE`, by windows as `predict.py tile=` does."""
    height, width = image.shape[:2]
    if max(height, width) <= PIECE:
        return look(predictor, [image])[0]
    pieces = list(product(tiles.cuts(height, PIECE, MARGIN), tiles.cuts(width, PIECE, MARGIN)))
    whole: View | None = None
    for number, (rows, columns) in enumerate(pieces):
        progress(number / len(pieces))
        [found] = look(predictor, [image[rows.start : rows.stop, columns.start : columns.stop]])
        whole = whole or empty_like(found, (height, width))
        place = slice(rows.first, rows.last), slice(columns.first, columns.last)
        for part, all_of_it in zip(arrays_of(found), arrays_of(whole), strict=True):
            all_of_it[place] = tiles.kept(part, rows, columns)
    return whole


def arrays_of(view: View) -> list[np.ndarray]:
    """Return the maps (H, W) that a view has."""
    parts = [*view.labels.values(), *view.confidence.values(), view.disagreement, view.nearest]
    return [part for part in parts if part is not None]


def empty_like(view: View, size: tuple[int, int]) -> View:
    """Return a view with the same maps, in another size and uninitialized."""

    def empty(part: np.ndarray | None) -> np.ndarray | None:
        return None if part is None else np.empty(size, part.dtype)

    labels, confidence = ({head: empty(part) for head, part in some.items()} for some in view[:2])
    return View(labels, confidence, empty(view.disagreement), empty(view.nearest))


def areas(predictor: Predictor, labels: np.ndarray) -> str:
    """Return share and pixels of each class that is found, the largest first, as HTML."""
    counts = np.bincount(labels.ravel(), minlength=len(predictor.class_names))
    rows = "".join(
        f"<tr><th>{swatch(predictor.class_names[label], predictor.palette[label])}</th>"
        f"<td>{counts[label] / labels.size:.1%}</td><td>{counts[label]:,} pixels</td></tr>"
        for label in counts.argsort()[::-1]
        if counts[label]
    )
    return f'<div class="pixel legend"><table>{rows}</table></div>'


def files_of(predictor: Predictor, shown: Shown, opacity: float, folder: Path) -> list[str]:
    """Write the mask of class ids and the overlay, in the image's own size, into a folder; return the files."""
    stem = Path(shown.name).stem
    labels = shown.view.labels["linear"]
    pictures = {"mask": labels, "overlay": overlay_of(predictor, shown, opacity)}
    for kind, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{stem}_{kind}.png", compress_level=1)
    return [str(folder / f"{stem}_{kind}.png") for kind in pictures]


def overlay_of(predictor: Predictor, shown: Shown, opacity: float) -> np.ndarray:
    """Lay the classes' colors over the image; background shows the image alone."""
    ground = annotations.ground(predictor.class_names)
    return visualize.overlay(shown.image, shown.view.labels["linear"], predictor.palette, opacity, ground)


def swatch(name: str, color: visualize.Color) -> str:
    """Return a square of color and a class's name as HTML. Both come from a file that may be a stranger's: escape."""
    return f'<span><i style="background: rgb{tuple(int(value) for value in color)}"></i>{escape(name)}</span>'


def title(predictor: Predictor) -> str:
    """Return the page's head as HTML: what the model was trained on, and the colors of its classes."""
    legend = "".join(swatch(*pair) for pair in zip(predictor.class_names, predictor.palette, strict=True))
    about = escape(f"Trained on {predictor.metadata.get('dataset', 'images')} by {predictor.name}, it finds:")
    return f'<h2>What is where in your image</h2><p>{about}</p><p class="legend">{legend}</p>'


def describe(predictor: Predictor, view: View, x: int, y: int) -> str:
    """Return as HTML each head's class of a pixel with its confidence, and the pixel's nearest prototype."""
    classes = [swatch(*pair) for pair in zip(predictor.class_names, predictor.palette, strict=True)]
    rows = []
    for head, labels in view.labels.items():
        rows.append((f"{escape(head)} head", f"{classes[labels[y, x]]} {view.confidence[head][y, x]:.0%}"))
    if view.nearest is not None:
        label, number = divmod(view.nearest[y, x].item(), predictor.bank.prototypes.shape[1])
        rows.append(("nearest prototype", f"{classes[label]} number {number}"))
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="pixel legend">Pixel at row {y}, column {x}<table>{cells}</table></div>'


def make_page(predictor: Predictor, run: Path):
    """Make the page of a model (gradio.Blocks).

    Args:
        predictor: the model.
        run: its run folder, whose pictures of prototypes and examples are shown if they are there.

    Raises:
        ValueError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads this when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs one more package: pip install 'pcr-seg[app]'") from error

    num_prototypes = 0 if predictor.bank is None else predictor.bank.prototypes.shape[1]
    heads, folder = head_names(predictor), Path(tempfile.mkdtemp(prefix="pcr_seg_"))
    own = sorted((run / "examples").glob("*_0.jpg")) if predictor.channels == 3 else []

    def choose(files: list[str] | None) -> tuple:
        names = [Path(file).name for file in files or []]
        choices = list(zip(names, files or [], strict=True))
        return gradio.update(choices=choices, value=files[0] if files else None, visible=len(names) > 1)

    def show(file: str | None, opacity: float, progress=gradio.Progress()) -> list:  # noqa: B008  Gradio reads this default
        nothing = [None] * (5 + len(heads))  # overlay, confidence, files, crops, the image, and the heads
        if file is None:
            return ["", "", *nothing]
        try:
            image = read_image(file, predictor.image_format)
        except (DataError, OSError) as error:
            return ["<p><b>" + escape(str(error).replace(str(file), Path(file).name)) + "</b></p>", "", *nothing]
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        view = view_of(predictor, image, lambda share: progress(share, desc=size))
        shown = Shown(Path(file).name, visualize.rgb(image), view)
        maps = [visualize.colorize(view.labels[head], predictor.palette) for head in heads]
        pictures = [overlay_of(predictor, shown, opacity), visualize.heat(view.confidence["linear"])]
        overlay, confidence, *maps = map(fitted, [*pictures, *maps])
        files = files_of(predictor, shown, opacity, folder)
        words = "<p>Point at a pixel of any picture.</p>"
        return [words, areas(predictor, view.labels["linear"]), overlay, confidence, files, None, shown, *maps]

    def fade(shown: Shown | None, opacity: float) -> tuple:
        if shown is None:
            return None, None
        return fitted(overlay_of(predictor, shown, opacity)), files_of(predictor, shown, opacity, folder)

    def ask(shown: Shown | None, event: gradio.SelectData) -> tuple[str, str | None]:
        if shown is None:
            return "", None
        x, y = (place // enlargement(shown.image) * reduction(shown.image) for place in event.index)
        crops = None
        if shown.view.nearest is not None:
            label, number = divmod(shown.view.nearest[y, x].item(), num_prototypes)
            crops = run / f"prototypes/{label}_{number}.jpg"
        return describe(predictor, shown.view, x, y), str(crops) if crops and crops.is_file() else None

    def picture(label: str, height: int = 320, style: str = "prediction") -> gradio.Image:
        look = {"height": height, "buttons": ["fullscreen"], "elem_classes": style, "format": "png"}
        return gradio.Image(label=label, interactive=False, **look)

    with gradio.Blocks(title="pcr-seg", analytics_enabled=False) as page:
        gradio.HTML(title(predictor))
        shown = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                files = gradio.File(label="your images", file_count="multiple", height=140)
                example = gradio.Button("Try an example", visible=bool(own), size="sm")
                file = gradio.Dropdown(label="image", visible=False, interactive=True)
                opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="how strong the colors are")
                words = gradio.HTML(padding=True)
                found = gradio.HTML(padding=True)
                downloads = gradio.File(
                    label="to download, in the image's size: mask (pixel = number of the class) and overlay",
                    interactive=False, file_count="multiple",
                )  # fmt: skip
            with gradio.Column(scale=4, min_width=300):
                overlay = picture("what is where", 420)
                with gradio.Accordion("How sure it is, and its other answers", open=False):
                    with gradio.Row():
                        confidence = picture("how sure, blue to yellow")
                        crops = picture("what this prototype is nearest to", 260, "stretched")
                    with gradio.Row():
                        maps = [picture(f"{head} head") for head in heads]
        files.change(choose, files, file, show_progress="hidden")
        outputs = [words, found, overlay, confidence, downloads, crops, shown, *maps]
        file.change(show, [file, opacity], outputs, show_progress="full", show_progress_on=[overlay])
        if own:
            example.click(lambda: [str(own[0])], None, files, show_progress="hidden")
        opacity.release(fade, [shown, opacity], [overlay, downloads], show_progress="hidden")
        for some in [overlay, confidence, *maps]:
            some.select(ask, shown, [words, crops], show_progress="hidden")
    return page


def serve(cfg: DictConfig) -> None:
    """Serve the page of a checkpoint until it is interrupted; only to this machine, unless `host` says otherwise."""
    predictor = open_checkpoint(cfg)
    page = make_page(predictor, run_folder(cfg))
    print(f"{launch(page, cfg.host, cfg.port, run_folder(cfg))} shows {cfg.checkpoint}; Ctrl-C ends it", flush=True)
    page.block_thread()


def launch(page, host: str, port: int | None, run: Path) -> str:
    """Start the server and return its address; without a port, on a free one. Fonts are the system's, not fetched.

    It may read the run's examples, wherever the run is.
    """
    import gradio

    theme = gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host, server_port=port, share=False, prevent_thread_lock=True, run_history=False,
        enable_monitoring=False, ssr_mode=False, footer_links=[], theme=theme, css=CSS, js=HOVER, quiet=True,
        allowed_paths=[str(run / "examples")],
    )  # fmt: skip
    return address
