from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fm.data.index import Manifest
from fm.data.inspect.contents import label_rows, read_contents
from fm.data.inspect.page import render, size
from fm.data.tokenizer import train_tokenizer
from launch.verbs.main import main
from tests.evals import conftest as drawn

MakeDataset = Callable[..., str]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty drawn studies with reports and labels, and what fm prepare leaves beside them."""
    url = drawn.write_dataset(tmp_path_factory.mktemp("inspect") / "shards", 20)
    lines = [{"item": "a", "kind": "series", "reason": "no_geometry", "files": 22}] * 2
    lines += [{"item": "b", "kind": "report", "reason": "report_residual", "files": 0}]
    Path(url, "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path(url, "prepare.json").write_text(json.dumps({"files": 500, "used": 456, "excluded": {"localizer": 22}}))
    return url


def test_every_count_is_that_of_the_studies(dataset: str) -> None:
    manifest = Manifest.open(dataset)
    words = train_tokenizer([("p", "word"), ("q", "word")], 600, 2, 12)
    found = read_contents(manifest, "site", tokenizer=words)
    studies = [manifest.study(key) for key in manifest.keys]
    series = [s for study in studies for s in study.series]
    assert found.read == found.studies == 20 and not found.unreadable
    assert {name: (s.studies, s.patients) for name, s in found.splits.items()} == {"test": (8, 4), "train": (12, 6)}
    assert sum(s.series for s in found.splits.values()) == len(series) == sum(found.planes.values())
    assert sum(s.bytes for s in found.splits.values()) < sum(found.shard_bytes)
    assert found.planes["t1w", "axial"] == sum(s.contrast == "t1w" for s in series)
    assert found.scanners == {("made_up", "1.5 T"): len(series)}
    assert found.having["head", "t2w"] == sum(len(study.series) == 2 for study in studies)
    assert found.sexes["f", "train"] + found.sexes["f", "test"] == sum(study.sex == "f" for study in studies)
    assert sum(map(len, found.ages.values())) == 20 and found.ages_unknown == 0
    assert found.labels["lesion"]["1"] == sum(study.labels["lesion"] == 1 for study in studies)
    assert found.sites["unknown", "train"] == 12
    assert found.quarantine == {("no_geometry", "series"): 2, ("report_residual", "report"): 1}
    texts = [study.report.diagnostic for study in studies if study.report]
    long = [len(words(text)["input_ids"]) for text in texts]
    assert found.report_tokens == long and found.longest_text == 12 and found.reports_cut == 20
    assert found.tokens_cut == sum(long) - 12 * 20
    assert label_rows(found)[0][:3] == ("atrophy", "values", 20)


def test_a_part_is_spread_evenly_and_a_bad_study_hides_no_other(dataset: str, tmp_path: Path) -> None:
    assert read_contents(Manifest.open(dataset), "site", most_studies=5).read == 5
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(dataset).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = Manifest.open(str(copy))
    where = manifest.sample("study007").members["json"]
    shard = copy / "shard-000000.tar"
    payload = bytearray(shard.read_bytes())
    payload[where.offset + 5] ^= 1
    shard.write_bytes(bytes(payload))
    found = read_contents(Manifest.open(str(copy)), "site")
    assert found.read == 19 and len(found.unreadable) == 1 and "study007" in found.unreadable[0]


def test_label_values_are_ordered_cut_into_ranges_or_told_by_their_commonest(make_dataset: MakeDataset) -> None:
    found = read_contents(Manifest.open(make_dataset(1, 4)), "site")
    found.labels = {
        "grade": Counter({"2": 1, "10": 2, "1": 3}),
        "volume": Counter({f"{i}.5": 1 for i in range(20)}),
        "word": Counter({f"w{i}": i + 1 for i in range(20)}),
    }
    rows = {name: (kind, counts) for name, kind, _, counts in label_rows(found)}
    assert rows["grade"] == ("values", [("1", 3), ("2", 1), ("10", 2)])
    assert rows["volume"][0] == "ranges" and sum(count for _, count in rows["volume"][1]) == 20
    assert rows["word"][0] == "commonest of 20 words" and rows["word"][1][0] == ("w19", 20)


def test_the_page_needs_no_other_file_and_says_what_is_there(dataset: str) -> None:
    page = render(read_contents(Manifest.open(dataset), "site"), [], None)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page) and "@import" not in page and "url(http" not in page
    assert page.count("<svg") >= 10 and "NaN" not in page
    for words in ("no_geometry", "localizer", "500 files went in, 456 were used", "lesion_side"):
        assert words in page
    assert len(page) < 2_000_000
    assert page == render(read_contents(Manifest.open(dataset), "site"), [], None), "equal data give equal pages"


def test_the_page_of_a_dataset_that_says_little(make_dataset: MakeDataset) -> None:
    page = render(read_contents(Manifest.open(make_dataset()), "site"), [], None)
    assert "No study has one" in page and "<svg" in page


def test_fm_inspect_prints_tables_and_writes_the_page(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    views = ["views=true", "inspect.studies=2", "model.patch_voxels=[2,8,8]", "data.spacing_mm=4.0"]
    tokens = ["model.text_max_tokens=16", "data.min_patients_per_word=2"]
    assert main(["inspect", f"url={dataset}", f"out={out}", *views, *tokens]) == 0
    printed = capsys.readouterr().out
    for words in ("Splits", "t1w", "made_up", "lesion_side", "no_geometry", "tokens are not read", f"page: {out}"):
        assert words in printed
    page = out.read_text()
    assert page.count("data:image/webp") == 2 and "left out at random" in page
    assert not list(tmp_path.glob("*.tmp"))


def test_sizes_are_said_in_words() -> None:
    assert [size(n) for n in (999, 1500, 2.5e6, 3e9, 4e12)] == ["999 bytes", "1.5 kB", "2.5 MB", "3.0 GB", "4.0 TB"]
