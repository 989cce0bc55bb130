"""Try a model on a page in the browser: drop an image, see both heads' predictions, click a pixel.

python app.py checkpoint=RUN/checkpoints/last.ckpt            # then open http://127.0.0.1:7860
python app.py checkpoint=... port=8000
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="app", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.app import serve  # takes seconds, for which --help should not wait

        serve(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
