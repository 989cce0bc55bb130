"""Write a checkpoint as one ONNX or pt2 file with dynamic batch, height and width.

python export.py checkpoint=RUN/checkpoints/last.ckpt format=onnx
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="export", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.export import export  # seconds, which --help need not wait for

        export(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
