"""Predict images of any size: class indices, colors, overlay, confidence and more, and the area of each class.

python predict.py checkpoint=RUN/checkpoints/last.ckpt images=FOLDER output=predictions
python predict.py checkpoint=... "images='holiday/*.jpg'" maps=[index,disagreement,prototype]
python predict.py checkpoint=... images=PHOTOS format=coco             # or labelme: to be corrected in a tool
python predict.py checkpoint=... images=orthophoto.tif tile=1024       # by windows, in constant memory
"""

import sys

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="predict", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line; exit with 130 after Ctrl-C, with 1 if images were left out."""
    with one_line_errors():
        from pcr_seg.commands.predict import predict  # takes seconds, for which --help should not wait

        failed = predict(cfg)["failed"]
    if failed:
        sys.exit(f"error: {len(failed)} images could not be read; they are named above and in {cfg.output}/areas.json")


if __name__ == "__main__":
    start(__doc__)
    main()
