"""Put a data set into place: downloaded or unpacked, merged, counted, with its published split lists.

python prepare.py dataset=voc_aug                            # downloads VOC 2012 and SBD, 3.4 GB; serves voc as well
python prepare.py dataset=cityscapes dataset.root=FOLDER     # unpacks the zip files that you downloaded into FOLDER
python prepare.py dataset=folder dataset.root=FOLDER         # looks at your own images and masks
"""

import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from pcr_seg.config import build, command_line, one_line_errors
from pcr_seg.data.prepare import prepare


@hydra.main(config_path="conf", config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        reader = cfg.dataset._target_.rpartition(".")[2]
        print(prepare(reader, Path(cfg.dataset.root), partial(build, cfg.dataset), Path(cfg.lists)))


if __name__ == "__main__":
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
