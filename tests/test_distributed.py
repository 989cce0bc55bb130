"""Two processes with half of the pixels or images each: losses, bank and scores as in one process with all of them.

And as in two that divide the weights of student and teacher between them.
"""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import small_config
from faults import finish, record, start_ranks, tiny, train
from torch import nn

from pcr_seg import processes
from pcr_seg.method import IGNORE_INDEX, PrototypeBank
from pcr_seg.training.fit import check_numbers

NUM_CLASSES, NUM_PROTOTYPES, DIM = 4, 3, 8
QUIET = (
    "global_batch=4", "data.scale=[1,1]", "model.dropout=0", "method.cutmix_probability=0", "recipe.grid_cells=32",
    "trainer.max_epochs=2", "optimizer.lr=0.0003",
)  # fmt: skip


def make_bank() -> PrototypeBank:
    bank = PrototypeBank(NUM_CLASSES, NUM_PROTOTYPES, DIM, momentum=0.9)
    bank.prototypes = torch.rand(NUM_CLASSES, NUM_PROTOTYPES, DIM, generator=torch.Generator().manual_seed(0))
    return bank


def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Class 3 is seen by the second process alone, class 2 by nobody."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (101,), generator=generator)
    labels[70:80], labels[90:] = 3, IGNORE_INDEX
    return torch.rand(101, DIM, generator=generator), labels


def update_half(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    features, labels = pixels()
    bank = make_bank()
    share = slice(None, 60) if rank == 0 else slice(60, None)
    counts = bank.update(features[share], labels[share])
    torch.save({"prototypes": bank.prototypes, "counts": counts}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of the launcher, in the children
def test_two_ranks_update_like_one_process(tmp_path: Path) -> None:
    mp.spawn(update_half, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0]["prototypes"], ranks[1]["prototypes"])
    alone = make_bank()
    counts = alone.update(*pixels())
    assert torch.equal(ranks[0]["counts"], counts) and counts.sum() == 90
    torch.testing.assert_close(ranks[0]["prototypes"], alone.prototypes)
    assert torch.equal(alone.prototypes[2], make_bank().prototypes[2]), "nobody's class stays bit-equal"
    assert not torch.equal(alone.prototypes[3], make_bank().prototypes[3])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The records of one process with batches of four, and of two with batches of two.

    Without BatchNorm, dropout, CutMix, padding and jitter (a cell is a pixel) nothing is random but the views, which
    follow from the position in the stream. Prototypes start at random, not by k-means (`any_centers`).
    """
    root = tmp_path_factory.mktemp("ranks")
    alone, ranks = root / "alone", root / "ranks"
    alone.mkdir(), ranks.mkdir()
    assert train(tiny(root, alone / "run", *QUIET), root / "log", without_batchnorm, str(alone)) == 0
    logs = [root / "log0", root / "log1"]
    processes = start_ranks(tiny(root, ranks / "run", *QUIET), logs, without_batchnorm, str(ranks))
    assert [finish(process) for process in processes] == [0, 0]
    return alone, ranks


def without_batchnorm(folder: str) -> None:
    record(folder, normless=True)


@pytest.fixture(scope="module")
def divided(recorded: tuple[Path, Path]) -> Path:
    """The records of two processes that divide the weights, of every block of the backbone by itself."""
    folder = recorded[0].with_name("divided")
    folder.mkdir()
    logs = [folder / "log0", folder / "log1"]
    arguments = tiny(folder.parent, folder / "run", *QUIET, "trainer.strategy=fsdp")
    assert [finish(one) for one in start_ranks(arguments, logs, divided_in_blocks, str(folder))] == [0, 0]
    return folder


def divided_in_blocks(folder: str) -> None:
    processes.LEAST = 300
    without_batchnorm(folder)


def load(folder: Path, kind: str, step: int, rank: int = 0) -> dict:
    return torch.load(folder / f"{kind}_{step}_rank{rank}.pt", weights_only=True)


def test_ranks_share_one_bank_and_equal_one_process(recorded: tuple[Path, Path]) -> None:
    alone, ranks = recorded
    for step in range(1, 7):
        expected, (one, other) = load(alone, "step", step), (load(ranks, "step", step, rank) for rank in (0, 1))
        assert torch.equal(one["prototypes"], other["prototypes"]) and torch.equal(one["assigned"], other["assigned"])
        torch.testing.assert_close(one["prototypes"], expected["prototypes"], rtol=1e-3, atol=1e-4)
        for key in expected["losses"].keys() - {"gradient"}:
            mean = (one["losses"][key] + other["losses"][key]) / 2
            torch.testing.assert_close(mean, expected["losses"][key], rtol=1e-4, atol=1e-5)
        assert torch.equal(one["losses"]["gradient"], other["losses"]["gradient"])
        torch.testing.assert_close(one["losses"]["gradient"], expected["losses"]["gradient"], rtol=1e-3, atol=1e-5)
        for stream, names in enumerate(expected["names"]):
            halves = (one["names"][stream], other["names"][stream])
            assert [name for pair in zip(*halves, strict=True) for name in pair] == list(names)
    assert one["prototypes"].any(), "the last steps are semi-supervised"


def test_ranks_draw_their_own_random_numbers(recorded: tuple[Path, Path]) -> None:
    seeds = [load(recorded[1], "step", step, rank)["seed"] for step in range(1, 7) for rank in (0, 1)]
    assert len(set(seeds)) == 12


def test_every_validation_image_counts_once(recorded: tuple[Path, Path]) -> None:
    """Three images on two ranks."""
    alone, ranks = recorded
    for step in (3, 6):
        expected, (one, other) = load(alone, "validation", step), (load(ranks, "validation", step, r) for r in (0, 1))
        assert expected["matrix"].sum() == one["matrix"].sum() == other["matrix"].sum() == 3 * 48 * 48
        assert (one["own"][0], other["own"][0]) == (2 * 48 * 48, 48 * 48)
        assert one["scores"].keys() == expected["scores"].keys()
        for key, value in expected["scores"].items():
            assert one["scores"][key] == pytest.approx(value, abs=2e-3, nan_ok=True), key


def test_weights_that_rest_in_the_burn_in_learn_behind_it(tmp_path: Path) -> None:
    """A second linear head has no part in the losses of the first epoch, which two processes have to be told."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    arguments = tiny(tmp_path, tmp_path / "run", *QUIET, "method=ablation/second_head")
    assert [finish(one) for one in start_ranks(arguments, logs)] == [0, 0], logs[0].read_text()
    weights = checkpoint(tmp_path)["state_dict"]
    assert not torch.equal(weights["method.bank.head.weight"], weights["method.bank.averaged.weight"])


# ------------------------------------------------------------------------------- divided weights


def test_divided_weights_learn_as_whole_ones(recorded: tuple[Path, Path], divided: Path) -> None:
    for step in range(1, 7):
        for rank in (0, 1):
            expected, found = load(recorded[1], "step", step, rank), load(divided, "step", step, rank)
            assert found["names"] == expected["names"] and found["seed"] == expected["seed"]
            for key, value in expected["losses"].items():
                torch.testing.assert_close(found["losses"][key], value, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found["prototypes"], expected["prototypes"], rtol=1e-3, atol=1e-4)
        one, other = (load(divided, "step", step, rank) for rank in (0, 1))
        assert torch.equal(one["prototypes"], other["prototypes"]) and torch.equal(one["assigned"], other["assigned"])
    for step in (3, 6):  # of three images on two ranks, which one of them predicts alone
        one, other = (load(folder, "validation", step) for folder in (recorded[1], divided))
        assert one["scores"] == pytest.approx(other["scores"], abs=2e-3, nan_ok=True)


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / f"run/checkpoints/{name}.ckpt", weights_only=True)


def assert_close(found: dict, expected: dict) -> None:
    """Weights, buffers and the optimizer's state of two checkpoints."""
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-3, atol=1e-3, msg=name)
    [found], [expected] = found["optimizer_states"], expected["optimizer_states"]
    assert found["state"].keys() == expected["state"].keys()
    for place, values in expected["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(found["state"][place][key], value, rtol=1e-2, atol=1e-3)


def test_a_checkpoint_of_divided_weights_is_that_of_one_process(recorded: tuple[Path, Path], divided: Path) -> None:
    found, expected = checkpoint(divided), checkpoint(recorded[1])
    assert_close(found, expected)
    assert {key: found["pcr_seg"][key] for key in ("student", "method")} == {
        key: expected["pcr_seg"][key] for key in ("student", "method")
    }


def from_previous(run: Path, copy: Path) -> list[str]:
    """Arguments that go on with a copy of a run as it was before its last checkpoint."""
    shutil.copytree(run, copy)
    (copy / "checkpoints/previous.ckpt").rename(copy / "checkpoints/last.ckpt")
    (copy / "summary.json").unlink()
    return [f"resume={copy}", f"hydra.run.dir={copy}.hydra"]


def test_divided_weights_go_on_in_one_process_and_back(
    recorded: tuple[Path, Path], divided: Path, tmp_path: Path
) -> None:
    """Each goes on from the other's last but one checkpoint, and ends where the other ended."""
    assert checkpoint(divided, "previous")["global_step"] < 6
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert train(
        [*from_previous(divided / "run", one / "run"), "hardware=cpu"], tmp_path / "log", without_batchnorm, str(one)
    ) == 0, (tmp_path / "log").read_text()[-2000:]  # fmt: skip
    assert_close(checkpoint(one), checkpoint(recorded[0]))
    logs = [tmp_path / "log0", tmp_path / "log1"]
    arguments = [*from_previous(recorded[0] / "run", two / "run"), "trainer.strategy=fsdp"]
    assert [finish(p) for p in start_ranks(arguments, logs, divided_in_blocks, str(two))] == [0, 0], logs[0].read_text()
    assert_close(checkpoint(two), checkpoint(recorded[0]))


def test_what_divided_weights_cannot_is_refused(tmp_path: Path) -> None:
    for words, message in {
        ("trainer.precision=bf16-true",): "trainer.precision=bf16-true: .*; set 32-true, or bf16-mixed",
        ("trainer.precision=64-true",): "trainer.precision=64-true: .*; set 32-true, or bf16-mixed",
        ("trainer.precision=16-mixed", "trainer.strategy=fsdp"): "trainer.precision=16-mixed: not with divided",
        ("diagnosis=true", "trainer.strategy=fsdp"): "diagnosis=true: predicts in one process alone",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_numbers(small_config(tmp_path, *words))
    for words in (["trainer.precision=16-mixed"], ["trainer.precision=bf16-mixed", "trainer.strategy=fsdp"]):
        check_numbers(small_config(tmp_path, *words))
    network = nn.Sequential(nn.Linear(2, 2))
    network.scale = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"fsdp: Sequential has weights in no layer \(scale\); put them into"):
        processes.shard(network, None)
