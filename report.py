"""What runs reached: a page to open in a browser, tables (mean and std over seeds) and plots.

    python report.py runs=runs/FOLDER                          one run: curves, classes, confusion, pictures, settings
    python report.py runs='runs/*'                             every finished run below runs/, compared
    python report.py runs='runs/camvid*' output=docs/out       some of them, written elsewhere
    python report.py runs='runs/*' baselines=[fixmatch]        gains counted from another method

Prints the tables and writes report.{html,md,csv,png}, runs.csv (each run) and curves.png to the folder `output`.
"""

import hydra
from omegaconf import DictConfig

from pcr_seg.commands.start import start
from pcr_seg.config import one_line_errors


@hydra.main(config_path="conf", config_name="report", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    with one_line_errors():
        from pcr_seg.report.write import report  # takes seconds, for which --help should not wait

        names = [cfg.baselines] if isinstance(cfg.baselines, str) else list(cfg.baselines or ())
        report(str(cfg.runs), cfg.output, names)


if __name__ == "__main__":
    start(__doc__)
    main()
