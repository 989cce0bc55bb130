"""Put a data set into place: downloaded or unpacked, merged, counted, with its published split lists.

python prepare.py dataset=voc_aug                            # downloads VOC 2012 and SBD, 3.4 GB; good for voc, too
python prepare.py dataset=cityscapes dataset.root=FOLDER     # unpacks the zip files that you downloaded into FOLDER
python prepare.py dataset=folder dataset.root=FOLDER         # looks at your own images and masks
"""

import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from pcr_seg.data.prepare import prepare
from pcr_seg.run import build, command_line


@hydra.main(config_path="conf", config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    reader, root = cfg.dataset._target_.rpartition(".")[2], Path(cfg.dataset.root)
    try:
        source, num_lists = prepare(reader, root, partial(build, cfg.dataset), Path(cfg.lists))
    except (ValueError, OSError) as error:  # OSError: a full disk, a folder of someone else
        sys.exit(f"error: {error}")
    counts = ", ".join(f"{len(getattr(source, part))} {part}" for part in ("train", "unlabeled", "val", "test"))
    print(f"{source.name} is ready: {counts}; {num_lists} published split lists in {cfg.lists}")


if __name__ == "__main__":
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
