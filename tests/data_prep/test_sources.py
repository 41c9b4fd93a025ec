"""Inputs other than a plain folder: zip archives and DICOMDIR; row 17 of the fault battery for archives."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from data_prep.ledger import Reason, Rule
from data_prep.prepare import prepare
from data_prep.sources import Found, find_files, private_folder
from data_prep.summary import PrepareSummary
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.verify import verify

from .conftest import MakeSeries, head

Prepare = Callable[..., PrepareSummary]


@pytest.fixture
def run(tmp_path: Path) -> Prepare:
    """Prepare an input with the key of this test."""

    def prepare_input(source: Path, out: str) -> PrepareSummary:
        return prepare(
            str(source),
            None,
            None,
            str(tmp_path / out),
            PrepareConfig(deface=Deface.none, key_file=str(tmp_path / "key")),
            1,
        )

    return prepare_input


def zipped(target: Path, files: list[Path], root: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(root))
    return target


def found(source: Path, scratch: Path) -> list[Found]:
    return list(find_files(str(source), scratch))


def test_a_zip_archive_gives_the_dataset_of_its_folder(make_series: MakeSeries, tmp_path: Path, run: Prepare) -> None:
    files = make_series() + make_series(folder="in/b", study="b", patient="Q1", volume=head(seed=3))
    plain = run(tmp_path / "in", "plain")
    archive = zipped(tmp_path / "all.zip", files, tmp_path)
    packed = run(archive, "packed")
    assert (packed.files, packed.used, packed.excluded) == (13, 12, {"archive": 1})
    assert packed.dataset_id == plain.dataset_id
    (tmp_path / "mixed").mkdir()
    shutil.move(tmp_path / "in" / "b", tmp_path / "mixed" / "b")
    shutil.move(zipped(tmp_path / "a.ZIP", files[:6], tmp_path), tmp_path / "mixed" / "a.ZIP")
    mixed = run(tmp_path / "mixed", "mixed-out")
    assert (mixed.files, mixed.used, mixed.dataset_id) == (13, 12, plain.dataset_id)
    assert not list(tmp_path.glob("key-unpacked*")), "nothing unpacked stays"
    assert run(archive, "packed") == packed, "unpacked again, it is the same input"


def test_members_are_written_under_numbers_in_a_private_folder(make_series: MakeSeries, tmp_path: Path) -> None:
    source = make_series()[0]
    archive = tmp_path / "OKONKWO.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("../../escaped.dcm", "/absolute.dcm", "OKONKWO^ADAEZE/a.dcm", "a.exe"):
            out.writestr(name, source.read_bytes())
    with private_folder(tmp_path / "scratch") as scratch:
        whole, *members = found(archive, scratch)
        assert whole.problem is Rule.ARCHIVE
        assert [os.path.relpath(member.path, scratch) for member in members] == [
            "000000/000000.dcm",
            "000000/000001.dcm",
            "000000/000002.dcm",
            "000000/000003",
        ]
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        assert members[2].name == "OKONKWO.zip!/OKONKWO^ADAEZE/a.dcm"
    assert not scratch.exists()
    assert not (tmp_path.parent / "escaped.dcm").exists()


def test_row_17_bombs_and_damage_in_archives(make_series: MakeSeries, tmp_path: Path) -> None:
    good = make_series()[0]
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.write(good, "good.dcm")
        with out.open("bomb.dcm", "w") as member:
            for _ in range(80):
                member.write(bytes(2**20))
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(link, "/etc/passwd")
        out.writestr("crc.dcm", b"DICM" * 4000, zipfile.ZIP_STORED)
        out.writestr("locked.dcm", b"locked", zipfile.ZIP_STORED)
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"DICMDICM") + 9] ^= 1
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 8] |= 1  # the flag of an encrypted member
    archive.write_bytes(raw)
    assert archive.stat().st_size < 2**20
    with private_folder(tmp_path / "scratch") as scratch:
        problems = {item.name.rpartition("/")[2]: item.problem for item in found(archive, scratch)}
        assert problems == {
            "bad.zip": Rule.ARCHIVE,
            "good.dcm": None,
            "bomb.dcm": Reason.TOO_LARGE,
            "link.dcm": Rule.NOT_A_FILE,
            "crc.dcm": Reason.BAD_ARCHIVE,
            "locked.dcm": Reason.ENCRYPTED,
        }
        assert sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()) < 2**20


def test_row_17_a_member_that_lies_about_its_size(make_series: MakeSeries, tmp_path: Path) -> None:
    archive = tmp_path / "lie.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.dcm", bytes(2**22))
    raw = bytearray(archive.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    archive.write_bytes(raw)
    with private_folder(tmp_path / "scratch") as scratch:
        _, member = found(archive, scratch)
        assert member.problem is Reason.BAD_ARCHIVE
        assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_an_archive_that_is_none_is_quarantined_beside_the_rest(
    make_series: MakeSeries, tmp_path: Path, run: Prepare
) -> None:
    make_series()
    (tmp_path / "in" / "torn.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    summary = run(tmp_path / "in", "out")
    assert (summary.used, summary.quarantined, summary.files) == (6, {"bad_archive": 1}, 7)


@pytest.fixture
def disc(make_series: MakeSeries, tmp_path: Path) -> Path:
    """A disc with DICOMDIR, as pydicom writes one, and a file that it does not list."""
    fileset = FileSet()
    for path in make_series() + make_series(folder="in/b", series="b", SeriesNumber="4", EchoTime="90"):
        ds = pydicom.dcmread(path)
        ds.StudyTime, ds.StudyID = "101010", "1"
        fileset.add(ds)
    fileset.write(tmp_path / "disc")
    shutil.copy(make_series(folder="in/c", study="unlisted")[0], tmp_path / "disc" / "UNLISTED")
    return tmp_path / "disc"


def test_a_dicomdir_gives_the_files_it_lists(disc: Path, run: Prepare) -> None:
    listed = run(disc / "DICOMDIR", "listed")
    assert (listed.files, listed.used, listed.excluded, listed.studies) == (13, 12, {"dicomdir": 1}, 1)
    everything = run(disc, "everything")
    assert (everything.files, everything.used, everything.studies) == (14, 13, 2)
    assert verify(str(disc.parent / "listed")).problems == []


def test_a_dicomdir_in_small_letters_with_a_file_missing(disc: Path, run: Prepare) -> None:
    files = sorted(path for path in disc.rglob("*") if path.is_file() and path.name not in ("DICOMDIR", "UNLISTED"))
    files[3].unlink()
    for path in sorted((p for p in disc.rglob("*") if p.name != "DICOMDIR"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.lower()))
    summary = run(disc / "DICOMDIR", "out")
    assert (summary.files, summary.used, summary.quarantined) == (13, 11, {"unreadable": 1})


def test_a_dicomdir_names_no_file_outside_its_folder(disc: Path, make_series: MakeSeries, tmp_path: Path) -> None:
    secret = make_series(folder="outside", study="secret")[0]
    shutil.copy(secret, tmp_path / "SECRET")
    ds = pydicom.dcmread(disc / "DICOMDIR")
    records = [record for record in ds.DirectoryRecordSequence if "ReferencedFileID" in record]
    records[0].ReferencedFileID = ["..", "SECRET"]
    (disc / "LINK").symlink_to(tmp_path / "SECRET")
    records[1].ReferencedFileID = "LINK"
    ds.save_as(disc / "DICOMDIR")
    listed = found(disc / "DICOMDIR", tmp_path / "scratch")
    assert [item.problem for item in listed[1:3]] == [Reason.UNREADABLE] * 2
    assert all(item.problem is None for item in listed[3:])


@pytest.mark.parametrize("name", ["DICOMDIR", "notes.txt"])
def test_a_file_that_is_neither_is_one_clear_line(tmp_path: Path, run: Prepare, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"DICOMDIR; give the folder that holds") as caught:
        run(tmp_path / name, "out")
    assert "\n" not in str(caught.value)
