"""Reading and writing of checkpoint files, and what a resumed run may bring along."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import composed, small_config
from faults import train
from omegaconf import OmegaConf

from pcr_seg.checkpoint import LAST, read_checkpoint
from pcr_seg.training import fit as run
from pcr_seg.training.checkpoints import BEST, PREVIOUS, AtomicCheckpointIO, newest_checkpoint
from pcr_seg.training.resume import change


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    run.fit(small_config(root, "checkpoints.every_n_steps=1"))
    return root / "run"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run as a kill before its end leaves it: a moved run folder, too."""
    copy = Path(shutil.copytree(trained, tmp_path / "moved"))
    (copy / "summary.json").unlink()
    return copy


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_weights(file: Path) -> None:
    torch.save({"state_dict": {}}, file)


class Attack:
    def __reduce__(self) -> tuple:
        return print, ("code of a stranger ran",)


def replace_by_attack(file: Path) -> None:
    torch.save({"pcr_seg": Attack()}, file)


DAMAGES = [flip_a_byte, cut, empty, replace_by_weights, replace_by_attack]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_falls_back_to_the_previous(folder: Path, damage, capsys: pytest.CaptureFixture) -> None:
    damage(folder / "checkpoints" / LAST)
    run.fit(small_config(folder, f"resume={folder}"))
    lines = capsys.readouterr().out
    assert lines.count("warning:") == 1 and "last.ckpt: not a complete checkpoint of this project; continuing" in lines
    assert "code of a stranger" not in lines
    contents = [read_checkpoint(folder / "checkpoints" / name) for name in (LAST, PREVIOUS)]
    assert contents[0]["global_step"] == 4, "the damaged file has not become the previous one"


def test_all_damaged_is_one_line(folder: Path) -> None:
    for name in (LAST, PREVIOUS):
        cut(folder / "checkpoints" / name)
    with pytest.raises(ValueError, match=r"previous\.ckpt: not a complete checkpoint of this project$"):
        run.fit(small_config(folder, f"resume={folder}"))


def test_a_write_that_fails_leaves_the_old_files(folder: Path) -> None:
    target = folder / "checkpoints" / LAST
    before = target.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"pickle|lambda"):
        AtomicCheckpointIO().save_checkpoint({"not": lambda: None}, target)
    assert target.read_bytes() == before


def test_the_previous_one_is_kept_of_the_last_only(tmp_path: Path) -> None:
    for step in range(3):
        for name in (LAST, BEST):
            AtomicCheckpointIO().save_checkpoint({"step": step}, tmp_path / name)
    steps = {path.name: torch.load(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {LAST: 2, PREVIOUS: 1, BEST: 2}


@pytest.mark.parametrize("links", [True, False])
def test_the_last_one_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A kill between the two renames leaves it, unless the file system has no hard links: then the previous one."""
    AtomicCheckpointIO().save_checkpoint({"step": 0}, tmp_path / LAST)
    if not links:
        monkeypatch.setattr("os.link", lambda *names: (tmp_path / "no links").read_bytes())
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == LAST:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", killed)
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / LAST)
    assert (tmp_path / LAST).is_file() == links and torch.load(tmp_path / (LAST if links else PREVIOUS))["step"] == 0
    AtomicCheckpointIO().save_checkpoint({"step": 2}, tmp_path / LAST)
    assert torch.load(tmp_path / LAST)["step"] == 2 and torch.load(tmp_path / PREVIOUS)["step"] == 0
    assert not (tmp_path / "previous.link").exists()


def test_a_checkpoint_holds_tensors_and_plain_values(trained: Path) -> None:
    pending = [torch.load(trained / "checkpoints" / LAST, weights_only=True)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
        else:
            assert value is None or isinstance(value, torch.Tensor | str | int | float | bool), type(value)


def test_a_moved_run_folder_goes_on_where_it_is(trained: Path, folder: Path) -> None:
    before = {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()}
    shutil.copy(folder / "checkpoints" / PREVIOUS, folder / "checkpoints" / LAST)
    (folder / "metrics.csv").unlink()
    run.fit(small_config(folder, f"resume={folder}"))
    assert {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()} == before
    assert (folder / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()
    assert OmegaConf.load(folder / "config.yaml").output == str(folder)


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(trained: Path, folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    assert newest_checkpoint(folder / "checkpoints") is None
    run.fit(small_config(folder, f"resume={folder}"))
    assert (folder / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def test_a_run_without_loggers_goes_on(tmp_path: Path) -> None:
    arguments = ["logger=none", "checkpoints.every_n_steps=1"]
    run.fit(small_config(tmp_path, *arguments))
    expected = read_checkpoint(tmp_path / "run/checkpoints" / LAST)["state_dict"]
    (tmp_path / "run/checkpoints" / LAST).unlink()
    (tmp_path / "run/summary.json").unlink()
    run.fit(small_config(tmp_path, f"resume={tmp_path}/run"))
    found = read_checkpoint(tmp_path / "run/checkpoints" / LAST)["state_dict"]
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("key", ["logger.csv", "data", "trainer", "checkpoints"])
def test_a_strangers_run_folder_runs_no_code(folder: Path, key: str) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(config, f"{key}._target_", "os.system")
    OmegaConf.save(config, folder / "config.yaml")
    with pytest.raises(ValueError, match=r"moved: names os\.system, which is not this project's code; refused"):
        run.fit(small_config(folder, f"resume={folder}"))


def test_a_strangers_references_compute_nothing(folder: Path) -> None:
    """They would be resolved after the look at what the nodes name."""
    config = (folder / "config.yaml").read_text()
    evil = "protocol: ${oc.create:{_target_:os.system,command:true}}\n"
    (folder / "config.yaml").write_text(re.sub(r"(?m)^protocol:\n(  .*\n)+", evil, config))
    assert evil in (folder / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"config\.yaml holds references, which a run does not write; refused"):
        run.fit(small_config(folder, f"resume={folder}"))


def test_a_run_folder_writes_nowhere_else(folder: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    for key in ("output", "logger.csv.save_dir", "trainer.default_root_dir", "checkpoints.folder"):
        OmegaConf.update(config, key, str(tmp_path / "elsewhere"))
    OmegaConf.save(config, folder / "config.yaml")
    run.fit(small_config(folder, f"resume={folder}"))
    assert not (tmp_path / "elsewhere").exists()


def test_overrides_beside_resume_are_not_dropped(trained: Path, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    other = [f"resume={folder}", f"hydra.run.dir={tmp_path}/hydra"]
    assert train([*other, "method.threshold=0.5", "seed=3"], log) == 1
    assert "method.threshold, seed cannot change in a run" in log.read_text().splitlines()[-1]
    assert train([*other, "hardware=cpu", "data.num_workers=1"], log) == 0
    config = OmegaConf.load(folder / "config.yaml")
    assert config.data.num_workers == 1 and config.method.threshold == 0.6 and config.trainer.accelerator == "cpu"


def test_hardware_that_is_not_typed_stays(folder: Path) -> None:
    run, cfg = OmegaConf.load(folder / "config.yaml"), composed()
    run.trainer.update({"precision": "bf16-mixed", "accelerator": "cpu", "strategy": "ddp", "sync_batchnorm": True})
    before = run.copy()
    cfg.trainer.devices, cfg.most_per_device = 2, 1
    change(run, cfg, ["resume=x", "trainer.devices=2", "most_per_device=1"])
    before.trainer.update({"devices": 2, "accumulate_grad_batches": before.global_batch // 2})
    assert run.trainer == before.trainer
    assert (run.data.batch_size, run.most_per_device) == (1, 1)
    change(run, composed("hardware=cpu"), ["hardware=cpu"])
    assert (run.trainer.precision, run.trainer.strategy) == ("32-true", "auto") and "sync_batchnorm" not in run.trainer
