"""Reports, labels and findings through a whole preparation, and the sheet by which a person checks it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from fm.config.errors import UserError
from fm.config.prepare import Deface, Labeller, PrepareConfig
from fm.data.index import Manifest
from launch.verbs.main import main

from .conftest import MakeSeries, uid

REPORTS = {
    "ACC1": "FINDINGS: Large mass of the left frontal lobe. No haemorrhage.\nIMPRESSION: Glioma.",
    "ACC2": "FINDINGS: Normal, see okonkwookonkwo.",
    "ACC3": "FINDINGS: Effusion. The ACL is intact. Possible meniscal tear.",
}


@pytest.fixture
def prepared(make_series: MakeSeries, tmp_path: Path) -> tuple[Path, PrepareSummary]:
    """Two heads and a knee; one text file per report, labels of a study and of a series."""
    for number, part in ((1, "HEAD"), (2, "HEAD"), (3, "KNEE")):
        name = f"s{number}"
        words = {"BodyPartExamined": part, "SeriesDescription": "t2", "ProtocolName": "x"}
        make_series(folder=f"in/{name}", study=name, patient=f"P{number}", AccessionNumber=f"ACC{number}", **words)
        (tmp_path / "reports").mkdir(exist_ok=True)
        (tmp_path / "reports" / f"ACC{number}.txt").write_text(REPORTS[f"ACC{number}"], encoding="utf-8")
    (tmp_path / "labels.csv").write_text(
        f"study,serie,lesion\n{uid('s1')},,1\n,{uid('s1series')},0\n{uid('s2')},{uid('s1series')},1\n"
    )
    config = PrepareConfig(
        key_file=str(tmp_path / "key"), deface=Deface.none, labeller=Labeller.rules,
        columns={"study_uid": "study", "series_uid": "serie"},
    )  # fmt: skip
    inputs = (str(tmp_path / "in"), str(tmp_path / "reports"), str(tmp_path / "labels.csv"))
    return tmp_path, prepare(*inputs, str(tmp_path / "out"), config, 1)


def test_reports_labels_and_findings(prepared: tuple[Path, PrepareSummary], capsys: pytest.CaptureFixture[str]) -> None:
    folder, summary = prepared
    assert (summary.studies, summary.reports, summary.refused_reports) == (3, 2, {"report_residual": 1})
    assert (summary.labelled, summary.unlinked_labels) == (1, 1)
    manifest = Manifest.open(str(folder / "out"))
    lines_of_table = Path(summary.link_table).read_text("utf-8").splitlines()
    table = {row["id"]: row["source"] for row in csv.DictReader(lines_of_table)}
    studies = {table[key]: manifest.study(key) for key in manifest.keys}
    assert studies[uid("s1")].labels == {"lesion": 1, "report_mass": 1, "report_haemorrhage": 0}
    assert studies[uid("s1")].series[0].labels == {"lesion": 0}
    assert studies[uid("s2")].labels == {} and studies[uid("s2")].report is None
    assert studies[uid("s3")].labels == {"report_effusion": 1, "report_acl_tear": 0}
    lines = [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().splitlines()]
    (report,) = [line for line in lines if line["kind"] == "report"]
    assert table[report["item"]].endswith("ACC2.txt"), "the table beside the key explains the report's id"
    sheet = folder / "sheet.csv"
    words = ["findings", "sheet", f"url={folder / 'out'}", f"out={sheet}"]
    assert main(words) == 0 and main(words) == 1
    assert "may be filled in" in capsys.readouterr().err
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    said = {(row["finding"], row["labeller"]) for row in rows if row["labeller"] != "-"}
    assert said == {("mass", "y"), ("haemorrhage", "n"), ("effusion", "y"), ("acl_tear", "n")}
    assert sum(bool(row["report"]) for row in rows) == 2
    for row in rows:
        row["truth"] = {"meniscal_tear": "y", "acl_tear": "-"}.get(row["finding"], row["labeller"])
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert main(["findings", "score", f"sheet={sheet}"]) == 0
    out = capsys.readouterr().out
    assert "| effusion | 1.000 (0.025 to 1.000), 1 of 1 |" in out
    assert "| all | 1.000 (0.158 to 1.000), 2 of 2 | 0.667 (0.094 to 0.992), 2 of 3 | 0.500" in out


@pytest.mark.parametrize(
    ("settings", "reports", "words"),
    [
        ({}, "nowhere", "reports=.*does not exist"),
        ({"masks": "nowhere"}, None, "prepare.masks=nowhere is no folder"),
        ({"deface": Deface.quickshear, "brain_masks": "nowhere"}, None, "prepare.brain_masks=nowhere is no folder"),
        ({"ner_model": "nowhere"}, None, "prepare.ner_model=nowhere holds no config.json"),
        ({"findings_file": "nowhere"}, None, "prepare.findings_file=nowhere does not exist"),
    ],
)
def test_paths_that_lead_nowhere_are_one_line(
    tmp_path: Path, settings: dict[str, object], reports: str | None, words: str
) -> None:
    config = PrepareConfig(**{"deface": Deface.none, "key_file": str(tmp_path / "key"), **settings})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words) as caught:
        prepare(str(tmp_path), reports, None, str(tmp_path / "out"), config, 1)
    assert "\n" not in str(caught.value)
