"""Memory of a preparation while it works through an archive: headers of many studies, and whole studies.

``python -m tests.benchmarks.archive_memory FOLDER PICTURE [STUDIES PREPARED]`` makes the archive of small phantom
series in FOLDER, watches main process and workers, and draws the curves.
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import psutil
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.data_prep.conftest import slice_header

SLICES, ROWS = 3, 24
_NUMBER = "9990000000"
"""Stands for the study's number in UIDs and patient numbers of the template; ten digits, as what replaces it."""


@dataclass(slots=True)
class Memory:
    """Resident memory over time, MB."""

    seconds: list[float] = field(default_factory=list)
    main: list[float] = field(default_factory=list)
    workers: list[list[float]] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Most of the main process."""
        return max(self.main)

    @property
    def worker_peak(self) -> float:
        """Most of any worker."""
        return max((one for some in self.workers for one in some), default=0.0)


def make_archive(folder: Path, studies: int) -> None:
    """Studies of one series of small slices; where some stand already, the others are added."""
    templates = [_template(k) for k in range(SLICES)]
    for number in range(studies):
        place = folder / f"{number // 1000:04d}" / f"{number:08d}"
        if place.is_dir():
            continue
        place.mkdir(parents=True)
        for k, template in enumerate(templates):
            (place / f"{k}.dcm").write_bytes(template.replace(_NUMBER.encode(), f"1{number:09d}".encode()))


def _template(k: int) -> bytes:
    ds = slice_header()
    root = f"1.2.826.0.1.3680043.8.498.{_NUMBER}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = root, f"{root}.1", f"{root}.2"
    ds.PatientID, ds.AccessionNumber = f"P{_NUMBER}", f"A{_NUMBER}"
    ds.SOPInstanceUID, ds.InstanceNumber = f"{root}.1.{k + 1}", str(k + 1)
    ds.ImagePositionPatient = ["-20", "-20", str(5 * k)]
    ds.Rows = ds.Columns = ROWS
    r, c = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : ROWS * 1j]
    ds.PixelData = np.where(np.hypot(r, c) < 0.8, 500 + 200 * r + 10 * k, 5).astype("<u2").tobytes()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file, stream = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128), io.BytesIO()
    file.update(ds)
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def watch(words: Sequence[str], every_s: float = 0.25) -> Memory:
    """Run this module with these words and sample the memory of its process and of theirs."""
    memory, started = Memory(), time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "tests.benchmarks.archive_memory", *words]) as process:
        main = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = main.children(recursive=True)
                sizes = [one.memory_info().rss / 1e6 for one in (main, *family) if one.name() != "dcm2niix"]
            except psutil.NoSuchProcess:
                continue
            memory.seconds.append(time.monotonic() - started)
            memory.main.append(sizes[0])
            memory.workers.append(sizes[1:])
            time.sleep(every_s)
    assert process.returncode == 0
    return memory


def work(kind: str, folder: Path, state: Path, studies: int, workers: int) -> None:
    """In a process of its own: read all headers of an archive, or prepare it."""
    from data_prep.catalogue import Catalogue
    from data_prep.inventory import take_inventory
    from data_prep.keys import open_keyring
    from data_prep.pool import open_workers
    from data_prep.prepare import prepare
    from fm.config.prepare import Deface, PrepareConfig, Source

    config = PrepareConfig(deface=Deface.none, key_file=str(state / "key" / "secret"), shard_mib=1)
    if kind == "prepare":
        found = prepare(str(folder), None, None, str(state / "out"), config, workers).studies
    else:
        keyring = open_keyring(Path(config.key_file), str(state / "out"))
        catalogue = Catalogue(state / "key" / "headers.sqlite", "dicom", keyring)
        with open_workers(config, workers, state) as pool:
            inventory = take_inventory(str(folder), Source.dicom, state / "unpacked", catalogue, pool)
        found = len(inventory.studies)
    assert found == studies, f"{found} of {studies} studies"


def draw(headers: Memory, prepared: Memory, studies: int, made: int, picture: Path) -> None:
    """Two panels, one axis of memory: the headers of all studies, and the whole of some."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    titles = (f"Headers of {studies:,} studies", f"{made:,} studies prepared")
    for axis, memory, title in zip(axes, (headers, prepared), titles, strict=True):
        axis.plot(memory.seconds, memory.main, color="#1f5f8b", label="main process")
        most = [max(some, default=np.nan) for some in memory.workers]
        axis.plot(memory.seconds, most, color="#d1792c", label="largest worker")
        axis.set(title=title, xlabel="seconds", ylim=(0, None), xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("resident memory, MB")
    axes[0].legend(frameon=False, loc="lower right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)


def main(words: Sequence[str]) -> None:
    if words[0] in ("headers", "prepare"):
        work(words[0], Path(words[1]), Path(words[2]), int(words[3]), int(words[4]))
        return
    folder, picture = Path(words[0]), Path(words[1])
    studies, made = (int(words[2]), int(words[3])) if len(words) > 2 else (5000, 500)
    make_archive(folder / "many", studies)
    make_archive(folder / "some", made)
    found = []
    for kind, source, count in (("headers", "many", studies), ("prepare", "some", made)):
        state = folder / f"state-{kind}"
        found.append(watch([kind, str(folder / source), str(state), str(count), "2"]))
        print(
            f"{kind} of {count} studies: {found[-1].seconds[-1]:.0f} s, main process at most {found[-1].peak:.0f} MB, "
            f"a worker at most {found[-1].worker_peak:.0f} MB",
            flush=True,
        )
    draw(*found, studies, made, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
