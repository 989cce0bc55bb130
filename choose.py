"""Choose which images to label next: those that the network is least sure of, and that differ from each other.

python choose.py checkpoint=RUN/checkpoints/last.ckpt budget=50
python choose.py checkpoint=... budget=50 dataset=folder dataset.root=FOLDER dataset.unlabeled=PHOTOS
python choose.py checkpoint=... budget=50 format=labelme group=places.csv
"""

# The name is not select.py: Python looks for modules beside the script first, so that a file of this name would hide
# the standard library's `select` from every command here; subprocess and asyncio need it.

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="choose", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.choose import choose  # takes seconds, for which --help should not wait

        choose(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
