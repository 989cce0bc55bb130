"""Hydra, made easier to use: splits and paths as people type them, values computed from others, one-line errors.

The functions that are registered as resolvers at the end compute values of conf/*.yaml, as `${global_batch:...}`.
"""

import difflib
import errno
import hashlib
import logging
import netrc
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pcr_seg import cluster
from pcr_seg.data.published import NUM_TRAIN
from pcr_seg.data.splits import num_labeled
from pcr_seg.moved import GONE, LAST_READER, MOVED

WHEEL = Path(__file__).parent / "scripts"  # where a wheel has the scripts and conf/, which a checkout has in its root
# The groups whose choice is the file that fills the node of the same name.
GROUPS = ("dataset", "split", "method", "backbone", "model", "optimizer", "protocol", "features", "logger")
CONF = (WHEEL if WHEEL.is_dir() else Path(__file__).parents[2]) / "conf"
QUOTES = "\"'"


def command_line(arguments: list[str]) -> list[str]:
    """Rewrite the command line so that Hydra reads it as it was meant; applying it twice changes nothing more.

    `split=1_8` becomes `split.labeled='1_8'`, in quotes because Hydra reads 1_8 as the integer 18. `experiment=voc_1_8`
    becomes the published row of that many images, voc_183. Paths are quoted. `--cfg` shows values instead of
    references. A key that has moved, or is gone, ends the command.
    """
    refuse_moved(arguments)
    arguments = [quote_path(name_row(quote_split(argument))) for argument in arguments]
    return [*arguments, "--resolve"] if "--cfg" in arguments and "--resolve" not in arguments else arguments


def refuse_moved(arguments: list[str]) -> None:
    """Exit with one line if an argument is a key, or a method, that has moved or is gone (`moved.py`)."""
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        ablations = [name for name in value.split(",") if (CONF / f"method/ablation/{name}.yaml").is_file()]
        if key == "method" and ablations:
            sys.exit(f"error: method={ablations[0]}: is method=ablation/{ablations[0]} now")
        if key in MOVED:
            sys.exit(f"error: {key}: is {MOVED[key]} now")
        if key in GONE or (gone := [choice for choice in GONE if choice in {f"{key}={v}" for v in value.split(",")}]):
            name = key if key in GONE else gone[0]
            sys.exit(f"error: {name}: is gone; the last commit that has it is {LAST_READER} (docs/trials.md)")


def quote_split(argument: str) -> str:
    """Turn `split=VALUES` into `split.labeled='VALUE',...`; return any other argument as it is."""
    match = re.fullmatch(r"split(?:\.labeled)?=(.+)", argument)
    if not match:
        return argument
    values = match[1]
    if not re.search(r"[()\[\]{}]", values):  # these are Hydra's own functions and lists
        values = ",".join(f"'{value.strip(QUOTES)}'" for value in values.split(","))
    return f"split.labeled={values}"


PATHS = (
    "dataset.root", "dataset.unlabeled", "images", "from", "group", "checkpoint", "output", "resume", "runs", "val",
    "init_from_checkpoint", "backbone.weights", "data.cache", "features.folder", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip


def quote_path(argument: str) -> str:
    """Expand ~ in the value of a key in `PATHS` and quote it if needed; leave lists and quoted values as they are."""
    key, separator, value = argument.partition("=")
    if not separator or key.lstrip("+~") not in PATHS or value in ("", "null") or re.fullmatch(r"'.*'|\".*\"", value):
        return argument
    path = os.path.expanduser(value)
    several = not os.path.exists(path) and (re.fullmatch(r"\[.*\]", value) or "," in value or "${" in value)
    number = re.fullmatch(r"[\d._+-]+(e[+-]?\d+)?|true|false|[+-]?inf|nan", value, re.IGNORECASE) and value[0] != "."
    number = number and key != "val"  # a share in `prepare.py import`
    if several or (path == value and not number and re.fullmatch(r"[\w./:*?@%-]*", value, re.ASCII)):
        return argument
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", path)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"{key}='{escaped}'"


def name_row(argument: str) -> str:
    """In `experiment=`, replace published rows that are named by a fraction: voc_1_8 becomes voc_183."""
    key, _, values = argument.partition("=")
    if key != "experiment":
        return argument
    return f"{key}=" + ",".join(map(published_row, values.split(",")))


def published_row(name: str) -> str:
    """Return voc_183 for voc_1_8, and the like; any other name as it is."""
    match = re.fullmatch(r"(\w+?)_(1_\d+|full)", name)
    if not match or match[1] not in NUM_TRAIN:
        return name
    return f"{match[1]}_{num_labeled(match[2], NUM_TRAIN[match[1]])}"


def published_count(labeled: str, reader: str) -> int | None:
    """Return how many labeled images a split means on the published data set of a `reader` (dotted name).

    None for any other data set, and for a list of names.
    """
    size = NUM_TRAIN.get(reader.rsplit(".", 1)[-1])
    return num_labeled(labeled, size) if size and not str(labeled).endswith(".txt") else None


def wandb_mode() -> str:
    """Return W&B's mode: WANDB_MODE if set; else online if there is a login and the server answers within 3 seconds."""
    if mode := os.environ.get("WANDB_MODE"):
        if mode not in ("online", "offline", "disabled", "shared", "run", "dryrun"):  # the last two are W&B's old names
            raise ValueError(f"WANDB_MODE={mode}: choose online, offline or disabled")
        return mode
    import wandb  # takes half a second, so only where it is used

    host = wandb.Settings().base_url.split("//")[-1].split("/")[0]
    name, _, port = host.partition(":")
    if not has_wandb_key(name):
        return "offline"
    try:
        socket.create_connection((name, int(port or 443)), timeout=3).close()
    except OSError:
        return "offline"
    return "online"


def has_wandb_key(host: str) -> bool:
    """Whether there is a login for the server: WANDB_API_KEY, or an entry of `wandb login` in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (os.path.expanduser(place) for place in places if place):
        try:
            return netrc.netrc(file).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def num_devices(accelerator: str, devices: str | int | list) -> int:
    """Return how many devices of one node `trainer.accelerator` and `trainer.devices` mean."""
    if devices in (-1, "-1", "auto"):
        import torch  # takes seconds, for which --help and misspelt keys should not wait

        devices = torch.cuda.device_count() if accelerator in ("gpu", "cuda", "auto") else 1
    if isinstance(devices, list | ListConfig):
        return max(1, len(devices))
    if not re.fullmatch(r"-?\d+", str(devices)):
        raise ValueError(f"trainer.devices={devices}: choose auto, a number of devices, or a list of theirs")
    return max(1, int(devices))


def check_launch(trainer: DictConfig | dict) -> None:
    """Raise a ValueError if the trainer asks for a GPU that is not there, or a launcher started other processes."""
    if (name := trainer["accelerator"]) in ("mps", "gpu", "cuda"):
        import torch

        apple, nvidia = torch.backends.mps.is_available(), torch.cuda.is_available()
        if not {"mps": apple, "cuda": nvidia, "gpu": apple or nvidia}[name]:
            what = "an Apple GPU" if name == "mps" else "a GPU"
            raise ValueError(f"trainer.accelerator={name}: {what} is not on this machine; use hardware=auto")
    cluster.check_launch(trainer["num_nodes"], num_devices(trainer["accelerator"], trainer["devices"]))


class BeforeRun(Callback):
    """A Hydra callback that refuses unfit hardware before anything is written into the run folder."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Check a new run's hardware; that of a run to resume is not known yet."""
        with one_line_errors():
            if config.resume in (None, "auto"):
                check_launch(config.trainer)


class Failures(Callback):
    """A Hydra callback that collects which cells of a sweep failed, in whichever process each ran."""

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Delete the notes of an earlier start of the same sweep."""
        shutil.rmtree(Path(config.hydra.sweep.dir, NOTES), ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Read the notes that `going_on` has left, for `report_failures`."""
        notes = sorted(Path(config.hydra.sweep.dir, NOTES).glob("*"), key=lambda note: int(note.name))
        FAILED.extend(note.read_text(encoding="utf-8").rstrip() for note in notes)


def launched(key: str) -> int:
    """Return the number of `nodes`, or of `devices` on each, that the launcher started, for `hardware=cluster`."""
    if found := cluster.launched():
        return getattr(found, key)
    raise ValueError(
        "hardware=cluster: neither torchrun nor srun started this process; put `torchrun --nproc-per-node=GPUS` or"
        " srun before train.py, or set hardware=ddp"
    )


def global_batch(batch: int, per_device: int | None, accelerator: str, devices: str | int | list, nodes: int) -> int:
    """Return the labeled images of an optimizer step: the recipe's `batch`, or `per_device` times all devices.

    Raises:
        ValueError: one of the numbers is none.
    """
    check_counts({"recipe.batch": batch, "trainer.num_nodes": nodes})
    if per_device is None:
        return batch
    check_counts({"per_device": per_device})
    return per_device * nodes * num_devices(accelerator, devices)


def check_counts(numbers: dict[str, object], least: int = 1) -> None:
    """Raise a ValueError for the first key whose value is no whole number of at least `least`."""
    for key, number in numbers.items():
        if type(number) is not int or number < least:
            raise ValueError(f"{key}={number}: choose a whole number of {least} or more")


def growth(total: int, batch: int, per_device: int | None) -> float:
    """Return how many times the recipe's batch the batch `total` is that `per_device` leads to; 1 without it."""
    check_counts({"global_batch": total, "recipe.batch": batch})
    return 1.0 if per_device is None else total / batch


def grown_lr(lr: float, optimizer: str, growth: float) -> float:
    """Return the learning rate for a batch that is `growth` times the recipe's.

    For Adam and the like it grows by the square root of that (Malladi et al., "On the SDEs and Scaling Rules for
    Adaptive Gradient Algorithms", NeurIPS 2022). For SGD it grows in proportion (Goyal et al. 2017), which
    conf/optimizer has done already.
    """
    return lr if growth == 1 or optimizer.endswith(".SGD") else lr * growth**0.5


def grown_decay(decay: float, growth: float) -> float:
    """Return the decay of an average for a batch `growth` times as large: it forgets as much per image as before.

    Source: Busbridge et al., "How to Scale Your EMA", NeurIPS 2023.
    """
    return decay**growth


def warmup(growth: float) -> float:
    """Return the share of the steps in which the learning rate rises: 0.05 for a grown batch (Goyal et al. 2017)."""
    return 0.05 if growth > 1 else 0.0


def device_batch(total: int, most: int, accelerator: str, devices: str | int | list, nodes: int) -> int:
    """Return the largest batch of one device, at most `most`, that makes up the global batch in whole rounds.

    Raises:
        ValueError: the devices cannot share the global batch evenly, or one of the numbers is none.
    """
    check_counts({"global_batch": total, "most_per_device": most, "trainer.num_nodes": nodes})
    world = nodes * num_devices(accelerator, devices)
    if total % world:
        raise ValueError(
            f"global_batch={total}: {world} devices cannot share it evenly; set a multiple of {world}, or per_device=2"
        )
    return max(size for size in range(1, most + 1) if (total // world) % size == 0)


def accumulation(total: int, batch_size: int, accelerator: str, devices: str | int | list, nodes: int) -> int:
    """Return how many batches each device accumulates, so that all devices together see the global batch.

    Raises:
        ValueError: `batch_size` does not divide it, or one of the numbers is none.
    """
    check_counts({"global_batch": total, "data.batch_size": batch_size})
    rounds, rest = divmod(total, batch_size * (total // device_batch(total, total, accelerator, devices, nodes)))
    if rest:
        raise ValueError(f"data.batch_size={batch_size}: does not divide global_batch={total} over the devices")
    return max(1, rounds)


def set_name(choice: str, dataset: DictConfig) -> str:
    """Return a data set's name for run folders: the choice, or for own images the name of their folder."""
    if choice != "folder" or OmegaConf.is_missing(dataset, "root"):
        return choice
    return re.sub(r"[^\w.-]+", "_", Path(dataset.root).expanduser().absolute().name)


def stem(labeled: str) -> str:
    """Return a split's name for run folders: that of a list's file without .txt, else the split itself."""
    return Path(labeled).stem if str(labeled).endswith(".txt") else str(labeled)


def aspp_rates(output_stride: int | None) -> ListConfig:
    """Return ASPP's dilations, the paper's 12, 24, 36 for output stride 8, scaled to another; None counts as 32."""
    return OmegaConf.create([max(1, rate * 8 // (output_stride or 32)) for rate in (12, 24, 36)])


def third(epochs: int, steps: int, steps_per_epoch: int | None) -> int:
    """Return a third of a training's epochs, but at least 1 and less than all of them.

    If the training ends after `steps` (not -1), only the epochs until then count.
    """
    if steps >= 0 and steps_per_epoch:
        epochs = min(epochs, -(-steps // steps_per_epoch))
    return min(max(1, epochs // 3), max(0, epochs - 1))


def items(node: dict) -> Iterator[tuple[str, object]]:
    """Yield the dotted keys of a configuration, both of nodes and of values, with their content."""
    for key, value in node.items():
        yield key, value
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", held) for inner, held in items(value))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name most like a misspelt one, or "".

    Names are dotted; one with the same last part counts as well.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    close = close or [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an exception into an exit with one line; with HYDRA_FULL_ERROR=1 its traceback is shown.

    A user's mistake is a ValueError or an OSError, whose message gives the remedy. Any other exception's type is named.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {one_line(error)}")


NOTES = ".failed"  # folder in a sweep's: for each cell that failed a file, named by its number (cells may be processes)
FAILED: list[str] = []  # "cell: reason" for each failed cell of this command's sweep


@contextmanager
def going_on() -> Iterator[None]:
    """Let a sweep go on after a cell that ends with an error, and note it; remove a run folder without a run."""
    config = HydraConfig.get()
    try:
        yield
    except SystemExit as error:
        remove_empty(Path(config.runtime.output_dir))
        if config.mode != RunMode.MULTIRUN or not str(error.code).startswith("error: "):
            raise
        note = Path(config.sweep.dir, NOTES, str(config.job.num))
        note.parent.mkdir(parents=True, exist_ok=True)
        cell = config.job.override_dirname or config.job.num
        note.write_text(f"{cell}: {str(error.code).removeprefix('error: ')}\n", encoding="utf-8")
        print(f"{error.code}\nthe other cells go on", file=sys.stderr)
    else:
        remove_empty(Path(config.runtime.output_dir))


def remove_empty(folder: Path) -> None:
    """Remove a folder with nothing in it but what Hydra writes at the start."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
        log = logging.getLogger()
        for handler in log.handlers[:]:  # a launcher may still log something, and must not write there
            if isinstance(handler, logging.FileHandler) and folder in Path(handler.baseFilename).parents:
                log.removeHandler(handler)
                handler.close()
        shutil.rmtree(folder, ignore_errors=True)


def report_failures() -> None:
    """List the cells of a sweep that failed, and exit with 1 if there are any."""
    if FAILED:
        sys.exit("\n".join([f"error: {len(FAILED)} cells of the sweep failed", *FAILED]))


def one_line(error: Exception) -> str:
    """Describe an exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Caught "):
        # A loader's process sends a whole traceback as the message: its last line is "TYPE: what happened".
        return lines[-1].partition(": ")[2] or lines[-1]
    if isinstance(error, MissingConfigException) and error.options:
        return f"{error.missing_cfg_file}: no such choice; choose {', '.join(error.options)}"
    line = lines[0].removeprefix(RESOLVING)
    if isinstance(error, ValueError | OSError | MissingMandatoryValue):
        return line
    disk = next((one for one in causes(error) if isinstance(one, OSError) and one.errno == errno.ENOSPC), None)
    if disk or "PytorchStreamWriter failed writing" in str(error):
        place = f" for {disk.filename}" if disk and disk.filename else ""
        return f"no space left on the disk{place}; make room, and go on with resume=RUN_FOLDER"
    if type(error).__name__ == "OutOfMemoryError":
        memory = line.partition(". ")[0]
        return f"{memory}; lower most_per_device, which keeps the batch: resume=RUN_FOLDER most_per_device=1 goes on"
    known = type(error).__name__ in ("MisconfigurationException", "ConfigAttributeError")  # whose texts say what to do
    return line if known else f"{line} ({type(error).__name__}; HYDRA_FULL_ERROR=1 shows where)"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


RESOLVING = "ValueError raised while resolving interpolation: "
OmegaConf.register_new_resolver("global_batch", global_batch, replace=True)
OmegaConf.register_new_resolver("growth", growth, replace=True)
OmegaConf.register_new_resolver("grown_lr", grown_lr, replace=True)
OmegaConf.register_new_resolver("grown_decay", grown_decay, replace=True)
OmegaConf.register_new_resolver("warmup", warmup, replace=True)
OmegaConf.register_new_resolver("device_batch", device_batch, replace=True)
OmegaConf.register_new_resolver("launched", launched, replace=True)
OmegaConf.register_new_resolver("started", cluster.started, replace=True)
OmegaConf.register_new_resolver("accumulation", accumulation, replace=True)
OmegaConf.register_new_resolver("scaled_lr", lambda lr, total: lr * total / 16, replace=True)
OmegaConf.register_new_resolver("set_name", set_name, replace=True)
OmegaConf.register_new_resolver("stem", stem, replace=True)
OmegaConf.register_new_resolver("rates", aspp_rates, replace=True)
OmegaConf.register_new_resolver("third", third, replace=True)
OmegaConf.register_new_resolver("num_labeled", published_count, replace=True)
OmegaConf.register_new_resolver("digest", lambda text: hashlib.sha256(text.encode()).hexdigest()[:6], replace=True)
OmegaConf.register_new_resolver("parent_name", lambda path: Path(path).parent.name, replace=True)
OmegaConf.register_new_resolver("wandb_mode", wandb_mode, replace=True)


def build(node: DictConfig, *args: object, **kwargs: object):
    """Call what a node's `_target_` names, with the node's keys and further arguments.

    Hydra only makes a partial of it, since Hydra's own call would wrap an exception into a longer one.
    """
    return instantiate(node, _partial_=True)(*args, **kwargs)
