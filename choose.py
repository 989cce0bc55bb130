"""Choose which images to label next: those that the network doubts most, apart from each other.

python choose.py checkpoint=RUN/checkpoints/last.ckpt budget=50
python choose.py checkpoint=... budget=50 dataset=folder dataset.root=FOLDER dataset.unlabeled=PHOTOS
python choose.py checkpoint=... budget=50 format=labelme group=places.csv
"""

# Not select.py: Python looks for modules beside the script first, and a file of that name would replace the standard
# library's `select`, which subprocess and asyncio need, for every command here.

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="choose", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.choose import choose  # seconds, which --help need not wait for

        choose(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
