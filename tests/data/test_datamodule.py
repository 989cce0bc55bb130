"""The streams of a training, image by image: which, in which order, and as which view."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from pcr_seg.data import sources, splits
from pcr_seg.data.cache import cache_folder, memory_mapped
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.files import Sample, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import classes_shown
from pcr_seg.data.streams import EVERY, LABELED, UNLABELED, StreamSampler, Views, indices_by_class, view_seed
from pcr_seg.pixels import normalize

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def make(source: Source, labeled: str | int = 4, **options) -> SegmentationData:
    """The generated set at 32 pixels: 4 labeled images, 12 unlabeled."""
    return SegmentationData(source, labeled, **{"crop_size": 32, "batch_size": 2, "num_workers": 0} | options)


def batches(loader: DataLoader, epoch: int) -> list[dict]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def names(loaded: list[dict]) -> list[str]:
    return [name for batch in loaded for name in batch["name"]]


def assert_equal(first: list[dict], second: list[dict]) -> None:
    """Bit-equal batches."""
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() and one["name"] == other["name"]
        assert all(torch.equal(one[key], other[key]) for key in one if key != "name")


def stream(epochs: int, size: int, length: int, *, seed: int = 0, kind: int = LABELED, **ranks: int) -> list[tuple]:
    sampler = StreamSampler(size, length, seed, kind, **ranks)
    samples = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        samples += sampler
    return samples


def repeat(source: Source, count: int) -> Source:
    """A source of `count` labeled images that are all the same file."""
    return replace(source, train=tuple(source.train[0]._replace(name=f"{i:04}") for i in range(count)), unlabeled=())


def write_list(path: Path, samples: tuple[Sample, ...]) -> str:
    path.write_text("\n".join(sample.name for sample in samples))
    return str(path)


@pytest.mark.parametrize(("size", "length"), [(5, 5), (5, 3), (5, 12), (7, 1), (1, 4), (100, 3)])
def test_each_pass_of_the_stream_visits_each_image_once(size: int, length: int) -> None:
    indices = [index for index, _ in stream(60 // length, size, length)]
    passes = [indices[i : i + size] for i in range(0, len(indices), size)]
    for visited in passes:
        assert len(set(visited)) == len(visited)
        assert set(visited) <= set(range(size))
    if size > 4 and len(passes) > 2:
        assert len(set(map(tuple, passes[:-1]))) > len(passes) / 2  # shuffled anew


def test_balanced_crops_show_rare_classes_as_often(tmp_path: Path) -> None:
    """One image in ten shows class 2, in a corner: a third of the labeled crops is cut around it."""
    size, crop = 60, 20
    labels = [np.zeros((size, size), np.uint8) for _ in range(10)]
    for mask in labels:
        mask[:, :30] = 1
    labels[7][:6, :6] = 2
    samples = []
    for index, mask in enumerate(labels):
        for kind, pixels in (("image", np.stack([mask] * 3, axis=-1)), ("mask", mask)):
            Image.fromarray(pixels).save(tmp_path / f"{kind}{index}.png")
        samples.append(Sample(str(index), tmp_path / f"image{index}.png", tmp_path / f"mask{index}.png"))
    showing = indices_by_class(classes_shown(samples, ""))
    assert showing == {0: [*range(10)], 1: [*range(10)], 2: [7]}
    views, shares = Views(tuple(samples), crop, (0.9, 1.1), 255), {}
    for name, table in (("usual", None), ("balanced", showing)):
        sampler = StreamSampler(10, 300, 0, LABELED, showing=table)
        sampler.set_epoch(2)
        assert list(sampler) == list(sampler)
        crops = [views[position] for position in sampler]
        shares[name] = sum(2 in crop["mask"] for crop in crops) / len(crops)
    assert shares["usual"] < 0.05 and 0.28 < shares["balanced"] < 0.4, shares


def test_an_epoch_continues_where_the_last_one_ended() -> None:
    assert stream(6, 5, 4) == stream(4, 5, 6) == stream(1, 5, 24)


@pytest.mark.parametrize(("size", "length"), [(5, 3), (4, 8), (1, 2), (9, 2)])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_positions_of_one_stream(size: int, length: int, world: int) -> None:
    shares = [stream(4, size, length, rank=rank, world=world) for rank in range(world)]
    assert [sample for step in zip(*shares, strict=True) for sample in step] == stream(4, size, length * world)


def test_stream_follows_from_seed_and_epoch() -> None:
    sampler = StreamSampler(6, 4, 0, LABELED)
    sampler.set_epoch(3)
    assert len(sampler) == 4
    assert list(sampler) == list(sampler) == stream(4, 6, 4)[12:]
    orders = [stream(1, 6, 6, seed=seed, kind=kind) for seed in (0, 1) for kind in (LABELED, UNLABELED)]
    assert len({tuple(index for index, _ in order) for order in orders}) == 4


def test_no_view_comes_twice() -> None:
    seeds = [
        seed for run in (0, 1) for kind in (LABELED, UNLABELED) for _, seed in stream(3, 6, 40, seed=run, kind=kind)
    ]
    seeds += [view_seed(run, EVERY, position) for run in (0, 1) for position in range(120)]
    assert len(set(seeds)) == len(seeds) == 720


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 6), ({"batch_size": 5}, 2), ({"batch_size": 7}, 2), ({"batch_size": 99}, 1), ({"steps_per_epoch": 9}, 9)],
)
def test_streams_have_equal_length(tiny_set: Source, options: dict, steps: int) -> None:
    data = make(tiny_set, **options)
    loaders = data.train_dataloader()
    assert {key: len(loader) for key, loader in loaders.items()} == {"labeled": steps, "unlabeled": steps}
    for loader in loaders.values():
        assert [len(batch["name"]) for batch in loader] == [data.batch_size] * steps


@pytest.mark.parametrize(("options", "count"), [({}, 6), ({"batch_size": 3}, 4), ({"steps_per_epoch": 5}, 10)])
def test_a_step_takes_as_many_batches_as_are_accumulated(tiny_set: Source, options: dict, count: int) -> None:
    data = make(tiny_set, **options)
    data.trainer = L.Trainer(accelerator="cpu", accumulate_grad_batches=2, **QUIET)
    assert [len(loader) for loader in data.train_dataloader().values()] == [count] * 2


def test_labeled_images_repeat_until_the_unlabeled_ones_have_passed(tiny_set: Source) -> None:
    data = make(tiny_set)
    loaders = data.train_dataloader()
    labeled, unlabeled = (Counter(names(batches(loaders[key], 0))) for key in ("labeled", "unlabeled"))
    assert labeled == {sample.name: 3 for sample in data.split.labeled}
    assert unlabeled == {sample.name: 1 for sample in data.split.unlabeled}
    assert len(unlabeled) == 12


def test_fewer_unlabeled_images_than_a_batch(tiny_set: Source) -> None:
    data = make(replace(tiny_set, unlabeled=()), 10, batch_size=5)
    loaders = data.train_dataloader()
    assert [len(loader) for loader in loaders.values()] == [1, 1]
    counts = Counter(names(batches(loaders["unlabeled"], 0) + batches(loaders["unlabeled"], 1)))
    assert counts == {sample.name: 5 for sample in data.split.unlabeled}


def test_what_a_batch_holds(tiny_set: Source) -> None:
    loaders = make(tiny_set).train_dataloader()
    (labeled, *_), (unlabeled, *_) = (batches(loaders[key], 0) for key in ("labeled", "unlabeled"))
    assert labeled.keys() == {"image", "mask", "name", "seed"}
    assert (labeled["image"].shape, labeled["image"].dtype) == ((2, 3, 32, 32), torch.uint8)
    assert (labeled["mask"].shape, labeled["mask"].dtype) == ((2, 32, 32), torch.uint8)
    assert set(labeled["mask"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert unlabeled.keys() == {"weak", "strong", "valid", "name", "seed"}
    assert unlabeled["weak"].shape == (2, 3, 32, 32)
    assert unlabeled["strong"].shape == (2, 1, 3, 32, 32)
    assert (unlabeled["valid"].shape, unlabeled["valid"].dtype) == ((2, 32, 32), torch.bool)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12's, as the test process has threads
@pytest.mark.parametrize("kind", ["labeled", "unlabeled"])
def test_workers_change_nothing(tiny_set: Source, kind: str) -> None:
    here, there = (
        make(tiny_set, strong_color=True, steps_per_epoch=2, num_workers=workers).train_dataloader()[kind]
        for workers in (0, 1)
    )
    for epoch in (0, 1, 5):
        assert_equal(batches(here, epoch), batches(there, epoch))


def test_a_restart_changes_nothing(tiny_set: Source) -> None:
    options = {"strong_color": True, "steps_per_epoch": 2}
    for kind in ("labeled", "unlabeled"):
        loader = make(tiny_set, **options).train_dataloader()[kind]
        epochs = [batches(loader, epoch) for epoch in (0, 1)]
        assert_equal(epochs[1], batches(make(tiny_set, **options).train_dataloader()[kind], 1))
        other = batches(make(tiny_set, 4, seed=1, **options).train_dataloader()[kind], 1)
        assert names(other) != names(epochs[1])


def test_trainer_goes_through_the_stream_epoch_by_epoch(tiny_set: Source) -> None:
    data, model, seen = make(tiny_set, steps_per_epoch=3), BoringModel(), []

    def training_step(batch: dict, batch_idx: int) -> Tensor:
        seen.append([batch["labeled"]["name"], batch["unlabeled"]["name"]])
        return model.layer(torch.zeros(1, 32)).sum()

    model.training_step = training_step
    limits = {"max_epochs": 3, "limit_val_batches": 0, "log_every_n_steps": 1}
    L.Trainer(accelerator="cpu", use_distributed_sampler=False, **limits, **QUIET).fit(model, datamodule=data)
    for column, (kind, samples) in enumerate(((LABELED, data.split.labeled), (UNLABELED, data.split.unlabeled))):
        expected = [samples[index].name for index, _ in stream(3, len(samples), 6, kind=kind)]
        assert [name for batch in seen for name in batch[column]] == expected


def on_rank(rank: int, data: SegmentationData, patch: pytest.MonkeyPatch) -> SegmentationData:
    """Attach a trainer that believes to be one of two processes; none is started."""
    patch.setenv("LOCAL_RANK", str(rank))
    patch.setattr(rank_zero_only, "rank", rank)  # the trainer sets it for the whole process; undone after the test
    data.trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", **QUIET)
    assert (data.trainer.global_rank, data.trainer.world_size) == (rank, 2)
    return data


@pytest.mark.parametrize("kind", ["labeled", "unlabeled"])
def test_two_ranks_equal_one_with_double_batch(tiny_set: Source, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [on_rank(rank, make(tiny_set), monkeypatch).train_dataloader()[kind] for rank in (0, 1)]
    whole = make(tiny_set, batch_size=4).train_dataloader()[kind]
    assert [len(loader) for loader in (*ranks, whole)] == [3, 3, 3]
    for epoch in (0, 1, 2):
        for one, other, both in zip(*(batches(loader, epoch) for loader in (*ranks, whole)), strict=True):
            for key in both.keys() - {"name"}:
                assert torch.equal(torch.stack([one[key], other[key]], dim=1).flatten(0, 1), both[key])


def test_ranks_validate_each_image_once(tiny_set: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [names(list(on_rank(rank, make(tiny_set), monkeypatch).val_dataloader())) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 1]
    assert sorted(shares[0] + shares[1]) == [sample.name for sample in tiny_set.val]


def test_validation_sees_whole_images(tiny_set: Source) -> None:
    loaded = list(make(tiny_set).val_dataloader())
    assert names(loaded) == [sample.name for sample in tiny_set.val]
    for batch, sample in zip(loaded, tiny_set.val, strict=True):
        assert (batch["image"][0].permute(1, 2, 0).numpy() == read_image(sample.image)).all()
        assert (batch["mask"][0].numpy() == read_mask(sample)).all()


def test_masks_of_unlabeled_images_are_never_opened(tiny_set: Source, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_set.train[0].image).parents[2], tmp_path / "set")
    source = sources.folder(tmp_path / "set")
    for sample in source.train[4:]:
        Path(sample.mask).write_bytes(b"not a mask")
    data = make(source, write_list(tmp_path / "labeled.txt", source.train[:4]))
    for loader in (*data.train_dataloader().values(), data.labeled_dataloader(), data.val_dataloader()):
        assert len(list(loader)) > 0
    Path(source.train[0].mask).write_bytes(b"not a mask")
    with pytest.raises(ValueError, match=str(source.train[0].mask)):
        list(data.train_dataloader()["labeled"])


def copy_of(tiny_set: Source, root: Path) -> Source:
    shutil.copytree(Path(tiny_set.train[0].image).parents[2], root)
    return sources.folder(root)


def test_a_file_that_turns_bad_is_named(tiny_set: Source, tmp_path: Path) -> None:
    data = make(copy_of(tiny_set, tmp_path / "set"))
    bad = Path(data.split.unlabeled[3].image)
    bad.write_bytes(bad.read_bytes()[:99])
    with pytest.raises(ValueError, match=rf"^{bad}: not readable as an image \(.*\); replace or remove it$"):
        list(data.train_dataloader()["unlabeled"])
    with pytest.raises(ValueError, match=r"data\.on_error=ignore: choose raise or skip"):
        make(tiny_set, on_error="ignore")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_skipped_counted_and_replaced_by_the_next(tiny_set, tmp_path, num_workers, recwarn) -> None:
    source = copy_of(tiny_set, tmp_path / "set")
    options = {"on_error": "skip", "max_skipped": 0.2, "num_workers": num_workers, "steps_per_epoch": 12}
    before = names(batches(make(source, **options).train_dataloader()["unlabeled"], 0))
    data = make(source, **options)
    first, second = data.split.unlabeled[4:6]
    Path(first.image).unlink()
    Path(second.image).write_bytes(b"")
    loader = data.train_dataloader()["unlabeled"]
    after = names(batches(loader, 0))
    instead = {sample.name: data.split.unlabeled[6].name for sample in (first, second)}
    assert set(instead) <= set(before)
    assert after == [instead.get(name, name) for name in before] == names(batches(loader, 0))
    assert int(loader.dataset.skipped.sum()) == 2
    if num_workers == 0:
        assert [str(w.message).partition(": ")[0] for w in recwarn] == [str(s.image) for s in (first, second)]
    Path(data.split.unlabeled[9].image).write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 12 files are bad by now, more than data\.max_skipped=0\.2 allows"):
        batches(loader, 0)


def test_balanced_crops_skip_masks_that_cannot_be_read(tiny_set: Source, tmp_path: Path) -> None:
    source = copy_of(tiny_set, tmp_path / "set")
    options = {"balanced_crops": True, "on_error": "skip", "max_skipped": 0.1}
    data = make(source, write_list(tmp_path / "ten.txt", source.train[:10]), **options)
    Path(source.train[3].mask).write_bytes(b"")
    showing = data.train_dataloader()["labeled"].sampler.showing
    assert set().union(*showing.values()) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    Path(source.train[4].mask).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"0003\.png: .*; 2 of 10 files are bad, more than data\.max_skipped=0\.1 allows"
    ):
        data.train_dataloader()
    data.on_error = "raise"
    with pytest.raises(ValueError, match=r"0003\.png: not readable as an image \(it is empty\); replace or remove it$"):
        data.train_dataloader()


def test_the_split_of_a_run_is_taken_as_it_was(tiny_set: Source, tmp_path: Path) -> None:
    source = copy_of(tiny_set, tmp_path / "set")
    data = make(source, 4, seed=3)
    splits.write(data.split, tmp_path / "run/splits")
    for name in ("images/train", "labels/train"):  # other data, another draw
        shutil.copy(next((tmp_path / "set" / name).iterdir()), tmp_path / "set" / name / "a_new_one.png")
    grown = sources.folder(tmp_path / "set")
    again = make(grown, 4, seed=4, split_from=tmp_path / "run/splits")
    assert (again.split.labeled, again.split.unlabeled) == (data.split.labeled, data.split.unlabeled)
    assert (again.split.origin, again.split.family) == ("drawn with seed 3", "drawn")
    assert "a_new_one" not in names_of(again.split) and "a_new_one" in names_of(make(grown, "full").split)
    splits.check(grown, again.split)


def names_of(split: splits.Split) -> set[str]:
    return {sample.name for sample in (*split.labeled, *split.unlabeled)}


def test_where_every_file_is_bad_the_search_ends(tiny_set: Source, tmp_path: Path) -> None:
    data = make(copy_of(tiny_set, tmp_path / "set"), on_error="skip", max_skipped=1.0)
    for sample in data.split.labeled:
        Path(sample.mask).unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="4 of 4 files are bad by now"):
        batches(data.train_dataloader()["labeled"], 0)


@pytest.mark.parametrize("strong_color", [False, True])
def test_valid_is_false_exactly_on_padding(tiny_set: Source, strong_color: bool) -> None:
    options = {"crop_size": 64, "scale": (1, 1), "strong_color": strong_color}
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:56, 8:56] = True  # the 48 pixels of the image
    for batch in batches(make(tiny_set, **options).train_dataloader()["unlabeled"], 0):
        assert (batch["valid"] == inside).all()
        assert normalize(batch["weak"])[..., ~inside].abs().max() < 0.01
    for batch in batches(make(tiny_set, **options).train_dataloader()["labeled"], 0):
        assert ((batch["mask"] != 255) == inside).all()


def test_pad_label_0_makes_padding_background(tiny_set: Source) -> None:
    loaders = make(tiny_set, crop_size=64, scale=(1, 1), pad_label=0).train_dataloader()
    assert all(batch["valid"].all() for batch in batches(loaders["unlabeled"], 0))
    for batch in batches(loaders["labeled"], 0):
        assert (batch["mask"][:, :8] == 0).all() and (batch["mask"] < 5).all()


def test_strong_equals_weak_unless_asked(tiny_set: Source) -> None:
    plain, colored = (
        batches(make(tiny_set, strong_color=strong_color).train_dataloader()["unlabeled"], 0)
        for strong_color in (False, True)
    )
    assert all(torch.equal(batch["weak"], batch["strong"][:, 0]) for batch in plain)
    assert any(not torch.equal(batch["weak"], batch["strong"][:, 0]) for batch in colored)
    for one, other in zip(plain, colored, strict=True):  # the color draws leave the geometry alone
        assert torch.equal(one["weak"], other["weak"]) and torch.equal(one["valid"], other["valid"])


def test_several_strong_views(tiny_set: Source) -> None:
    options = {"crop_size": 16, "batch_size": 6}
    plain, one, two = (
        batches(make(tiny_set, **options, **colors).train_dataloader()["unlabeled"], 0)
        for colors in ({"strong_views": 2}, {"strong_color": True}, {"strong_color": True, "strong_views": 2})
    )
    assert all(torch.equal(batch["strong"], batch["weak"][:, None].expand(-1, 2, -1, -1, -1)) for batch in plain)
    differ = 0
    for batch, first in zip(two, one, strict=True):
        assert batch["strong"].shape == (6, 2, 3, 16, 16)
        assert torch.equal(batch["strong"][:, 0], first["strong"][:, 0])  # a second view leaves the first alone
        differ += sum(not torch.equal(*views) for views in batch["strong"])
    assert differ >= 9  # of 12; either is in its own colors at times


def test_strong_shows_the_same_place_as_weak(tmp_path: Path) -> None:
    image, changed = np.full((60, 60, 3), 60, np.uint8), 0
    image[:30, :30] = 160  # a bright quarter on dark ground
    Image.fromarray(image).save(tmp_path / "corner.png")
    views = Views((Sample("corner", tmp_path / "corner.png"),), 120, (0.5, 2.0), 255, strong_color=True)
    for position in range(60):
        view = views[0, view_seed(0, UNLABELED, position)]
        weak, strong = (
            (gray - gray.min()) / (gray.max() - gray.min())  # 0 is dark, 1 is bright
            for gray in (shown.float().mean(dim=0)[view["valid"]] for shown in (view["weak"], view["strong"][0]))
        )
        clear = (weak - 0.5).abs() > 0.25  # a pixel on an edge may be either
        assert ((weak > 0.5) != (strong > 0.5))[clear].float().mean() < 0.02  # blur rounds the corner
        changed += not torch.equal(view["weak"], view["strong"][0])
    assert changed > 40


def draws(tmp_path: Path, count: int) -> Iterator[dict[str, float]]:
    """What was drawn for the views of one image, read from its ramps of red (columns) and green (rows)."""
    row, column = np.mgrid[:220, :220]
    Image.fromarray(np.stack([column, row, row * 0 + 60], axis=-1).astype(np.uint8)).save(tmp_path / "ramp.png")
    views = Views((Sample("ramp", tmp_path / "ramp.png"),), 96, (0.5, 2.0), 255, strong_color=True)
    for position in range(count):
        view = views[0, view_seed(0, UNLABELED, position)]
        red, green, _ = view["weak"].numpy().astype(float)
        scale = 95 / (green[-1, 0] - green[0, 0])
        room = 220 - 96 / scale  # where the crop can begin, in pixels of the image
        yield {
            "enlarged": float(scale > 1),
            "size in its half": scale - 1 if scale > 1 else 2 * scale - 1,
            "mirrored": float(red[0, 0] > red[0, -1]),
            "top": green.min() / room,
            "left": (220 - red.max() if red[0, 0] > red[0, -1] else red.min()) / room,
            "recolored": float(not torch.equal(view["weak"], view["strong"][0])),
        }


def test_the_draws_of_a_view_are_independent(tmp_path: Path) -> None:
    drawn = list(draws(tmp_path, 500))
    for first, second in combinations(drawn[0], 2):
        together = np.corrcoef(*([draw[key] for draw in drawn] for key in (first, second)))[0, 1]
        assert abs(together) < 0.18, f"{first} and {second}: correlation {together:.2f}"  # 4 standard deviations


def test_views_leave_the_global_random_state_alone(tiny_set: Source) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    views = make(tiny_set, strong_color=True).train_dataloader()["unlabeled"].dataset
    for seed in range(5):
        views[0, seed]
    assert before == (random.random(), np.random.random(), torch.rand(1).item())


def test_a_cache_changes_nothing_and_is_read_instead_of_the_files(tiny_set: Source, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_set.train[0].image).parents[2], tmp_path / "set")
    source = sources.folder(tmp_path / "set")
    plain = make(source).train_dataloader()
    cached = make(source, cache=str(tmp_path / "cache")).train_dataloader()
    for kind in ("labeled", "unlabeled"):
        expected = batches(plain[kind], 0)
        assert_equal(batches(cached[kind], 0), expected)
        assert_equal(batches(cached[kind], 0), expected)  # now from the cache
    files = set((tmp_path / "cache").iterdir())
    assert len(files) == 4 + 4 + 12 and all(file.suffix == ".npy" for file in files)  # images, masks, unlabeled images

    sample = source.train[0]
    memory_mapped(sample.image, lambda: pytest.fail("was read again"), tmp_path / "cache", sample)
    pixels = read_image(sample.image)[::-1]
    Image.fromarray(pixels).save(sample.image)
    os.utime(sample.image, ns=(0, 0))
    assert (memory_mapped(sample.image, lambda: read_image(sample.image), tmp_path / "cache", sample) == pixels).all()
    label_map = np.zeros(256, np.uint8)
    other = sample._replace(label_map=label_map)
    mapped = memory_mapped(sample.mask, lambda: read_mask(other), tmp_path / "cache", other)
    assert not mapped.any() and len(list((tmp_path / "cache").iterdir())) == len(files) + 2


def test_split_full_leaves_nothing_unlabeled(tiny_set: Source) -> None:
    source = replace(tiny_set, unlabeled=())
    with pytest.raises(ValueError, match=r"split=full.*method=supervised") as caught:
        make(source, "full")
    assert "\n" not in str(caught.value)
    loaders = make(source, "full", use_unlabeled=False).train_dataloader()
    assert loaders.keys() == {"labeled"}
    assert Counter(names(batches(loaders["labeled"], 0))) == {sample.name: 1 for sample in tiny_set.train}
    assert len(make(tiny_set, "full").train_dataloader()["unlabeled"]) == 2  # the four without masks


def test_supervised_training_takes_as_many_steps(tiny_set: Source) -> None:
    loaders = make(tiny_set, use_unlabeled=False).train_dataloader()
    assert {key: len(loader) for key, loader in loaders.items()} == {"labeled": 6}


@pytest.mark.parametrize(("count", "passes"), [(1, 4), (4, 4), (128, 4), (129, 3), (257, 1), (600, 1)])
def test_bank_sees_every_labeled_image_one_to_four_times(tiny_set: Source, count: int, passes: int) -> None:
    data = make(repeat(tiny_set, count), "full", use_unlabeled=False, batch_size=7)
    loaded = list(data.labeled_dataloader())
    expected = Counter({sample.name: passes for sample in data.split.labeled})
    if count * passes % 7 == 1:  # BatchNorm takes no statistics from a batch of one
        expected[data.split.labeled[-1].name] -= 1
    assert Counter(names(loaded)) == expected


def test_bank_is_deterministic_and_its_views_differ(tiny_set: Source) -> None:
    options = {"use_unlabeled": False, "crop_size": 16}
    first, second, other = (list(make(tiny_set, "full", seed=s, **options).labeled_dataloader()) for s in (0, 0, 1))
    assert_equal(first, second)
    views = {image.numpy().tobytes() for batch in first + other for image in batch["image"]}
    assert len(views) > 0.9 * 2 * 4 * len(tiny_set.train)  # two draws of the same crop may happen


@pytest.mark.parametrize("done", [0, 3, 7, 8])
def test_a_resumed_stream_goes_on_at_its_position(done: int) -> None:
    whole, resumed = (StreamSampler(5, 8, seed=1, stream=0, rank=1, world=2) for _ in range(2))
    resumed.resume(2, done)
    for epoch, skipped in ((2, done), (3, 0), (4, 0)):
        whole.set_epoch(epoch)
        if epoch > 2:  # the first epoch has begun before the trainer could say which it is
            resumed.set_epoch(epoch)
        assert list(resumed) == list(whole)[skipped:] and len(resumed) == 8


@pytest.mark.parametrize(
    ("size", "suffix", "kept"), [((64, 64), ".png", False), ((1024, 1024), ".png", True), ((1024, 1024), ".jpg", False)]
)
def test_pixels_of_large_slow_files_are_kept_by_default(tmp_path, monkeypatch, size, suffix, kept) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", size).save(tmp_path / f"a{suffix}")
    samples = [Sample("a", str(tmp_path / f"a{suffix}"))] * 20
    assert cache_folder("auto", samples) == (Path("runs/cache") if kept else None)
    assert cache_folder(None, samples) is None and cache_folder("x", samples) == Path("x")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2 * 20 * 4 * 1024**2 - 1))
    assert cache_folder("auto", samples) is None, "the disk has no room"
