"""Put a data set into place, import one from an annotation tool, examine one, or get settings suggested.

python prepare.py dataset=voc_aug                            # downloads VOC 2012 and SBD, 3.4 GB; serves voc as well
python prepare.py dataset=cityscapes dataset.root=FOLDER     # unpacks the zip files that you downloaded into FOLDER
python prepare.py check dataset=folder dataset.root=FOLDER   # decodes your images and masks and reports what is wrong
python prepare.py suggest dataset=folder dataset.root=FOLDER # settings for them, each with its reason, as a command
python prepare.py import from=EXPORT dataset.root=NEW        # labels of COCO, CVAT, Labelme, Label Studio, YOLO, ...
python prepare.py manifest dataset=folder dataset.root=FOLDER # lists very many unlabeled images once, for fast starts
"""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors

ACTIONS = ("check", "suggest", "import", "manifest")  # each is typed as one word; without one, the action is prepare


@hydra.main(config_path="conf", config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    overrides = HydraConfig.get().overrides.task
    dataset = shlex.join(override for override in overrides if override.startswith("dataset"))
    with one_line_errors():
        from pcr_seg.commands.prepare import act  # takes seconds, for which --help should not wait

        act(cfg, dataset)


if __name__ == "__main__":
    words = [f"action={word}" if word in ACTIONS else word for word in sys.argv[1:]]
    sys.argv[1:] = words
    start(__doc__)
    main()
