"""Train a method on a data set with few labels.

    python train.py                                            # the generated set, on any machine
    python train.py dataset=cityscapes split=1_8               # a paper's row
    python train.py -m split=1_16,1_8,1_4 method=supervised,pcr seed=0,1,2
    python train.py resume=RUN_FOLDER                          # finish a run that was stopped
    python train.py dataset=cityscapes split=1_8 --cfg job     # what would run

Most often set beside: dataset.root=FOLDER, data.crop_size, data.num_workers, optimizer.lr, recipe.threshold,
trainer.max_epochs, trainer.max_steps, and the keys of the method (conf/method/).
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import going_on, one_line_errors, report_failures


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Return the last epoch's mIoU, for sweepers. In a sweep a cell that fails is noted, and the others go on."""
    with going_on(), one_line_errors():
        from pcr_seg.training.fit import fit  # takes seconds, for which --help should not wait

        return fit(cfg)["miou_last"]
    return float("nan")


if __name__ == "__main__":
    start(__doc__)
    main()
    report_failures()
