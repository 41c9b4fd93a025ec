"""Preparation against dcm2niix, nibabel and MONAI's usual chain on the same files; its memory; two workers."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from data_prep.convert import converter
from data_prep.phantom.driver import simulate
from data_prep.prepare import prepare
from fm.config.phantom import PhantomConfig
from fm.config.prepare import Deface, PrepareConfig
from tests.benchmarks.archive_memory import make_archive, watch
from tests.benchmarks.measure import in_turns, table

STUDIES, ROUNDS = 32, 3
PACKAGES = ["monai", "nibabel", "dcm2niix", "blosc2", "pydicom", "distributed"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    simulate(folder, STUDIES, 0, PhantomConfig(), 2)
    return folder


class Ours:
    """``fm prepare``, from headers to verified shards, in a new folder each time."""

    def __init__(self, phantom: Path, folder: Path, workers: int) -> None:
        self.phantom, self.folder, self.workers = phantom, folder, workers
        self.volumes = 0

    def __call__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        config = PrepareConfig(deface=Deface.none, key_file=str(self.folder / "key" / "secret"))
        tables = (str(self.phantom / "reports.csv"), str(self.phantom / "labels.csv"))
        out = self.folder / "out"
        self.volumes = prepare(str(self.phantom / "dicom"), *tables, str(out), config, self.workers).volumes


class Peer:
    """dcm2niix on each series' folder, then MONAI: load, orient, space, scale, save."""

    def __init__(self, phantom: Path, folder: Path, spacing_mm: tuple[float, float, float] | None) -> None:
        from monai.transforms import (
            Compose,
            EnsureChannelFirst,
            LoadImage,
            Orientation,
            SaveImage,
            ScaleIntensity,
            Spacing,
        )

        self.series = sorted({path.parent for path in (phantom / "dicom").rglob("*.dcm")})
        self.folder, self.binary = folder, converter()
        self.volumes = 0
        spaced = [] if spacing_mm is None else [Spacing(spacing_mm, mode="bilinear")]
        save = SaveImage(folder / "saved", output_postfix="", separate_folder=False, print_log=False)
        self.chain = Compose(
            [
                LoadImage(reader="NibabelReader"),
                EnsureChannelFirst(),
                Orientation("RAS"),
                *spaced,
                ScaleIntensity(),
                save,
            ]
        )

    def __call__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.volumes = 0
        for number, series in enumerate(self.series):
            out = self.folder / "nifti" / str(number)
            out.mkdir(parents=True)
            command = [self.binary, "-b", "n", "-z", "n", "-f", f"{number}_%s", "-o", str(out), str(series)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for path in sorted(out.glob("*.nii")):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.chain(str(path))
                self.volumes += 1


def test_volumes_a_second(phantom: Path, tmp_path: Path) -> None:
    ours, two = Ours(phantom, tmp_path / "one", 1), Ours(phantom, tmp_path / "two", 2)
    plain, spaced = Peer(phantom, tmp_path / "plain", None), Peer(phantom, tmp_path / "spaced", (1.0, 1.0, 1.0))
    sides = {
        "fm prepare, one worker": ours,
        "fm prepare, two workers": two,
        "dcm2niix, nibabel, MONAI, 1 mm": spaced,
        "the same, spacing kept": plain,
    }
    spaced()  # imports, and the volumes that both sides must agree on
    ours()
    assert 0 < ours.volumes <= spaced.volumes, "localizers are left out by fm"
    timings = in_turns(sides, ROUNDS)
    own = timings["fm prepare, one worker"]
    rows = []
    for name, side in sides.items():
        found = timings[name]
        rate, cpu = side.volumes / found.cpu_median, ours.volumes / own.cpu_median
        rows.append([name, found.rate(side.volumes), f"{rate:.1f}", f"{cpu / rate:.2f} ×"])
    head = ["side", "volumes/s", "volumes per CPU second", "fm is faster, per CPU second"]
    table(f"Preparation of {STUDIES} studies, {ours.volumes} volumes", head, rows, PACKAGES)
    print(f"two workers: {own.median / timings['fm prepare, two workers'].median:.2f} × one")


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    rows = []
    for kind, studies in (("headers", 100), ("headers", 10_000), ("prepare", 100), ("prepare", 1_000)):
        archive, state = tmp_path / f"{studies}", tmp_path / f"{kind}-{studies}"
        make_archive(archive, studies)
        memory = watch([kind, str(archive), str(state), str(studies), "2"])
        rows.append([kind, f"{studies:,}", f"{memory.peak:.0f}", f"{memory.worker_peak:.0f}"])
    table("Most resident memory, MB", ["work", "studies", "main process", "a worker"], rows, PACKAGES)
