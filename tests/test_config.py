"""Every shipped YAML composes and builds what it names; command lines mean what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, TINY_SET, composed, small_config
from faults import train
from hydra.utils import get_class, get_method, instantiate
from omegaconf import OmegaConf

from pcr_seg.checkpoint import constructor_parameters, refuse_strangers
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.config import CONF, build, command_line, one_line_errors, set_name, stem
from pcr_seg.module import Segmentation
from pcr_seg.training.fit import build_method, build_module, check_per_device, fit
from pcr_seg.training.resume import TRUSTED_RUN, moved

ROOT = CONF.parent


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def options() -> list[str]:
    """Each option of each group, as one override of the default training."""
    groups = [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("recipe", "experiment")]
    ablations = [f"method=ablation/{option}" for option in files("method/ablation")]
    return ablations + [f"{group}={option}" for group in sorted(groups) for option in files(group)]


@pytest.mark.parametrize("override", options())
def test_every_option_composes_and_its_targets_exist(
    tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in launcher.items() if override.startswith("hardware=cluster") else ():
        monkeypatch.setenv(name, value)
    config = composed(override, f"output={tmp_path}", "dataset.root=somewhere")
    OmegaConf.resolve(config)
    found = re.findall(r"_target_: (\S+)", OmegaConf.to_yaml(config))
    assert len(found) >= 7
    for target in found:
        assert callable(get_method(target) if target.rsplit(".", 1)[1][0].islower() else get_class(target))
    refuse_strangers("resume", OmegaConf.to_container(config).values(), (), TRUSTED_RUN)  # else it could not go on


METHODS = [*files("method"), *(f"ablation/{name}" for name in files("method/ablation"))]
# Each with a third of the others: every recipe and every method, and what they have in common several times.
PAIRS = [(d, m) for i, d in enumerate(files("dataset")) for j, m in enumerate(METHODS) if (i + j) % 3 == 0]


@pytest.mark.parametrize(("dataset", "method"), PAIRS)
def test_every_recipe_builds_every_method(dataset: str, method: str) -> None:
    config = composed(f"dataset={dataset}", f"method={method}", "output=x", "dataset.root=somewhere")
    OmegaConf.resolve(config)
    node = OmegaConf.to_container(config.method)
    assert node.pop("name") == method.split("/")[-1]
    student = SimpleNamespace(num_classes=3, feature_dim=8)
    built = build_method(OmegaConf.create(node), student, ["a", "b", "c"])
    known = {"num_classes", "feature_dim", "class_names"}
    assert node.keys() - {"_target_"} == constructor_parameters(type(built)).keys() - known, "a YAML is the signature"
    told = {"burn_in_epochs": config.recipe.burn_in_epochs, "threshold": config.recipe.threshold}
    if "match" not in method:
        assert all(getattr(built, key, value) == value for key, value in told.items())


@pytest.mark.parametrize("dataset", files("dataset"))
def test_every_recipe_builds_its_real_network(tmp_path: Path, dataset: str) -> None:
    config = composed(f"dataset={dataset}", f"output={tmp_path}", "dataset.root=somewhere", "backbone.weights=null")
    module = build_module(OmegaConf.to_container(config, resolve=True), ["a", "b", "c"])
    assert isinstance(module, Segmentation)
    assert module.method.bank.prototypes.shape == (3, config.method.num_prototypes, module.student.feature_dim)
    assert "trainer" in config and config.trainer.max_epochs > 0 and config.data.crop_size >= config.method.grid_cells


NETWORKS = {  # the named networks, made small
    "dinov": ["+backbone.options.depth=4", "+backbone.options.embed_dim=32", "+backbone.options.num_heads=2"],
    "any": ["backbone.name=mambaout_femto"], "mit": ["backbone.name=mit_b0"],
}  # fmt: skip


DECODERS = [name for name in files("model") if not name.startswith("deeplab_")]  # of one class one is enough


@pytest.mark.parametrize(
    ("backbone", "model"),
    [
        *((b, m) for b in files("backbone") for m in DECODERS),
        *(("tiny", m) for m in sorted({*files("model")} - {*DECODERS})),
    ],
)
def test_every_backbone_carries_every_decoder(backbone: str, model: str) -> None:
    """Or says in a line which decoders it carries."""
    if model == "smp" or backbone.startswith("mit"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs the smp extra")
    small = next((more for start, more in NETWORKS.items() if backbone.startswith(start)), [])
    config = composed(f"backbone={backbone}", f"model={model}", "backbone.weights=null", "output=x", *small)
    body = build(config.backbone)
    wanted = {"mlp": True, "linear": True, "dpt": body.plain, "smp": not body.plain and body.strides[-1] == 32}
    if not wanted.get(model, not body.plain):
        with pytest.raises(ValueError, match=f"^model={model.split('_')[0]}: .*; choose ") as caught:
            build(config.model, body, 4)
        assert "\n" not in str(caught.value)
        return
    network = build(config.model, body, 4).eval()
    with torch.no_grad():
        output = network(torch.zeros(1, 3, 65, 65))
    assert output.logits.shape[:2] == (1, 4)
    assert output.features.shape == (1, network.feature_dim, *output.logits.shape[2:])


@pytest.mark.parametrize("optimizer", files("optimizer"))
def test_every_optimizer_takes_parameter_groups(optimizer: str) -> None:
    partial = instantiate(composed(f"optimizer={optimizer}", "output=x").optimizer)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, {"params": [], "lr": 10 * partial.keywords["lr"]}]
    assert partial(groups).param_groups[1]["lr"] == 10 * partial.keywords["lr"]


@pytest.mark.parametrize("logger", files("logger"))
def test_every_logger_builds(tmp_path: Path, logger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    loggers = instantiate(composed(f"logger={logger}", f"output={tmp_path}").logger)
    assert list(loggers) == {"csv": ["csv"], "none": []}.get(logger, ["csv", logger])


@pytest.mark.parametrize("hardware", ["auto", "cpu", "ddp_cpu"])
def test_every_hardware_for_this_machine_makes_a_trainer(tmp_path: Path, hardware: str) -> None:
    trainer = build(
        composed(
            f"hardware={hardware}", f"output={tmp_path}", "trainer.accelerator=cpu", "trainer.max_epochs=1"
        ).trainer
    )
    assert trainer.world_size == (2 if hardware == "ddp_cpu" else 1)


def test_group_files_hold_no_other_nodes_keys() -> None:
    for path in CONF.glob("*/*.yaml"):
        is_global = "@package _global_" in path.read_text()
        assert not is_global or path.parent.name in ("recipe", "experiment"), path


def test_the_papers_cityscapes_recipe() -> None:
    config = composed("dataset=cityscapes", "split=1_8", "output=x")
    OmegaConf.resolve(config)
    assert (config.split.labeled, config.split.num_labeled) == ("1_8", 372)
    assert config.optimizer._target_ == "torch.optim.SGD"
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.01, 0.9, 5e-4)
    method = config.method
    assert (method.num_prototypes, method.threshold, method.temperature) == (3, 0.65, 0.1)
    assert (method.prototype_momentum, method.ema_decay, method.burn_in_epochs) == (0.99, 0.99, 1)
    assert (method.grid_cells, method.auxiliary_weight, config.model.head_lr_multiplier) == (32, 0.4, 1)
    assert method.supervised_loss._target_.endswith("ohem_cross_entropy")
    assert (config.trainer.max_epochs, config.data.crop_size, config.data.batch_size) == (200, 769, 2)
    assert (config.backbone.name, config.backbone.output_stride, config.model.auxiliary) == ("resnet101s", 8, True)
    assert (config.protocol.window, config.protocol.stride) == (769, 513)


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        ("cityscapes", {"1_30": 100, "1_16": 186, "1_8": 372, "1_4": 744, "1_2": 1488, "full": 2975}),
        ("voc", {"1_16": 92, "1_8": 183, "1_4": 366, "1_2": 732, "full": 1464, "92": 92}),
        ("voc_aug", {"1_16": 662, "1_8": 1323, "1_4": 2646, "1_2": 5291}),
    ],
)
def test_splits_name_the_published_counts(dataset: str, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        assert composed(f"dataset={dataset}", f"split={split}", "output=x").split.num_labeled == count


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("split=1_8", "split.labeled='1_8'"),
        ("split=92", "split.labeled='92'"),
        ("split=1_16,1_8,1_4,1_2", "split.labeled='1_16','1_8','1_4','1_2'"),
        ("split=57", "split.labeled='57'"),
        ("split=2,4,8", "split.labeled='2','4','8'"),
        ("split=1_7", "split.labeled='1_7'"),
        ("split=lists/mine.txt", "split.labeled='lists/mine.txt'"),
        ("split.labeled=1_8", "split.labeled='1_8'"),
        ("split='1_8'", "split.labeled='1_8'"),
        ('split="1_8"', "split.labeled='1_8'"),
        ("split='1_8','57'", "split.labeled='1_8','57'"),
        ("split_family=cps", "split_family=cps"),
        ("optimizer.lr=1_0", "optimizer.lr=1_0"),
        ("experiment=cityscapes_1_8", "experiment=cityscapes_372"),
        ("experiment=voc_full,voc_aug_1_16,cpu", "experiment=voc_1464,voc_aug_662,cpu"),
    ],
)
def test_splits_are_quoted_once(typed: str, meant: str) -> None:
    assert command_line([typed]) == [meant]
    assert command_line([meant]) == [meant], "started again by DDP"


def test_any_count_and_any_fraction_compose() -> None:
    assert composed("split=57", "output=x").split.labeled == "57"
    assert composed("split=1_7", "output=x").split.labeled == "1_7"


def run_script(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_cityscapes_as_typed_in_a_shell() -> None:
    shown = run_script("train.py", "dataset=cityscapes", "split=1_8", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    for line in ("labeled: '1_8'", "num_labeled: 372", "lr: 0.01", "num_prototypes: 3", "threshold: 0.65"):
        assert line in text, line
    assert "${" not in text


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("method.teacher_bn=weak", "method.teacher_bn: is module.teacher_bn now"),
        ("method.head_lr_multiplier=1", "method.head_lr_multiplier: is model.head_lr_multiplier now"),
        ("method=supervised,no_cutmix", "method=no_cutmix: is method=ablation/no_cutmix now"),
        ("method.gate=entropy", "method.gate: is gone; the last commit that has it is"),
        ("method=entropy_gate", "method=entropy_gate: is gone; the last commit that has it is"),
    ],
)
def test_a_key_that_moved_is_refused_with_its_new_name(typed: str, answer: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"error: {answer}")):
        command_line([typed])


def test_wandb_stays_offline_where_the_server_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    # In a process of its own: the client keeps the key and the address for the rest of a process.
    started = "import time, warnings; from pcr_seg.config import wandb_mode; t = time.monotonic()"
    script = f"{started}; warnings.simplefilter('ignore'); print(wandb_mode(), time.monotonic() - t)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    offline, seconds = result.stdout.split()
    assert offline == "offline"
    assert float(seconds) < 5, "waiting for a server must not hold a run up"


def test_variables_of_wandb_and_gradio_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PROJECT", "NAME", "RUN_GROUP", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    config = composed("logger=wandb", "output=x", "trainer.max_epochs=1")
    logger = config.logger.wandb
    set_by = {"project": "PROJECT", "name": "NAME", "group": "RUN_GROUP", "save_dir": "DIR"}
    assert all(logger[key] == str(tmp_path / name) for key, name in set_by.items())
    loggers = moved(config, tmp_path / "moved").logger  # as a run that goes on, a fold, or the baseline
    assert [loggers[name].save_dir for name in ("csv", "wandb")] == [str(tmp_path / "moved"), str(tmp_path / "DIR")]
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8000")
    page = composed("checkpoint=x", name="app")
    assert (page.host, page.port) == ("0.0.0.0", 8000)
    for mode in ("online", "offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert composed("logger=wandb", "output=x").logger.wandb.mode == mode
    monkeypatch.setenv("WANDB_MODE", "ofline")
    line = "error: WANDB_MODE=ofline: choose online, offline or disabled"
    with pytest.raises(SystemExit, match=f"^{line}$"), one_line_errors():
        fit(composed("logger=wandb", f"output={tmp_path}", "dataset.root=x"))


def test_a_sweep_makes_a_run_folder_for_each_cell_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two methods through the real command line; started again with two fractions, it runs the missing cells alone."""
    settings = [s for s in SMALL if not s.startswith("split=")]

    def sweep(split: str) -> dict[str, int]:
        arguments = ["-m", "method=supervised,pcr", split, f"hydra.sweep.dir={tmp_path}/sweep"]
        log = tmp_path / "log"
        assert train([*arguments, f"dataset.root={tmp_path}/data", *TINY_SET, *settings], log) == 0, log.read_text()
        return {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/summary.json")}

    first = sweep("split=1_4")
    runs = sweep("split=1_4,1_2")
    assert first.items() <= runs.items(), "finished cells stay as they are"
    assert sorted(re.sub(r"_[0-9a-f]{6}$", "", run) for run in runs) == [
        "synthetic_1_2_pcr_seed0", "synthetic_1_2_supervised_seed0",
        "synthetic_1_4_pcr_seed0", "synthetic_1_4_supervised_seed0",
    ]  # fmt: skip
    for run in runs:
        folder = tmp_path / "sweep" / run
        for file in ("summary.json", "metrics.csv", "config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
                     "splits/labeled.txt", "splits/unlabeled.txt", "panel.png"):  # fmt: skip
            assert (folder / file).is_file(), f"{run}/{file}"


def test_two_processes_train_one_bank(tmp_path: Path) -> None:
    """DDP on the CPU starts the script again with the same command line; validation counts each image once."""
    arguments = [f"dataset.root={tmp_path}/data", f"hydra.run.dir={tmp_path}/run", *TINY_SET, *SMALL]
    log = tmp_path / "log"
    assert train([*arguments, "hardware=ddp_cpu", "global_batch=4"], log) == 0, log.read_text()
    evaluation = evaluate(composed(f"checkpoint={tmp_path}/run/checkpoints/last.ckpt", "device=cpu", name="eval"))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert evaluation["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    assert evaluation["miou_prototype"] == pytest.approx(summary["miou_prototype_last"], abs=1e-4)


def test_small_config_overrides_win(tmp_path: Path) -> None:
    assert small_config(tmp_path, "trainer.max_epochs=7").trainer.max_epochs == 7


PUBLISHED = {
    "voc": {92: (656, 52_480), 183: (650, 52_000), 366: (638, 51_040), 732: (616, 49_280), 1464: (570, 45_600)},
    "voc_aug": {662: (620, 49_600), 1323: (579, 46_320), 2646: (496, 39_680), 5291: (331, 26_480)},
    "cityscapes": {186: (174, 34_800), 372: (163, 32_600), 744: (139, 27_800), 1488: (93, 18_600)},
}


@pytest.mark.parametrize(("dataset", "count"), [(d, n) for d, counts in PUBLISHED.items() for n in counts])
def test_every_published_row_has_the_papers_batch_and_totals(dataset: str, count: int) -> None:
    config = composed(f"experiment={dataset}_{count}", "output=x")
    OmegaConf.resolve(config)
    assert (config.split.labeled, config.split.num_labeled) == (str(count), count)
    assert (config.global_batch, config.data.batch_size, config.trainer.accumulate_grad_batches) == (16, 2, 8)
    images = {"voc": 10_582, "voc_aug": 10_582, "cityscapes": 2_975}[dataset] - count
    iterations = round(images / config.global_batch)
    assert (iterations, iterations * config.trainer.max_epochs) == PUBLISHED[dataset][count]


@pytest.mark.parametrize("experiment", files("experiment"))
def test_every_experiment_composes_and_says_its_command(experiment: str) -> None:
    config = composed(f"experiment={experiment}", "output=x", "backbone.weights=null")
    OmegaConf.resolve(config)
    wanted = "vit_small_patch14_dinov2" if experiment.startswith(("ade20k", "coco")) else "resnet101s"
    assert experiment in ("cpu", "laptop") or config.backbone.name == wanted, "the published rows' network"
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert f"experiment={experiment}" in header


def test_fractions_name_the_same_rows_as_counts() -> None:
    one, other = (composed(f"experiment=cityscapes_{name}", "output=x") for name in ("1_8", "372"))
    assert one == other


@pytest.mark.parametrize(
    ("devices", "nodes", "batch", "rounds"), [(1, 1, 2, 8), (2, 1, 2, 4), (8, 1, 2, 1), (16, 1, 1, 1), (4, 2, 2, 1)]
)
def test_global_batch_is_kept_on_any_number_of_devices(devices: int, nodes: int, batch: int, rounds: int) -> None:
    hardware = [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}", "trainer.accelerator=gpu"]
    config = composed("dataset=cityscapes", "output=x", *hardware)
    assert (config.data.batch_size, config.trainer.accumulate_grad_batches) == (batch, rounds)
    assert batch * rounds * devices * nodes == 16 and config.optimizer.lr == 0.01


def test_learning_rate_follows_the_global_batch() -> None:
    assert composed("dataset=cityscapes", "global_batch=8", "output=x").optimizer.lr == pytest.approx(0.005)
    assert composed("dataset=voc", "global_batch=32", "output=x").optimizer.lr == pytest.approx(0.002)


def test_the_batch_grows_with_the_devices_where_it_is_told_to() -> None:
    """32 GPUs with two images each on a recipe of 16: four times the batch, and what follows."""
    hardware = ["per_device=2", "trainer.devices=8", "trainer.num_nodes=4", "trainer.accelerator=gpu", "output=x"]
    config = composed("dataset=cityscapes", *hardware)
    assert (config.global_batch, config.data.batch_size, config.trainer.accumulate_grad_batches) == (64, 2, 1)
    assert config.module.lr == pytest.approx(4 * 0.01) and config.module.warmup == 0.05
    assert config.method.ema_decay == config.method.prototype_momentum == pytest.approx(0.99**4)
    config = composed("dataset=coco", *hardware)
    assert config.module.lr == pytest.approx(2 * config.optimizer.lr), "AdamW's grows by the root"
    for words in ((), ("global_batch=64",)):
        config = composed("dataset=cityscapes", "output=x", *words)
        assert config.module.lr == config.optimizer.lr and config.module.warmup == 0
        assert config.method.ema_decay == 0.99, "as the recipe says, whatever the batch, unless per_device is given"
    with pytest.raises(ValueError, match="global_batch=32: 32 devices with per_device=2 make 64; give one of the two"):
        check_per_device(composed("dataset=cityscapes", "global_batch=32", *hardware))


def test_a_device_without_memory_is_one_line_with_a_remedy() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")
    line = r"error: CUDA out of memory; lower most_per_device, .*: resume=RUN_FOLDER most_per_device=1 goes on"
    with pytest.raises(SystemExit, match=f"^{line}$"), one_line_errors():
        raise error


def test_devices_that_cannot_share_the_batch_are_one_line() -> None:
    line = "error: global_batch=16: 3 devices cannot share it evenly; set a multiple of 3, or per_device=2"
    with pytest.raises(SystemExit, match=f"^{line}$"), one_line_errors():
        fit(composed("dataset=cityscapes", "dataset.root=x", "trainer.devices=3", "output=x"))


@pytest.mark.parametrize(
    "typed",
    ["trainer.devices=many", "global_batch=", "most_per_device=0", "data.batch_size=big", "trainer.num_nodes=null"],
)
def test_what_is_computed_with_is_checked_first(typed: str) -> None:
    """The line names the key that was typed, and not what failed when another was computed from it."""
    with pytest.raises(SystemExit, match=f"^error: {typed.split('=')[0]}="), one_line_errors():
        fit(composed("dataset=cityscapes", "dataset.root=x", "output=x", typed))


def test_dilations_follow_the_output_stride() -> None:
    """The paper's 12, 24, 36 and 4, 8, 16 are for stride 8."""
    for stride, rates, grid in ((8, [12, 24, 36], [4, 8, 16]), (16, [6, 12, 18], [2, 4, 8])):
        config = composed("dataset=voc", f"backbone.output_stride={stride}", "backbone.weights=null", "output=x")
        assert config.model.rates == rates
        blocks = build(config.backbone, name="resnet50s").net.layer4
        assert [block.conv2.dilation[0] for block in blocks] == grid


def test_folders_bear_the_name_of_own_data_and_of_a_lists_file() -> None:
    own = OmegaConf.create({"root": "/some/where/my data"})
    assert (set_name("folder", own), set_name("voc", own)) == ("my_data", "voc")
    assert set_name("folder", OmegaConf.create({"root": "???"})) == "folder"
    assert (stem("lists/mine.txt"), stem("1_8"), stem("92")) == ("mine", "1_8", "92")


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "2024",
        "1_8",
        "true",
        "1e5",
        "données",
        "set (1)",
        "a=b",
        "a,b",
        "x#y",
        "c'est",
        "[new]",
        "back\\slash",
        "{x}",
        "$HOME",
        "a b",
    ],
)
def test_a_path_means_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for typed in (f"dataset.root={tmp_path}/{name}", *command_line([f"dataset.root={tmp_path}/{name}"])):
        assert composed("dataset=folder", typed, "output=x").dataset.root == f"{tmp_path}/{name}"


def test_a_folder_whose_name_is_a_number_is_a_name() -> None:
    assert composed("checkpoint=x", "images=x", "output=2024", name="predict").output == "2024"
    assert composed("checkpoint=x", "images=.", name="predict").images == "."


def test_home_lists_and_quotes_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-somebody")
    assert composed("dataset=folder", "dataset.root=~/data", "output=x").dataset.root == "/home-of-somebody/data"
    assert composed("dataset=folder", "dataset.unlabeled=[a,b]", "output=x").dataset.unlabeled == ["a", "b"]
    assert command_line(["dataset.root='as typed'", "images='*.jpg'"]) == ["dataset.root='as typed'", "images='*.jpg'"]
