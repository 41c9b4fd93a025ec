"""No name, number, date or address of a phantom patient in anything that the line writes for others to read."""

from __future__ import annotations

import base64
import json
import re
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import blosc2
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from tokenizers import Tokenizer

RESTRICTED = ("phantom", "shards.key")
"""Folders that hold identities on purpose: the input, and the secret key with its link table."""
WORD = re.compile(r"\w+")
RUNS = re.compile(rb"(?:[\x20-\x7e]|[\xc3-\xc5][\x80-\xbf]){6,}")
"""Readable Latin text in binary data, in UTF-8; shorter runs occur in weights and voxels by chance."""
INLINE = re.compile(r"base64,([A-Za-z0-9+/=]+)")
STANDARD_UID = "1.2.840.10008."
ELEMENT_KINDS = ("PN", "DA", "UI", "LO", "SH", "ST", "LT", "UT")
PUBLIC = (
    "BodyPartExamined",
    "ContrastBolusAgent",
    "ImageType",
    "InstitutionalDepartmentName",
    "Manufacturer",
    "ManufacturerModelName",
    "ProtocolName",
    "ReceiveCoilName",
    "ScanOptions",
    "SequenceName",
    "SequenceVariant",
    "SeriesDescription",
    "SoftwareVersions",
    "StudyDescription",
    "TransmitCoilName",
)
"""Elements that name no one."""


def fold(text: str) -> str:
    """Lower case without accents, so that MÜLLER, Müller and Muller are one."""
    if text.isascii():
        return text.lower()
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(c))


def identifiers(phantom: Path) -> set[str]:
    """What names a patient, a person, a place or a day in the phantom's headers and reports, folded.

    Numbers of up to five digits are left out: equal ones occur among step counts and sizes.
    """
    found: set[str] = set()
    for line in (phantom / "truth.jsonl").read_text(encoding="utf-8").splitlines():
        found.update(json.loads(line)["identifiers"])
    for series in {file.parent for file in (phantom / "dicom").rglob("*.dcm")}:
        header = pydicom.dcmread(next(iter(sorted(series.glob("*.dcm")))), stop_before_pixels=True)
        for element in header.iterall():
            if element.VR not in ELEMENT_KINDS or element.keyword in PUBLIC or not element.value:
                continue
            for value in [element.value] if isinstance(element.value, str) else list(element.value):
                text = str(value)
                if element.VR == "PN":
                    found.update([text.replace("^", " "), *text.split("^")])
                elif not text.startswith(STANDARD_UID):
                    found.add(text)
    reports = pd.read_csv(phantom / "reports.csv", dtype=str)
    for column in ("study_uid", "accession", "patient_id"):
        found.update(reports[column].dropna())
    folded = {fold(text).strip() for text in found}
    return {text for text in folded if len(text) > (5 if text.isdigit() else 2)}


def leaks(texts: Iterator[tuple[str, str]], wanted: set[str]) -> list[str]:
    """Places and identifiers that occur there; a word must stand alone, a phrase may stand anywhere."""
    words = {text for text in wanted if WORD.fullmatch(text)}
    phrases = wanted - words
    found = set()
    for place, text in texts:
        folded = fold(text)
        held = words.intersection(WORD.findall(folded))
        held |= words.intersection(part for word in WORD.findall(folded) if "_" in word for part in word.split("_"))
        held |= {phrase for phrase in phrases if phrase in folded}
        found |= {f"{place}: {text}" for text in held}
    return sorted(found)


def texts(root: Path, restricted: tuple[str, ...] = RESTRICTED) -> Iterator[tuple[str, str]]:
    """Everything readable below a folder: names of files and members, and decoded content."""
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root)
        if name.parts[0] in restricted:
            continue
        yield str(name), str(name)
        yield from decoded(str(name), file.read_bytes(), file)


def decoded(name: str, payload: bytes, file: Path | None = None) -> Iterator[tuple[str, str]]:
    """The readable content of one file or member, through tar, zip, Parquet, blosc2 and inline images."""
    if name.endswith(".tar") and file is not None:
        with tarfile.open(file) as tar:
            for member in tar:
                yield name, f"{member.name} {member.uname} {member.gname} {member.pax_headers}"
                stream = tar.extractfile(member)
                if stream is not None:
                    yield from decoded(f"{name}:{member.name}", stream.read())
    elif name.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(payload))
        yield (
            name,
            " ".join(
                part.decode("utf-8", "replace") for item in (table.schema.metadata or {}).items() for part in item
            ),
        )
        for column in table.column_names:
            if not pa.types.is_floating(table.schema.field(column).type):
                yield f"{name}:{column}", f"{column} {table[column].to_pylist()}"
    elif name.endswith(".b2"):
        array = blosc2.ndarray_from_cframe(payload)
        yield name, str({key: array.schunk.vlmeta[key] for key in array.schunk.vlmeta})
        yield from strings(name, bytes(array[:].tobytes()))
    elif file is not None and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                yield name, entry
                yield from strings(f"{name}:{entry}", archive.read(entry))
    else:
        yield from strings(name, payload)


def strings(name: str, payload: bytes) -> Iterator[tuple[str, str]]:
    """Text as text with its inline images decoded; the readable runs of anything else."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        yield name, "\n".join(run.decode("utf-8", "ignore") for run in RUNS.findall(payload))
        return
    for number, inline in enumerate(INLINE.findall(text)):
        yield from strings(f"{name}:inline{number}", base64.b64decode(inline))
    plain = INLINE.sub("", text)
    yield name, plain
    yield name, plain.encode("utf-8").decode("unicode-escape", "ignore") if "\\u" in plain else ""


def test_no_identifier_of_the_phantom_leaves_the_preparation(miniature_demo: Path) -> None:
    wanted = identifiers(miniature_demo / "phantom")
    assert len(wanted) > 24 * 10
    assert leaks(texts(miniature_demo), wanted) == []


def test_no_name_is_a_token_of_the_vocabulary(miniature_demo: Path) -> None:
    wanted = identifiers(miniature_demo / "phantom")
    (file, *_) = sorted(miniature_demo.rglob("tokenizer.json"))
    tokens = {fold(token).strip("#Ġ▁ġ ") for token in Tokenizer.from_file(str(file)).get_vocab()}
    assert len(tokens) > 50
    assert tokens & wanted == set()


def test_the_scanner_sees_the_identities_of_the_input(miniature_demo: Path) -> None:
    wanted = identifiers(miniature_demo / "phantom")
    found = leaks(texts(miniature_demo, restricted=()), wanted)
    for place in ("phantom/reports.csv", "phantom/truth.jsonl", "phantom/dicom/", "shards.key/"):
        assert any(line.startswith(place) for line in found), place


@pytest.mark.parametrize(
    "place", ["json", "tar", "name", "parquet", "metadata", "blosc2", "html", "binary", "zip", "escaped"]
)
def test_the_scanner_finds_a_planted_identifier(place: str, tmp_path: Path) -> None:
    text = "Seen by Dr. MÜLLER today"
    if place in ("json", "tar"):
        (tmp_path / "a.json").write_text(json.dumps({"x": text}, ensure_ascii=False))
    if place == "tar":
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            tar.add(tmp_path / "a.json", "k.json")
        (tmp_path / "a.json").unlink()
    elif place == "name":
        (tmp_path / "scan_muller_1.txt").write_text("")
    elif place == "parquet":
        pq.write_table(pa.table({"x": [text]}), tmp_path / "t.parquet")
    elif place == "metadata":
        pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"who": text}), tmp_path / "t.parquet")
    elif place == "blosc2":
        array = blosc2.asarray(pd.Series([1, 2, 3]).to_numpy())
        array.schunk.vlmeta["who"] = text
        (tmp_path / "v.b2").write_bytes(array.to_cframe())
    elif place == "html":
        inline = base64.b64encode(b"\x89PNG\xff" + text.encode()).decode()
        (tmp_path / "r.html").write_text(f'<img src="data:image/png;base64,{inline}">')
    elif place == "binary":
        (tmp_path / "c.pt").write_bytes(b"\x00\x01\xfe\xff" + text.encode() + b"\x00")
    elif place == "zip":
        with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", b"\x80\x02" + text.encode())
    elif place == "escaped":
        (tmp_path / "a.json").write_text(json.dumps({"x": text}))
    assert leaks(texts(tmp_path), {"muller"}), place
