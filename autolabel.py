"""Label very many images by a model, as a data set to train on: by many processes, and going on after a kill.

python autolabel.py checkpoint=RUN/checkpoints/last.ckpt images=FOLDER output=labels threshold=0.9
python autolabel.py checkpoint=... images=/pool/all.manifest output=labels maps=[confidence,disagreement]
torchrun --nproc-per-node=8 autolabel.py checkpoint=... images=... output=labels batch_size=16
"""

import sys

import hydra
from omegaconf import DictConfig

from pcr_seg.cluster import place
from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="autolabel", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line; exit with 1 if images were left out.

    One of several processes exits with 0 then, because torchrun would end the others.
    """
    with one_line_errors():
        from pcr_seg.commands.autolabel import autolabel  # takes seconds, for which --help should not wait

        failed = autolabel(cfg)
    if failed and place().total == 1:
        sys.exit(f"error: {len(failed)} images could not be read; they are named above")


if __name__ == "__main__":
    start(__doc__)
    main()
