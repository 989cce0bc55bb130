"""Write a checkpoint for others: ONNX or pt2 of any size, its weights alone, or a repository on the Hugging Face Hub.

python export.py checkpoint=RUN/checkpoints/last.ckpt format=onnx
python export.py checkpoint=RUN/checkpoints/last.ckpt format=weights             # a tenth of the file, to predict with
python export.py checkpoint=RUN/checkpoints/last.ckpt format=hub repo=USER/NAME
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="export", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.commands.export import export  # takes seconds, for which --help should not wait

        export(cfg)


if __name__ == "__main__":
    start(__doc__)
    main()
