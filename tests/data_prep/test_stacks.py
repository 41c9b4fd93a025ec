"""Splitting a series, and duplicates: rows 6 and 8 of the fault battery."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason
from data_prep.stacks import drop_duplicates, shell_of, split_series

from .conftest import MakeSeries, edit, head, uid

Read = Callable[[Sequence[Path]], list[Header]]


def test_row_06_the_same_slice_twice_is_dropped(make_series: MakeSeries, read: Read) -> None:
    files = make_series()
    copy = files[2].with_name("copy.dcm")
    shutil.copy(files[2], copy)
    again = files[3].with_name("sent_again.dcm")
    shutil.copy(files[3], again)
    edit(again, SOPInstanceUID=uid("new"))
    stack = drop_duplicates(read([*files, copy, again]))
    assert sorted(Path(h.path).name for h in stack.headers) == [f"{k:03d}.dcm" for k in range(6)]
    assert sorted(Path(h.path).name for h in stack.dropped) == ["copy.dcm", "sent_again.dcm"]


@pytest.mark.parametrize("same_uid", [True, False])
def test_row_06_another_picture_at_the_same_place_is_quarantined(
    make_series: MakeSeries, read: Read, same_uid: bool
) -> None:
    files = make_series()
    other = files[2].with_name("other.dcm")
    shutil.copy(files[2], other)
    changes = {} if same_uid else {"SOPInstanceUID": uid("new")}
    edit(other, PixelData=head()[0].astype("<u2").tobytes(), **changes)
    with pytest.raises(QuarantineError) as caught:
        drop_duplicates(read([*files, other]))
    assert caught.value.reason is Reason.DUPLICATE_CONFLICT


def test_a_repeated_acquisition_is_no_duplicate(make_series: MakeSeries, read: Read) -> None:
    files = make_series() + make_series(folder="in/b", volume=head(seed=1))
    stack = drop_duplicates(read(files))
    assert len(stack.headers) == 12
    with pytest.raises(QuarantineError) as caught:
        drop_duplicates(read(files + make_series(folder="in/c", volume=head(seed=2), skip=(1,))))
    assert caught.value.reason is Reason.IRREGULAR_SLICES


def test_row_08_mixed_geometries_are_split(make_series: MakeSeries, read: Read) -> None:
    axial = make_series()
    sagittal = make_series(folder="in/s", ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
    small = make_series(folder="in/m", volume=head(rows=32))
    groups = split_series(read(axial + sagittal + small))
    assert sorted(len(group) for group in groups) == [6, 6, 6]
    assert sorted("".join(sorted({Path(h.path).parent.name for h in group})) for group in groups) == ["a", "m", "s"]


def test_rounding_of_directions_does_not_split(make_series: MakeSeries, read: Read) -> None:
    files = make_series()
    edit(files[3], ImageOrientationPatient=["0.99999995", "0.0003", "0", "-0.0003", "0.99999995", "0"])
    assert len(split_series(read(files))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"EchoTime": "30"},
        {"DiffusionBValue": 1000.0},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        {"InversionTime": "200"},
    ],
)
def test_echoes_shells_and_parts_are_split(make_series: MakeSeries, read: Read, changes: dict[str, object]) -> None:
    files = make_series() + make_series(folder="in/b", **changes)
    assert [len(group) for group in split_series(read(files))] == [6, 6]


def test_order_of_files_changes_nothing(make_series: MakeSeries, read: Read) -> None:
    headers = read(make_series() + make_series(folder="in/b", EchoTime="30"))
    order = np.random.default_rng(0).permutation(len(headers))
    shuffled = split_series([headers[int(i)] for i in order])
    assert [[h.path for h in g] for g in shuffled] == [[h.path for h in g] for g in split_series(headers)]


@pytest.mark.parametrize(
    ("b", "shell"), [(None, None), (0, 0), (5, 0), (50, 0), (929.75, 950), (1000, 1000), (1004, 1000)]
)
def test_shells(b: float | None, shell: int | None) -> None:
    assert shell_of(b) == shell
