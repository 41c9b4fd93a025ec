"""Row 19 of the fault battery: a canary in every kind of place, none in any output; and the same of a peer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dicomanonymizer import anonymize_dicom_file

from data_prep.prepare import prepare
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest
from fm.data.tokenizer import train_tokenizer, training_reports

from ..test_no_identifiers import texts
from .canaries import Canaries, encoded, found, plant


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Canaries]:
    return plant(tmp_path_factory.mktemp("canaries"))


def test_row_19_no_canary_leaves(
    planted: tuple[Path, Path, Canaries],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, reports, canaries = planted
    assert len(canaries.places) >= 70
    assert set(found(encoded(folder.parent), canaries)) == set(canaries.places), "every canary is in the input"
    out = tmp_path / "out"
    config = PrepareConfig(deface=Deface.none, key_file=str(tmp_path / "key" / "secret"))
    with caplog.at_level("DEBUG"), pytest.raises(UserError) as refused:
        prepare(str(folder), str(reports), None, str(out), config, 1)
    said = capfd.readouterr()
    manifest = Manifest.open(str(out))
    (study,) = [manifest.study(key) for key in manifest.keys]
    assert study.report is not None and "No mass." in study.report.findings
    assert len(study.series) == 7, "dcm2niix makes volumes of overlay planes: none may be taken"
    tokenizer = train_tokenizer(training_reports(manifest), 600, 1, 64)
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "said.txt").write_text("\n".join((str(refused.value), said.out, said.err, caplog.text)))
    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in quarantine} == {"truncated", "not_dicom", "constant", "report_unknown_study"}
    left = found(texts(out, restricted=()), canaries)
    print(f"\ncanaries: {len(canaries.places)} planted, {len(left)} left")
    assert left == {}


def test_the_peer_on_the_same_files(planted: tuple[Path, Path, Canaries], tmp_path: Path) -> None:
    """The table of docs/deidentification.md: what dicom-anonymizer leaves of the canaries in files it takes."""
    folder, _, canaries = planted
    out = tmp_path / "peer"
    out.mkdir()
    taken = tmp_path / "taken"
    taken.mkdir()
    for number, path in enumerate(sorted(folder.rglob("*_*.dcm"))):
        (taken / f"{number}.dcm").write_bytes(path.read_bytes())
        anonymize_dicom_file(str(path), str(out / f"{number}.dcm"))
    before, after = found(encoded(taken), canaries), found(encoded(out), canaries)
    print(f"\ndicom-anonymizer: {len(before)} canaries in, {len(after)} left: {', '.join(sorted(after))}")
    assert len(before) >= 70
    assert set(after) < set(before)
