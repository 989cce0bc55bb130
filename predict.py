"""Predict images of any size: class indices, colors, overlay and confidence, a PNG each.

python predict.py checkpoint=RUN/checkpoints/last.ckpt images=FOLDER output=predictions
python predict.py checkpoint=... "images='holiday/*.jpg'"
"""

import sys

import hydra
from omegaconf import DictConfig

from pcr_seg.config import command_line, one_line_errors
from pcr_seg.run import predict


@hydra.main(config_path="conf", config_name="predict", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        predict(cfg)


if __name__ == "__main__":
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
