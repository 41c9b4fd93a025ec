"""Random crops a second from prepared shards, and from what others read; the same views, proved equal first.

Two tables. In one every side draws the crops with fm's code: a side differs only in how it comes to the voxels. In the
other each draws the same crops with its own operators. Others get the benefit of converting only the part of a volume
that the crop reads, and of noise that costs nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio
import webdataset
from monai.data import Dataset, PersistentDataset
from monai.transforms import LoadImaged
from torch.utils.data import DataLoader

from fm.batch import PackedTokens
from fm.config.data import DataConfig
from fm.data.collate import pack
from fm.data.index import Manifest
from fm.data.plan import plan_of
from fm.data.reader import build_loader
from fm.data.tokenizer import train_tokenizer
from fm.data.views import SeriesView, lattice_of
from tests.benchmarks.measure import memory_mb, steady, table
from tests.benchmarks.peer_views import FmViews, MonaiViews, TorchViews
from tests.benchmarks.volumes import bytes_of, write_all

VOLUMES, BATCH, ROUNDS, AGAIN, SEED, PATCH = 24, 8, 5, 8, 0, (4, 16, 16)
EPOCHS, WARM, STEPS = 8, 8, 16
"""Of 24 crops, 3 batches; batches before the clock starts, and those that are timed: whole fillings of torchio's queue,
all 8 batches of which it makes when the first is asked for."""
DATA = DataConfig(
    global_batch_size=BATCH,
    micro_batch_size=BATCH,
    spacing_mm=0.9,
    slice_spacing_mm=2.5,
    global_views=1,
    global_mm=86.0,
    local_views=0,
    spacing_jitter=0.0,
)
"""One crop of 86 mm a volume, 34×96×96 voxels, at the volume's own spacing, with gain, gamma, noise and offset."""
Pick = tuple[str, int]
Packs = Iterable[PackedTokens]


def collate(views: Sequence[SeriesView]) -> PackedTokens:
    return pack(views, range(len(views)), int(np.prod(PATCH)))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class Sides:
    """Every way to the same crops, over the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metas = write_all(folder, VOLUMES)
        self.manifest = Manifest.open(str(folder / "shards")).select(split="train")
        self.tokenizer = train_tokenizer([], 300, 1, 16)
        self.steps = VOLUMES // BATCH

    def views(self, kind: type[FmViews]) -> FmViews:
        return kind(metas=self.metas, data=DATA, lattice=lattice_of(DATA, PATCH), seed=SEED)

    def picks(self, epochs: int) -> list[Pick]:
        plan = plan_of(self.manifest, DATA, SEED)
        return [(self.manifest.key(p.row), p.visit) for k in range(epochs * self.steps) for p in plan.batch(k)]

    def ours(self, workers: int, epochs: int) -> Iterator[PackedTokens]:
        loader = build_loader(
            self.manifest,
            replace(DATA, workers=workers),
            PATCH,
            self.tokenizer,
            seed=SEED,
            rank=0,
            world_size=1,
            start_step=0,
            max_steps=epochs * self.steps,
        )
        return (batch.views["global_a"] for batch in loader)

    def monai(self, views: FmViews, workers: int, epochs: int) -> Packs:
        return self._dealt(Dataset(self._items(epochs), self._load()), views, workers)

    def monai_persistent(self, views: FmViews, workers: int, epochs: int) -> Packs:
        """Its cache holds the loaded volume; what is random comes after it."""
        dataset = _Cached(self._items(epochs), self._load(), cache_dir=self.folder / "persistent")
        return self._dealt(dataset, views, workers)

    def mapped_npy(self, views: FmViews, workers: int, epochs: int) -> Packs:
        folder = self.folder / "npy"
        items = [{"key": k, "visit": v, "image": folder / f"{k}.npy"} for k, v in self.picks(epochs)]
        return self._dealt(Dataset(items, _Mapped()), views, workers)

    def plain_webdataset(self, views: FmViews, workers: int, epochs: int) -> Packs:
        """Members ``.npy`` in shard order, decoded by webdataset; loader processes share the shards out."""
        shards = sorted(str(path) for path in (self.folder / "wds").iterdir())
        members = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
        pipeline = members.repeat(epochs).map(_Visited(views))
        return self._loader(pipeline, workers)

    def torchio_queue(self, views: FmViews, workers: int, epochs: int, samples: int) -> Packs:
        """Each volume is read once for `samples` crops, which wait in a queue."""
        subjects = [
            torchio.Subject(image=torchio.ScalarImage(item["image"]), key=item["key"], visit=item["visit"])
            for item in self._items(epochs)
        ]
        queue = torchio.Queue(
            torchio.SubjectsDataset(subjects),
            max_length=BATCH * samples,
            samples_per_volume=samples,
            sampler=_Windows(views),
            num_workers=workers,
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        return self._loader(queue, 0)

    def _items(self, epochs: int) -> list[dict[str, Any]]:
        return [
            {"key": key, "visit": visit, "image": str(self.folder / "nifti" / f"{key}.nii.gz")}
            for key, visit in self.picks(epochs)
        ]

    def _load(self) -> LoadImaged:
        return LoadImaged("image", reader="NibabelReader", image_only=True)

    def _dealt(self, dataset: Any, views: FmViews, workers: int) -> Packs:
        return self._loader(_Viewed(dataset, views), workers)

    def _loader(self, dataset: Any, workers: int) -> Packs:
        return DataLoader(
            dataset, batch_size=BATCH, collate_fn=collate, num_workers=workers, worker_init_fn=_one_thread
        )


class _Cached(PersistentDataset):  # type: ignore[misc]
    """Keeps one copy of a volume, whatever the visit."""

    def __init__(self, items: list[dict[str, Any]], transform: Any, cache_dir: Path) -> None:
        super().__init__([{"image": item["image"]} for item in items], transform, cache_dir=cache_dir)
        self.items = items

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**self.items[at], "image": super().__getitem__(at)["image"]}


class _Mapped:
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "image": np.load(item["image"], mmap_mode="r")}


class _Visited:
    """The view of a member, whose visits are counted as it comes again."""

    def __init__(self, views: FmViews) -> None:
        self.views = views
        self.seen: dict[str, int] = {}

    def __call__(self, sample: dict[str, Any]) -> SeriesView:
        key = sample["__key__"]
        self.seen[key] = self.seen.get(key, -1) + 1
        return self.views.view(key, self.seen[key], sample["npy"])


class _Windows(torchio.data.PatchSampler):  # type: ignore[misc]
    """The crops of a subject's visit and of those that follow."""

    def __init__(self, views: FmViews) -> None:
        super().__init__(1)
        self.views = views

    def __call__(self, subject: Any, num_patches: int | None = None) -> Iterator[SeriesView]:
        values, first = subject["image"].data[0], subject["visit"]
        visits = count(first) if num_patches is None else range(first, first + num_patches)
        return (self.views.view(subject["key"], visit, values) for visit in visits)


class _Viewed(torch.utils.data.Dataset[SeriesView]):
    def __init__(self, dataset: Any, views: FmViews) -> None:
        self.dataset, self.views = dataset, views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, at: int) -> SeriesView:
        item = self.dataset[at]
        return self.views.view(item["key"], item["visit"], item["image"])


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("loading"))


def _crops(packs: Packs) -> dict[bytes, torch.Tensor]:
    """Every crop's patches by its positions, which are its own: sides may bring crops in another order."""
    return {
        packed.position_T3[first:last].numpy().tobytes(): packed.patches_TP[first:last]
        for packed in packs
        for first, last in pairwise(packed.offsets_S1.tolist())
    }


Way = Callable[[int], Packs]
OURS = "fm, prepared shards"
BARS = ("", "20", "3", "10", "2", "2", "0.5")


def _ways(sides: Sides, workers: int, own: bool) -> dict[str, Way]:
    """Each side by the number of epochs it is to bring."""
    monai = sides.views(MonaiViews if own else FmViews)
    plain = sides.views(TorchViews if own else FmViews)
    return {
        OURS: lambda epochs: sides.ours(workers, epochs),
        "MONAI Dataset, .nii.gz": lambda epochs: sides.monai(monai, workers, epochs),
        "MONAI PersistentDataset": lambda epochs: sides.monai_persistent(monai, workers, epochs),
        "torchio Queue, one crop a volume": lambda epochs: sides.torchio_queue(plain, workers, epochs, 1),
        "torchio Queue, eight crops a volume": lambda epochs: sides.torchio_queue(plain, workers, 1, AGAIN),
        "webdataset, .npy members": lambda epochs: sides.plain_webdataset(plain, workers, epochs),
        "memory-mapped .npy": lambda epochs: sides.mapped_npy(plain, workers, epochs),
    }


def _prove_equal(ways: dict[str, Way], own: bool) -> None:
    want = _crops(ways[OURS](AGAIN))
    assert len(want) == AGAIN * VOLUMES
    for name, way in ways.items():
        found = _crops(way(1))
        assert len(found) == VOLUMES * (AGAIN if "eight" in name else 1) and set(found) <= set(want), name
        for place, patches in found.items():
            if own:
                torch.testing.assert_close(patches, want[place], atol=2e-4, rtol=0, msg=f"{name} brings other crops")
            else:
                assert torch.equal(patches, want[place]), f"{name} brings other crops"


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("workers", [0, 2])
def test_crops_a_second(sides: Sides, workers: int, own: bool) -> None:
    torch.set_num_threads(1)
    ways = _ways(sides, workers, own)
    _prove_equal(ways, own)
    times = steady({name: (lambda way=way: way(EPOCHS)) for name, way in ways.items()}, WARM, STEPS, ROUNDS)
    rows = [
        [
            name,
            timing.rate(BATCH * STEPS),
            f"{1e3 * timing.cpu_median / (BATCH * STEPS):.1f}",
            f"{timing.median / times[OURS].median:.2f} ×",
            f"{timing.cpu_median / times[OURS].cpu_median:.2f} ×",
            f"≥ {bar} ×" if bar else "",
        ]
        for (name, timing), bar in zip(times.items(), BARS, strict=True)
    ]
    head = ["side", "crops/s", "CPU ms a crop", "fm is faster by", "by CPU time", "bar"]
    packages = ["monai", "torchio", "nibabel", "webdataset", "blosc2", "torch"]
    whose = "each with its own operators" if own else "all with fm's view code"
    table(f"Crops of 86 mm from heads of 64×256×256, {workers} workers, {whose}", head, rows, packages)
    raw = bytes_of(sides.folder / "npy")
    for name in ("shards", "nifti"):
        print(f"bytes on disk, {name}: {bytes_of(sides.folder / name) / raw:.2f} of .npy")


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_stays_flat(sides: Sides, workers: int) -> None:
    """A thousand crops; mapped shards are the page cache's, so what no file backs is looked at apart."""
    packs, seen = iter(sides.ours(workers, 45)), []
    for _ in range(5):
        for _ in islice(packs, 25):
            pass
        seen.append(memory_mb())
    print(f"\nMB after 200, 400, … 1,000 crops, {workers} workers: resident {[round(r) for r, _ in seen]}, ", end="")
    print(f"of them backed by no file {[round(own) for _, own in seen]}")
    assert seen[-1][1] < 1.05 * seen[0][1] + 20
