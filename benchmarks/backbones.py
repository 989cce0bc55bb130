"""Test what each family of backbones can do: train for two steps, predict odd sizes, be scored, be exported as ONNX.

python benchmarks/backbones.py [FAMILY ...]    writes docs/results/backbones.csv and its table in docs/backbones.md

Weights are random: the table says whether a family works, not how well. A failure is shown by the line a user gets.
"""

import csv
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from pcr_seg.checkpoint import load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.commands.export import export
from pcr_seg.config import CONF, command_line
from pcr_seg.training.fit import fit

ROOT = Path(__file__).parents[1]
CSV = ROOT / "docs/results/backbones.csv"
FAMILIES = {
    "resnet": "resnet18", "convnext": "convnext_atto", "efficientnet": "efficientnet_b0",
    "mobilenet": "mobilenetv3_small_100", "regnet": "regnety_002", "swin": "swin_tiny_patch4_window7_224",
    "mambaout": "mambaout_femto", "maxvit": "maxvit_tiny_tf_224", "pvt": "pvt_v2_b0", "vit": "vit_tiny_patch16_224",
    "dinov2": "vit_small_patch14_dinov2", "dinov3": "vit_small_patch16_dinov3", "eva02": "eva02_tiny_patch14_224",
    "PE": "vit_pe_core_tiny_patch16_384", "beit": "beit_base_patch16_224", "hiera": "hiera_tiny_224",
    "levit": "levit_128s", "twins": "twins_pcpvt_small", "nextvit": "nextvit_small", "hrnet": "hrnet_w18_small",
    "fastvit": "fastvit_t8", "edgenext": "edgenext_xx_small", "densenet": "densenet121", "ghostnet": "ghostnet_050",
    "caformer": "caformer_s18",
}  # fmt: skip
PLAIN = ("vit", "dinov2", "dinov3", "eva02", "PE", "beit")
MINUTES = 5  # of CPU time, after which an exporter is given up
SIZES = ((97, 131), (50, 75))
COLUMNS = ("family", "model", "decoder", "trains", "predicts", "scores", "ONNX")


def composed(name: str, *overrides: str):
    """Return the configuration of a script's command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, command_line(list(overrides)))


def attempt(action, *arguments) -> tuple[str, object]:
    """Return "yes" and an action's result; or the first line of its error, and None."""
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, MINUTES * 60)
    try:
        return "yes", action(*arguments)
    except Exception as error:  # any failure goes into the table
        return (str(error).splitlines() or [type(error).__name__])[0], None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def too_long(*_: object) -> None:
    """End what is running."""
    raise TimeoutError(f"no end in {MINUTES} minutes")


def row(family: str, model: str, folder: Path) -> dict[str, str]:
    """Return the table's row of one family."""
    decoder = "dpt" if family in PLAIN else "deeplab_small"
    result = dict.fromkeys(COLUMNS, "") | {"family": family, "model": model, "decoder": decoder}
    run = composed(
        "train", "backbone=any", f"backbone.name={model}", "backbone.weights=null", f"model={decoder}",
        f"output={folder}/run", f"dataset.root={folder.parent}/data", "dataset.num_train=8", "dataset.num_val=2",
        "split=4", "method=unimatch_v2", "global_batch=2", "trainer.max_steps=2", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "diagnosis=false",
    )  # fmt: skip
    result["trains"], _ = attempt(fit, run)
    if result["trains"] != "yes":
        return result
    checkpoint = folder / "run/checkpoints/last.ckpt"

    def predict() -> None:
        for size in SIZES:
            assert load(checkpoint).predict(np.zeros((*size, 3), np.uint8)).labels.shape == size

    result["predicts"], _ = attempt(predict)
    result["scores"], _ = attempt(evaluate, composed("eval", f"checkpoint={checkpoint}", "device=cpu"))
    result["ONNX"], _ = attempt(export, composed("export", f"checkpoint={checkpoint}", "format=onnx"))
    if result["ONNX"] != "yes":
        sized, _ = attempt(export, composed("export", f"checkpoint={checkpoint}", "format=onnx", "size=[97,131]"))
        result["ONNX"] = "with size=[H,W]" if sized == "yes" else sized
    return result


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as Markdown, with failures cut to 160 characters."""
    cells = [COLUMNS, *([each[column].replace("|", "/")[:160] for column in COLUMNS] for each in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, "|" + "---|" * len(COLUMNS), *body])


def write(rows: dict[str, dict[str, str]]) -> None:
    """Write the rows, given by family, to the CSV file and into the page."""
    known = [rows[family] for family in FAMILIES if family in rows]
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(known)
    page = ROOT / "docs/backbones.md"
    before, _, after = page.read_text().partition("<!-- table -->")
    page.write_text(f"{before}<!-- table -->\n\n{table(known)}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}")


def main(chosen: list[str]) -> None:
    """Run the chosen families, or all; the rows of others stay."""
    rows = {each["family"]: each for each in csv.DictReader(CSV.open())} if CSV.is_file() else {}
    with tempfile.TemporaryDirectory() as top:
        for family in chosen or FAMILIES:
            rows[family] = row(family, FAMILIES[family], Path(top, family))
            print(rows[family], flush=True)
            write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
