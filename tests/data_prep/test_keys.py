"""Pseudonyms: row 20 of the fault battery."""

from __future__ import annotations

import csv
import re
import stat
from pathlib import Path

import pytest

from data_prep.keys import Keyring, default_key_file, is_placeholder, open_keyring, write_link_table
from fm.config.errors import UserError


def test_row_20_one_patient_has_one_pseudonym_everywhere(tmp_path: Path) -> None:
    one = open_keyring(tmp_path / "k" / "secret", str(tmp_path / "out"))
    again = open_keyring(tmp_path / "k" / "secret", str(tmp_path / "elsewhere"))
    assert one.patient("A", "P1", "1.2") == again.patient("A", " P1 ", "1.3")
    assert one.patient("A", "P1", "1.2") != one.patient("B", "P1", "1.2")
    assert one.patient("A", "P1", "1.2") != one.patient("A", "P2", "1.2")
    other = open_keyring(tmp_path / "other", str(tmp_path / "out"))
    assert one.patient("A", "P1", "1.2") != other.patient("A", "P1", "1.2")


@pytest.mark.parametrize(
    "number", ["", " ", "***", "DEV", "dev", "ANONYMOUS", "Anonymized12", "0", "0000", "N/A", "unknown"]
)
def test_placeholders_join_nobody(number: str, keyring: Keyring) -> None:
    assert is_placeholder(number)
    assert keyring.patient("A", number, "1.2") != keyring.patient("A", number, "1.3")


@pytest.mark.parametrize("number", ["PGBM-003", "19368790", "A0", "devi", "test7", "Nana"])
def test_numbers_are_no_placeholders(number: str) -> None:
    assert not is_placeholder(number)


def test_ids_fit_the_contract_and_purposes_never_meet(keyring: Keyring) -> None:
    ids = [keyring.study("1.2"), keyring.item("1.2"), keyring.patient("", "P1", "1.2"), keyring.digest("a", "b", "c")]
    assert all(re.fullmatch(r"[0-9a-f]{20}", found) for found in ids)
    assert len(set(ids)) == 4
    assert keyring.digest("a", "b", "c") != keyring.digest("a", "bc") != keyring.digest("a", "b\x1fc"[:2])


def test_the_key_is_private_and_outside(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    path = default_key_file(out)
    assert path == tmp_path / "out.key" / "secret"
    open_keyring(path, out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(UserError, match="lies inside out"):
        open_keyring(tmp_path / "out" / "key", out)
    with pytest.raises(UserError, match=r"prepare\.key_file"):
        default_key_file("s3://bucket/set")


@pytest.mark.parametrize("content", ["", "not hex", "ab" * 7])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(UserError, match="key_file"):
        open_keyring(tmp_path / "key", str(tmp_path / "out"))


def test_the_link_table_is_private(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    write_link_table(path, [("id1", "file", "/scans/Müller, Jürgen\udcff.dcm")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert list(csv.reader(file))[1] == ["id1", "file", "/scans/Müller, Jürgen\udcff.dcm"]
