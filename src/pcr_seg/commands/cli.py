"""The command `pcr-seg COMMAND ...`: runs COMMAND.py, of the checkout or of the wheel, from any folder."""

import runpy
import sys

COMMANDS = ("train", "eval", "predict", "export", "report", "prepare", "app", "choose", "autolabel")


def main() -> None:
    """Run the script that the first argument names, with the rest of the arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "no command"
    if name not in COMMANDS:
        sys.exit(f"error: {name}: choose pcr-seg {'|'.join(COMMANDS)} [key=value ...]")
    from pcr_seg.config import CONF  # takes a while, for which a misspelt command should not wait

    script = str(CONF.with_name(f"{name}.py"))
    sys.argv[:2] = [script]  # as if it had been typed so: DDP starts this command line again for its other processes
    runpy.run_path(script, run_name="__main__")
