"""The loaders' promises: the same images whoever reads them, on any number of ranks and workers."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runyard.config.schema import Config
from runyard.data.loading import loaders
from runyard.data.loading.batch import Batch, Normalize
from runyard.data.loading.ffcv_reader import BetonSource
from runyard.errors import UserError
from tests.support.loading import (
    CPU,
    FFCVS_OWN,
    SIZE,
    TEST,
    TRAIN,
    MakeConfig,
    joined,
    same,
    steps,
    write_beton,
)

DEVICES = [CPU, *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("reader", ["ffcv", "resident"])
def test_images_are_identical_at_1_2_and_8_workers(
    config: Config, prepared: Any, reader: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loaders, "MIN_IMAGES_PER_THREAD", 4)
    epochs = [joined(steps(replace(config, loader=reader, workers=n), prepared)) for n in (1, 2, 8)]
    assert same(epochs[0], epochs[1])
    assert same(epochs[0], epochs[2])


def test_draws_counted_by_place_in_the_work_instead_of_by_sample_would_be_noticed(
    config: Config, prepared: Any, monkeypatch: Any
) -> None:
    real = loaders.kernels.augment_batch
    monkeypatch.setattr(loaders, "MIN_IMAGES_PER_THREAD", 4)
    monkeypatch.setattr(
        loaders.kernels,
        "augment_batch",
        lambda images, rows, samples, *rest: real(images, rows, np.arange(len(samples)), *rest),
    )
    assert not same(*(joined(steps(replace(config, workers=n), prepared)) for n in (1, 8)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_joined_are_the_global_batch_at_world_size_1_2_and_4(
    config: Config, prepared: Any, accumulate: int
) -> None:
    config = replace(config, accumulate=accumulate)
    alone = joined(steps(config, prepared))
    for world_size in (2, 4):
        ranks = [steps(config, prepared, rank=rank, world_size=world_size) for rank in range(world_size)]
        together = [[joined([list(shares)]) for shares in zip(*step, strict=True)] for step in zip(*ranks, strict=True)]
        assert same(alone, joined(together))


@pytest.mark.parametrize("reader", ["ffcv", "resident"])
def test_a_start_in_mid_epoch_gives_the_rest_of_that_epoch(config: Config, prepared: Any, reader: str) -> None:
    config = replace(config, loader=reader)
    whole, rest = steps(config, prepared, epoch=3), steps(config, prepared, epoch=3, start=2)
    assert (len(whole), len(rest)) == (3, 1)
    assert same(joined(whole[2:]), joined(rest))


def test_the_three_readers_give_the_same_batches(config: Config, prepared: Any) -> None:
    three = [
        loaders.train_loader(replace(config, loader=name), *prepared, rank=0, world_size=1, device=CPU)
        for name in ("ffcv", "torch", "resident")
    ]
    for epoch, start in ((0, 0), (1, 1)):
        ffcv, torchs, resident = (joined(list(loader.epoch(epoch, start))) for loader in three)
        assert same(ffcv, resident)
        assert same(ffcv, torchs)
    for loader in three:
        loader.close()


def test_another_seed_or_epoch_gives_other_orders_and_other_images_of_a_sample(config: Config, prepared: Any) -> None:
    config = replace(config, batch_size=TRAIN)
    first = joined(steps(config, prepared))
    for other in (joined(steps(config, prepared, epoch=1)), joined(steps(replace(config, seed=12), prepared))):
        assert (first.indices != other.indices).float().mean() > 0.9
        a, b = first.images[first.indices.argsort()], other.images[other.indices.argsort()]
        assert (a != b).flatten(1).any(1).float().mean() > 0.99


def test_indices_and_labels_belong_to_the_images(config: Config, prepared: Any, make_config: MakeConfig) -> None:
    plain = replace(config, augment=make_config("augment=none").augment)
    manifest, folder = prepared
    stored, labels = np.load(folder / "train_images.npy"), np.load(folder / "train_labels.npy")
    for reader in ("ffcv", "resident"):
        batch = joined(steps(replace(plain, loader=reader), prepared))
        np.testing.assert_array_equal(batch.images, stored[batch.indices])
        np.testing.assert_array_equal(batch.labels, labels[batch.indices])
        few = loaders.sample_images(replace(plain, loader=reader), manifest, folder, "train", [5, 3])
        np.testing.assert_array_equal(few, stored[[5, 3]])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("reader", ["ffcv", "torch", "resident"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_shows_every_sample_once_at_any_world_size(
    config: Config, prepared: Any, reader: str, world_size: int, device: torch.device
) -> None:
    config, seen = replace(config, loader=reader), []
    for rank in range(world_size):
        seen += [
            Batch(*(t.cpu() for t in b))
            for b in loaders.evaluation_batches(
                config, *prepared, "test", rank=rank, world_size=world_size, device=device
            )
        ]
    every = joined([seen])
    np.testing.assert_array_equal(every.indices, np.arange(TEST))
    np.testing.assert_array_equal(every.images, np.load(prepared[1] / "test_images.npy"))
    np.testing.assert_array_equal(every.labels, np.load(prepared[1] / "test_labels.npy"))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("reader", ["ffcv", "resident"])
def test_batches_arrive_on_the_device_whole_and_stay_as_they_were(
    config: Config, prepared: Any, reader: str, device: torch.device
) -> None:
    config = replace(config, loader=reader, batch_size=20)
    loader = loaders.train_loader(config, *prepared, rank=0, world_size=1, device=device)
    kept = [(batch, batch.images.clone()) for step in loader.epoch(0) for batch in step]
    loader.close()
    reference = steps(replace(config, loader="ffcv"), prepared)
    assert len(kept) == loader.steps == 15
    for (batch, at_once), (wanted,) in zip(kept, reference, strict=True):
        assert (batch.images.device, batch.images.dtype) == (device, torch.uint8)
        assert torch.equal(batch.images, at_once)
        assert torch.equal(batch.indices.cpu(), wanted.indices)
        assert torch.equal(batch.labels.cpu(), wanted.labels)
        assert (batch.images.cpu().int() - wanted.images.int()).abs().max() <= 4  # exact but for resident on a GPU


def test_a_set_prepared_without_arrays_is_refused_by_the_readers_of_arrays(config: Config, prepared: Any) -> None:
    manifest, folder = prepared
    bare = replace(manifest, splits={"train": replace(manifest.splits["train"], images=None, labels=None)})
    with pytest.raises(UserError, match=r"loader=resident reads plain arrays.*data\.arrays=true"):
        loaders.train_loader(config, bare, folder, rank=0, world_size=1, device=CPU)


def ffcvs_own(path: Path, decoder: Any) -> np.ndarray:
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader, OrderOption

    threads = torch.get_num_threads()
    loader = Loader(
        str(path),
        50,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [decoder], "label": [IntDecoder()]},
    )
    images = np.concatenate([np.array(batch[0]) for batch in loader])
    torch.set_num_threads(threads)
    del loader
    gc.collect()
    return images


@pytest.mark.filterwarnings(FFCVS_OWN)
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_decoded_images_are_those_of_ffcvs_own_loader(tmp_path: Path, mode: str) -> None:
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, SimpleRGBImageDecoder

    rng = np.random.default_rng(0)
    square = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(9)]
    odd = [rng.integers(0, 256, (*rng.integers(12, 60, 2), 3), np.uint8) for _ in range(9)]
    for name, images, decoder in (
        ("square", square, SimpleRGBImageDecoder()),
        ("odd", odd, CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1)),
    ):
        path = tmp_path / f"{name}.beton"
        write_beton(path, images, np.arange(9), write_mode=mode)
        source = BetonSource(path, SIZE)
        got, rows = source.read(np.array([8, 0, 3]))
        np.testing.assert_array_equal(got[rows], ffcvs_own(path, decoder)[[8, 0, 3]])
        np.testing.assert_array_equal(source.labels, np.arange(9))


@pytest.mark.parametrize("place", ["header", "pixels"])
def test_a_damaged_jpeg_is_refused_by_name(tmp_path: Path, place: str) -> None:
    from runyard.data import beton

    rng = np.random.default_rng(0)
    path = tmp_path / "train.beton"
    images = [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(9)]
    write_beton(path, images, np.zeros(9), write_mode="jpg")
    content = beton.inspect_beton(path)
    with open(path, "r+b") as f:
        f.seek(int(content.pointers[7] + (0 if place == "header" else content.sizes[7] - 40)))
        f.write(bytes(40) if place == "header" else b"\xff\xd9" * 20)
    BetonSource(path, SIZE).read(np.arange(7))
    with pytest.raises(UserError, match=r"train\.beton: the JPEG data of sample 7 is damaged"):
        BetonSource(path, SIZE).read(np.array([3, 7]))


def test_default_workers_are_this_tasks_cpus_less_one(monkeypatch: Any) -> None:
    for threads, workers in ((16, 15), (2, 1), (1, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert loaders.default_workers() == workers


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_normalise_gives_channels_last_float_of_the_manifests_mean_and_deviation(device: torch.device) -> None:
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    got = Normalize(mean, std).to(device)(images)
    wanted = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean, device=device).view(3, 1, 1)) / torch.tensor(
        std, device=device
    ).view(3, 1, 1)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert not Normalize(mean, std).state_dict()
