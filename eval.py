"""Score a checkpoint: mIoU and per-class IoU of both heads, printed and written as JSON.

python eval.py checkpoint=RUN/checkpoints/last.ckpt
python eval.py checkpoint=... dataset=folder dataset.root=FOLDER subset=test
python eval.py checkpoint=... protocol=sliding protocol.window=513 protocol.stride=342 eval.student=true
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="eval", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.evaluate import evaluate  # takes seconds, for which --help should not wait

        evaluate(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
