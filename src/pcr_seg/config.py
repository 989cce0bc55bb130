"""Hydra, told how people write: splits on the command line, references that compute, errors in one line."""

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

WHEEL = Path(__file__).parent / "scripts"  # where a wheel puts what stands in the root of a checkout
# Nodes of their files.
GROUPS = ("dataset", "split", "method", "backbone", "model", "optimizer", "protocol", "features", "logger")
CONF = (WHEEL if WHEEL.is_dir() else Path(__file__).parents[2]) / "conf"
QUOTES = "\"'"


def command_line(arguments: list[str]) -> list[str]:
    """Make Hydra read the command line as a person means it; safe to apply twice (DDP starts us again).

    `split=1_8` is `split.labeled='1_8'`, quoted, since 1_8 is the integer 18 for Hydra; `experiment=voc_1_8` is the
    published row of that count; `--cfg` shows values instead of references. A key that has moved ends the command.
    """
    refuse_moved(arguments)
    arguments = [quote_path(name_row(quote_split(argument))) for argument in arguments]
    return [*arguments, "--resolve"] if "--cfg" in arguments and "--resolve" not in arguments else arguments


def refuse_moved(arguments: list[str]) -> None:
    """End the command where it uses a key, or a choice of method, that stands elsewhere now."""
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
    """Make `split.labeled=` of a `split=`, its value(s) quoted; leave anything else alone."""
    match = re.fullmatch(r"split(?:\.labeled)?=(.+)", argument)
    if not match:
        return argument
    values = match[1]
    if not re.search(r"[()\[\]{}]", values):  # Hydra's own functions and lists
        values = ",".join(f"'{value.strip(QUOTES)}'" for value in values.split(","))
    return f"split.labeled={values}"


PATHS = (
    "dataset.root", "dataset.unlabeled", "images", "from", "group", "checkpoint", "output", "resume", "runs", "val",
    "init_from_checkpoint", "backbone.weights", "data.cache", "features.folder", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip


def quote_path(argument: str) -> str:
    """Quote the path of an override whatever its name holds, its ~ written out; leave lists and quoted ones alone."""
    key, separator, value = argument.partition("=")
    if not separator or key.lstrip("+~") not in PATHS or value in ("", "null") or re.fullmatch(r"'.*'|\".*\"", value):
        return argument
    path = os.path.expanduser(value)
    several = not os.path.exists(path) and (re.fullmatch(r"\[.*\]", value) or "," in value or "${" in value)
    number = re.fullmatch(r"[\d._+-]+(e[+-]?\d+)?|true|false|[+-]?inf|nan", value, re.IGNORECASE) and value[0] != "."
    if several or (path == value and not number and re.fullmatch(r"[\w./:*?@%-]*", value, re.ASCII)):
        return argument
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", path)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"{key}='{escaped}'"


def name_row(argument: str) -> str:
    """Name the published rows of an `experiment=` that are given by their fraction: voc_1_8 is voc_183."""
    key, _, values = argument.partition("=")
    if key != "experiment":
        return argument
    return f"{key}=" + ",".join(map(published_row, values.split(",")))


def published_row(name: str) -> str:
    """The name by count of a published row that is named by fraction; any other name as it is."""
    match = re.fullmatch(r"(\w+?)_(1_\d+|full)", name)
    if not match or match[1] not in NUM_TRAIN:
        return name
    return f"{match[1]}_{num_labeled(match[2], NUM_TRAIN[match[1]])}"


def published_count(labeled: str, reader: str) -> int | None:
    """Labeled images that a split means on a published data set, read by `reader`; None for any other."""
    size = NUM_TRAIN.get(reader.rsplit(".", 1)[-1])
    return num_labeled(labeled, size) if size and not str(labeled).endswith(".txt") else None


def wandb_mode() -> str:
    """How to log: as WANDB_MODE says, else offline without a login, or when no server answers in three seconds."""
    if mode := os.environ.get("WANDB_MODE"):
        if mode not in ("online", "offline", "disabled", "shared", "run", "dryrun"):  # the last two are W&B's old names
            raise ValueError(f"WANDB_MODE={mode}: choose online, offline or disabled")
        return mode
    import wandb  # half a second, which no other setting needs

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
    """Whether there is a key for the server: in the environment, or where `wandb login` puts it (netrc)."""
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
    """Devices of one node that the trainer's keys mean."""
    if devices in (-1, "-1", "auto"):
        import torch  # seconds, which --help and a misspelt key need not wait for

        devices = torch.cuda.device_count() if accelerator in ("gpu", "cuda", "auto") else 1
    if isinstance(devices, list | ListConfig):
        return max(1, len(devices))
    if not re.fullmatch(r"-?\d+", str(devices)):
        raise ValueError(f"trainer.devices={devices}: choose auto, a number of devices, or a list of theirs")
    return max(1, int(devices))


def check_launch(trainer: DictConfig | dict) -> None:
    """Raise a ValueError where the trainer's keys ask for a GPU that is not there, or other processes than started."""
    if (name := trainer["accelerator"]) in ("mps", "gpu", "cuda"):
        import torch

        apple, nvidia = torch.backends.mps.is_available(), torch.cuda.is_available()
        if not {"mps": apple, "cuda": nvidia, "gpu": apple or nvidia}[name]:
            what = "an Apple GPU" if name == "mps" else "a GPU"
            raise ValueError(f"trainer.accelerator={name}: {what} is not on this machine; use hardware=auto")
    cluster.check_launch(trainer["num_nodes"], num_devices(trainer["accelerator"], trainer["devices"]))


class BeforeRun(Callback):
    """Refuses a launch that does not fit before Hydra writes into the run folder."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Look at a run's own hardware; that of one to be resumed is not known yet."""
        with one_line_errors():
            if config.resume in (None, "auto"):
                check_launch(config.trainer)


class Failures(Callback):
    """Reads, when a sweep is over, which of its cells failed, wherever they ran."""

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Forget those of an earlier start of the same sweep."""
        shutil.rmtree(Path(config.hydra.sweep.dir, NOTES), ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Note them for `report_failures`."""
        notes = sorted(Path(config.hydra.sweep.dir, NOTES).glob("*"), key=lambda note: int(note.name))
        FAILED.extend(note.read_text(encoding="utf-8").rstrip() for note in notes)


def launched(key: str) -> int:
    """`nodes`, or `devices` of each, that the launcher started, for `hardware=cluster`."""
    if found := cluster.launched():
        return getattr(found, key)
    raise ValueError(
        "hardware=cluster: neither torchrun nor srun started this process; put `torchrun --nproc-per-node=GPUS` or"
        " srun before train.py, or set hardware=ddp"
    )


def global_batch(batch: int, per_device: int | None, accelerator: str, devices: str | int | list, nodes: int) -> int:
    """Labeled images of an optimizer step: the recipe's, or so many on each device."""
    check_counts({"recipe.batch": batch, "trainer.num_nodes": nodes})
    if per_device is None:
        return batch
    check_counts({"per_device": per_device})
    return per_device * nodes * num_devices(accelerator, devices)


def check_counts(numbers: dict[str, object]) -> None:
    """Raise a ValueError for the first key whose value is no whole number of 1 or more."""
    for key, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{key}={number}: choose a whole number of 1 or more")


def growth(total: int, batch: int, per_device: int | None) -> float:
    """How many times the recipe's batch `per_device` makes; 1 without it."""
    check_counts({"global_batch": total, "recipe.batch": batch})
    return 1.0 if per_device is None else total / batch


def grown_lr(lr: float, optimizer: str, growth: float) -> float:
    """The learning rate for a grown batch: SGD's grew alike in conf/optimizer (Goyal et al. 2017); Adam's by the root.

    Source of the root: Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022.
    """
    return lr if growth == 1 or optimizer.endswith(".SGD") else lr * growth**0.5


def grown_decay(decay: float, growth: float) -> float:
    """The decay of an average over steps, of which there are fewer: it forgets as much for each image as before.

    Source: Busbridge et al., "How to Scale Your EMA", NeurIPS 2023.
    """
    return decay**growth


def warmup(growth: float) -> float:
    """Share of the steps in which the learning rate rises where it was raised (Goyal et al. 2017), else 0."""
    return 0.05 if growth > 1 else 0.0


def device_batch(total: int, most: int, accelerator: str, devices: str | int | list, nodes: int) -> int:
    """Largest batch of one device, at most `most`, that makes up the global batch in whole rounds.

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
    """Batches before each optimizer step, so that all devices together see the global batch."""
    check_counts({"global_batch": total, "data.batch_size": batch_size})
    rounds, rest = divmod(total, batch_size * (total // device_batch(total, total, accelerator, devices, nodes)))
    if rest:
        raise ValueError(f"data.batch_size={batch_size}: does not divide global_batch={total} over the devices")
    return max(1, rounds)


def set_name(choice: str, dataset: DictConfig) -> str:
    """How a data set is called in folder names: own data by its folder."""
    if choice != "folder" or OmegaConf.is_missing(dataset, "root"):
        return choice
    return re.sub(r"[^\w.-]+", "_", Path(dataset.root).expanduser().absolute().name)


def stem(labeled: str) -> str:
    """How a split is called in folder names: a list by its name alone."""
    return Path(labeled).stem if str(labeled).endswith(".txt") else str(labeled)


def aspp_rates(output_stride: int | None) -> ListConfig:
    """The paper's dilations of ASPP, which are for output stride 8, at another; None is a network's own, mostly 32."""
    return OmegaConf.create([max(1, rate * 8 // (output_stride or 32)) for rate in (12, 24, 36)])


def third(epochs: int, steps: int, steps_per_epoch: int | None) -> int:
    """A third of a training's epochs, at least one of two; of those that it has before it ends after `steps`."""
    if steps >= 0 and steps_per_epoch:
        epochs = min(epochs, -(-steps // steps_per_epoch))
    return min(max(1, epochs // 3), max(0, epochs - 1))


def suggestion(name: str, known: Iterable[str]) -> str:
    """The name that was meant, perhaps; its last part alone may have been typed."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    close = close or [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line when something fails; HYDRA_FULL_ERROR=1 shows where.

    A user's mistake is a ValueError or an OSError, and says the remedy itself. Of anything else the type is named.
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


NOTES = ".failed"  # folder of a sweep's: a file for each cell that failed, by its number; cells may be other processes
FAILED: list[str] = []  # cells of this command's sweep, with their reasons


@contextmanager
def going_on() -> Iterator[None]:
    """In a sweep, note a cell that ends with an error instead of ending them all; leave no folder without a run."""
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
    """Remove a folder in which Hydra alone has written."""
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
        log = logging.getLogger()
        for handler in log.handlers[:]:  # a launcher may have something to say yet
            if isinstance(handler, logging.FileHandler) and folder in Path(handler.baseFilename).parents:
                log.removeHandler(handler)
                handler.close()
        shutil.rmtree(folder, ignore_errors=True)


def report_failures() -> None:
    """List the cells of a sweep that failed, and exit with 1 if there are any."""
    if FAILED:
        sys.exit("\n".join([f"error: {len(FAILED)} cells of the sweep failed", *FAILED]))


def one_line(error: Exception) -> str:
    """What happened, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Caught "):
        # A loader's process sends its traceback as the message; what happened is its last line, behind the type.
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
    known = type(error).__name__ in ("MisconfigurationException", "ConfigAttributeError")  # whose texts say what to do
    return line if known else f"{line} ({type(error).__name__}; HYDRA_FULL_ERROR=1 shows where)"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
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
    """Call what a node names, with its keys and further arguments; its errors stay its own.

    Hydra alone makes the partial: it would wrap a constructor's error into a page of its own.
    """
    return instantiate(node, _partial_=True)(*args, **kwargs)
