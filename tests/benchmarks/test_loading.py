"""Random crops a second from prepared shards, and from what others read; the same views, proved equal first.

Every side draws the same crops with the same code: a side differs only in how it comes to the voxels. Others get the
benefit of converting only the part of a volume that the crop reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio
import webdataset
from monai.data import Dataset, PersistentDataset
from monai.transforms import Compose, Lambdad, LoadImaged
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fm.batch import PackedTokens
from fm.config.data import DataConfig
from fm.data.collate import pack
from fm.data.index import Manifest
from fm.data.plan import keyed_rng, plan_of
from fm.data.reader import build_loader
from fm.data.sample import SeriesMeta
from fm.data.tokenizer import train_tokenizer
from fm.data.views import SeriesView, crop, draw_view, draw_views, lattice_of, reach, retouch
from fm.data.volume import SeriesImage
from fm.grid import box_slices
from tests.benchmarks.measure import in_turns, table
from tests.benchmarks.volumes import bytes_of, write_all

VOLUMES, BATCH, ROUNDS, AGAIN, SEED, PATCH = 24, 8, 5, 8, 0, (4, 16, 16)
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
LATTICE = lattice_of(DATA, PATCH)
Pick = tuple[str, int]


class Others:
    """The view of (study, visit) from a whole volume, however it was read."""

    def __init__(self, metas: dict[str, SeriesMeta]) -> None:
        self.metas = metas

    def view(self, key: str, visit: int, values: NDArray[Any]) -> SeriesView:
        """Crop and augment as the reader does."""
        meta = self.metas[key]
        draw = draw_views(DATA, meta, ["global_a"], (SEED, "crop", visit, key, meta.name))["global_a"]
        needed = reach(meta, LATTICE, [draw])
        box = values[box_slices(meta.foreground)][box_slices(needed)]
        rng = keyed_rng(SEED, visit, key)
        rng.permutation(1)
        cropped = crop(self.image(meta, np.asarray(box).astype(np.uint16), needed[0]), LATTICE, draw)
        return retouch(cropped, draw_view(DATA, rng, local=False), rng)

    def image(self, meta: SeriesMeta, stored: NDArray[np.uint16], start: tuple[int, int, int]) -> SeriesImage:
        """The part of the foreground grid that begins at `start`."""
        origin, stop = (np.array(edge) for edge in meta.foreground)
        affine = np.array(meta.affine, dtype=np.float64)
        centre = affine[:3, :3] @ ((origin + stop - 1) / 2) + affine[:3, 3]
        affine[:3, 3] += affine[:3, :3] @ origin
        size = tuple(int(n) for n in stop - origin)
        return SeriesImage(
            stored=stored,
            scale=meta.intensity_scale,
            offset=meta.intensity_offset,
            affine=affine,
            spacing_mm=meta.spacing_mm,
            foreground=((0, 0, 0), (size[0], size[1], size[2])),
            centre_mm=centre,
            low=meta.intensity_low,
            high=meta.intensity_high,
            contrast=meta.contrast,
            plane=meta.plane,
            agent=meta.agent,
            start=start,
            slice_valid=np.ones(size[0], dtype=bool),
        )


def collate(views: Sequence[SeriesView]) -> PackedTokens:
    return pack(views, range(len(views)), int(np.prod(PATCH)))


class Sides:
    """Every way to the same crops, over the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metas = write_all(folder, VOLUMES)
        self.others = Others(self.metas)
        self.manifest = Manifest.open(str(folder / "shards")).select(split="train")
        self.tokenizer = train_tokenizer([], 300, 1, 16)
        self.steps = VOLUMES // BATCH

    def picks(self, epoch: int = 0) -> list[Pick]:
        plan = plan_of(self.manifest, DATA, SEED)
        steps = range(epoch * self.steps, (epoch + 1) * self.steps)
        return [(self.manifest.key(pick.row), pick.visit) for k in steps for pick in plan.batch(k)]

    def ours(self, workers: int, epoch: int = 0) -> Iterator[PackedTokens]:
        data = DataConfig(**{name: getattr(DATA, name) for name in DATA.__slots__} | {"workers": workers})
        where = {"seed": SEED, "rank": 0, "world_size": 1, "start_step": epoch * self.steps}
        loader = build_loader(
            self.manifest,
            data,
            PATCH,
            self.tokenizer,
            max_steps=(epoch + 1) * self.steps,
            **where,  # type: ignore[arg-type]
        )
        return (batch.views["global_a"] for batch in loader)

    def monai(self, workers: int) -> Iterable[PackedTokens]:
        transform = Compose([self._load(), Lambdad("image", lambda image: image.numpy())])
        return self._dealt(Dataset(self._items(), transform), workers)

    def monai_persistent(self, workers: int) -> Iterable[PackedTokens]:
        """Its cache holds the loaded volume; what is random comes after it."""
        dataset = PersistentDataset(self._items(), Compose([self._load()]), cache_dir=self.folder / "persistent")
        return self._dealt(dataset, workers)

    def mapped_npy(self, workers: int) -> Iterable[PackedTokens]:
        folder = self.folder / "npy"
        items = [{"key": k, "visit": v, "image": folder / f"{k}.npy"} for k, v in self.picks()]
        return self._dealt(Dataset(items, _Mapped()), workers)

    def plain_webdataset(self, workers: int) -> Iterable[PackedTokens]:
        """Members ``.npy`` in shard order, decoded by webdataset; the picks' visits are all those of one epoch."""
        pipeline = (
            webdataset.WebDataset(str(self.folder / "wds" / "plain-000000.tar"), shardshuffle=False, empty_check=False)
            .decode()
            .map(lambda sample: self.others.view(sample["__key__"], 0, sample["npy"]))
        )
        return DataLoader(pipeline, batch_size=BATCH, collate_fn=collate, num_workers=min(workers, 1))

    def torchio_queue(self, workers: int, samples: int) -> Iterable[PackedTokens]:
        """Each volume is read once for `samples` crops, which wait in a queue."""
        subjects = [
            torchio.Subject(image=torchio.ScalarImage(item["image"]), key=item["key"]) for item in self._items()
        ]
        queue = torchio.Queue(
            torchio.SubjectsDataset(subjects),
            max_length=BATCH * samples,
            samples_per_volume=samples,
            sampler=_Windows(self.others),
            num_workers=workers,
            shuffle_subjects=False,
            shuffle_patches=False,
        )
        return DataLoader(queue, batch_size=BATCH, collate_fn=collate, num_workers=0)

    def _items(self) -> list[dict[str, Any]]:
        return [
            {"key": key, "visit": visit, "image": str(self.folder / "nifti" / f"{key}.nii.gz")}
            for key, visit in self.picks()
        ]

    def _load(self) -> LoadImaged:
        return LoadImaged("image", reader="NibabelReader", image_only=True)

    def _dealt(self, dataset: Any, workers: int) -> Iterable[PackedTokens]:
        views = _Viewed(dataset, self.others)
        return DataLoader(views, batch_size=BATCH, collate_fn=collate, num_workers=workers)


class _Mapped:
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "image": np.load(item["image"], mmap_mode="r")}


class _Windows(torchio.data.PatchSampler):  # type: ignore[misc]
    """The crops of a subject's first visits."""

    def __init__(self, others: Others) -> None:
        super().__init__(1)
        self.others = others

    def __call__(self, subject: Any, num_patches: int | None = None) -> Iterator[SeriesView]:
        values = subject["image"].data[0].numpy()
        visits = count() if num_patches is None else range(num_patches)
        return (self.others.view(subject["key"], visit, values) for visit in visits)


class _Viewed(torch.utils.data.Dataset[SeriesView]):
    def __init__(self, dataset: Any, others: Others) -> None:
        self.dataset, self.others = dataset, others

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, at: int) -> SeriesView:
        item = self.dataset[at]
        return self.others.view(item["key"], item["visit"], np.asarray(item["image"]))


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("loading"))


def _bytes(packs: Iterable[PackedTokens]) -> list[bytes]:
    """Every crop's patches and positions, sorted: sides may bring them in another order."""
    found = []
    for packed in packs:
        for first, last in pairwise(packed.offsets_S1.tolist()):
            parts = (packed.patches_TP[first:last], packed.position_T3[first:last])
            found.append(b"".join(part.numpy().tobytes() for part in parts))
    return sorted(found)


def _consume(packs: Iterable[PackedTokens]) -> None:
    for _ in packs:
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_a_second(sides: Sides, workers: int) -> None:
    torch.set_num_threads(1)
    ways: dict[str, Callable[[], Iterable[PackedTokens]]] = {
        "fm, prepared shards": lambda: sides.ours(workers),
        "MONAI Dataset, .nii.gz": lambda: sides.monai(workers),
        "MONAI PersistentDataset": lambda: sides.monai_persistent(workers),
        "torchio Queue, one crop a volume": lambda: sides.torchio_queue(workers, 1),
        "torchio Queue, eight crops a volume": lambda: sides.torchio_queue(workers, AGAIN),
        "webdataset, .npy members": lambda: sides.plain_webdataset(workers),
        "memory-mapped .npy": lambda: sides.mapped_npy(workers),
    }
    bars = dict(zip(ways, ("", "20", "3", "10", "2", "2", "0.5"), strict=True))
    want = _bytes(sides.ours(workers))
    again = _bytes(packed for epoch in range(AGAIN) for packed in sides.ours(workers, epoch))
    assert len(want) == VOLUMES and len(set(again)) == AGAIN * VOLUMES and set(want) < set(again)
    for name, way in ways.items():
        assert _bytes(way()) == (again if "eight" in name else want), f"{name} brings other crops"
    times = in_turns({name: (lambda way=way: _consume(way())) for name, way in ways.items()}, ROUNDS)
    crops = {name: VOLUMES * (AGAIN if "eight" in name else 1) for name in ways}
    wall = {name: timing.median / crops[name] for name, timing in times.items()}
    cpu = {name: timing.cpu_median / crops[name] for name, timing in times.items()}
    ours = "fm, prepared shards"
    rows = [
        [
            name,
            timing.rate(crops[name]),
            f"{1e3 * cpu[name]:.1f}",
            f"{wall[name] / wall[ours]:.2f} ×",
            f"{cpu[name] / cpu[ours]:.2f} ×",
            f"≥ {bars[name]} ×" if bars[name] else "",
        ]
        for name, timing in times.items()
    ]
    head = ["side", "crops/s", "CPU ms a crop", "fm is faster by", "by CPU time", "bar"]
    packages = ["monai", "torchio", "nibabel", "webdataset", "blosc2", "torch"]
    table(f"Crops of 86 mm from heads of 64×256×256, {workers} workers", head, rows, packages)
    raw = bytes_of(sides.folder / "npy")
    for name in ("shards", "nifti"):
        print(f"bytes on disk, {name}: {bytes_of(sides.folder / name) / raw:.2f} of .npy")
