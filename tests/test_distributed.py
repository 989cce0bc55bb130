"""Two processes with half of the pixels each: the bank moves as in one process with all of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pcr_seg.method import IGNORE_INDEX, PrototypeBank

NUM_CLASSES, NUM_PROTOTYPES, DIM = 4, 3, 8


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
