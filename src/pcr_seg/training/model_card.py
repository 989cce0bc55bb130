"""The model card of a run's checkpoints: what they are, what they scored, and what they are not meant for."""

from pathlib import Path

from jinja2 import Template


def model_card(summary: dict, config: dict, *, hub: str | None = None) -> str:
    """Return the card in Markdown, from a run's summary.json and resolved configuration.

    `hub` is the repository that the checkpoint is pushed to, hf://USER/NAME.
    """
    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(summary=summary, config=config, classes=list(summary["iou"]), hub=hub)
