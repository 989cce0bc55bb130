"""Predict images of any size: class indices, colors, overlay, confidence and more, and the area of each class.

python predict.py checkpoint=RUN/checkpoints/last.ckpt images=FOLDER output=predictions
python predict.py checkpoint=... "images='holiday/*.jpg'" maps=[index,disagreement,prototype]
python predict.py checkpoint=... images=orthophoto.tif tile=1024       # by windows, in constant memory
"""

import sys

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.predict import predict
from pcr_seg.config import command_line, one_line_errors


@hydra.main(config_path="conf", config_name="predict", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        predict(cfg)


if __name__ == "__main__":
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
