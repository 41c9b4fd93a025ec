from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from launch.verbs.main import main

FEW = ["suite.bootstrap_draws=50", "suite.folds=2", "suite.linear_c=[0.1]", "suite.neighbours=[5]"]


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_fm_evaluate_prints_tables_verdicts_and_paths(
    dataset: str, encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["evaluate", f"encoder={encoder_dir}", f"data.url={dataset}", f"run={run}", *FEW]) == 0
    said = capsys.readouterr().out
    assert "lesion_head_easy" in said and "R@5" in said and "bar retrieval_head_times_chance" in said
    assert f"report:  {run / 'report.html'}" in said
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["run"]["encoder"] == str(encoder_dir) and results["suite"]["bootstrap_draws"] == 50
    # Run again on its own folder, it gives the same verdicts.
    assert main(["evaluate", f"run={run}"]) == 0
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["bars"] == results["bars"]


def test_fm_evaluate_refuses_in_one_line(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"encoder={tmp_path}", f"data.url={dataset}", f"run={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "no encoder there" in error[0]


def test_fm_embed_reads_shards_and_names_what_it_wrote(
    drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, out = drawn.write_dataset(tmp_path / "shards", 6), tmp_path / "out.parquet"
    assert main(["embed", f"encoder={encoder_dir}", f"input={url}", f"out={out}"]) == 0
    assert len([row for row in read(out) if not row["series"]]) == 6
    assert str(out) in capsys.readouterr().out
    assert main(["embed", f"encoder={encoder_dir}", f"input={url}", f"out={out}"]) == 1
    assert "exists" in capsys.readouterr().err


def test_fm_embed_of_nothing_is_one_line(encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.parquet"
    assert main(["embed", f"encoder={encoder_dir}", f"input={tmp_path / 'absent'}", f"out={out}"]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_fm_embed_prepares_a_folder_of_dicom(
    mri_dev: Path, encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    dicom = mri_dev / "dicom" / "icometrix-Hitachi"
    assert main(["embed", f"encoder={encoder_dir}", f"input={dicom}", f"out={out}"]) == 0
    rows = read(out)
    assert len([row for row in rows if not row["series"]]) == 1 and len(rows) == 2
    assert (tmp_path / "out.parquet.shards" / "manifest.json").is_file()


def test_real_mri_without_reports_or_labels_gives_a_report(
    mri_dev: Path, encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    assert (
        main(
            ["prepare", f"input={mri_dev / 'dicom' / 'PGBM-006'}", f"out={shards}", "workers=1", "prepare.deface=none"]
        )
        == 0
    )
    assert main(["evaluate", f"encoder={encoder_dir}", f"data.url={shards}", f"run={run}", *FEW]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "No verdict could be measured" in page and page.count("data:image/png") == 3
