"""What the runs reached: one table (mean and std over seeds) and one plot (mIoU over the number of labels).

    python report.py runs='runs/*'                         every finished run below runs/
    python report.py runs='runs/camvid*' output=docs/out   some of them, written elsewhere
    python report.py runs='runs/*' baseline=consistency    gains counted from another method

Prints the table and writes report.md, report.csv, report.png and runs.csv (each run) to the folder `output`.
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.config import one_line_errors
from pcr_seg.report import report


@hydra.main(config_path="conf", config_name="report", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run with the config of conf/report.yaml; a user's mistake ends in one line."""
    with one_line_errors():
        report(str(cfg.runs), cfg.output, cfg.baseline)


if __name__ == "__main__":
    main()
