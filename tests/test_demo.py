"""The whole line in miniature: DICOM in, shards, a two-process DeepSpeed run, an encoder, a report out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import transformers
import webdataset as wds
import yaml

import fm
import fm.models
from fm.data.verify import verify
from fm.engine.metrics import read_metrics
from launch.verbs.demo import fit_batch

FM = Path(sys.executable).with_name("fm")


def test_the_shards_are_whole_and_plain_webdataset_reads_them(miniature_demo: Path) -> None:
    shards = miniature_demo / "shards"
    manifest = json.loads((shards / "manifest.json").read_text())
    verify(str(shards))
    names = [str(shards / shard["name"]) for shard in manifest["shards"]]
    samples = list(wds.WebDataset(names, shardshuffle=False, empty_check=False))
    studies = [json.loads(sample["json"]) for sample in samples]
    assert len(studies) == sum(shard["samples"] for shard in manifest["shards"]) == 24
    for sample, study in zip(samples, studies, strict=True):
        assert {f"{series['name']}.b2" for series in study["series"]} <= set(sample)


def test_training_ran_on_two_processes_to_its_last_step(miniature_demo: Path) -> None:
    run = miniature_demo / "pretrain"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert json.loads((run / "verdict.json").read_text())["outcome"] == "done"
    committed = list((run / "checkpoints").glob("step-*/COMMITTED"))
    assert [path.parent.name for path in committed] == ["step-00000004"]
    assert len(list(committed[0].parent.glob("moments-*-of-00002.safetensors"))) == 2
    assert list((run / "wandb").glob("offline-run-*"))


def test_the_run_says_what_it_was_made_of(miniature_demo: Path) -> None:
    about = yaml.safe_load((miniature_demo / "pretrain" / "run.yaml").read_text())["about"]
    manifest = json.loads((miniature_demo / "shards" / "manifest.json").read_text())
    assert about["dataset_id"] == manifest["dataset_id"]
    assert about["commit"]


def test_the_report_is_one_file_with_the_figures_of_results_json(miniature_demo: Path) -> None:
    page = (miniature_demo / "evaluate" / "report.html").read_text(encoding="utf-8")
    results = json.loads((miniature_demo / "evaluate" / "results.json").read_text())
    manifest = json.loads((miniature_demo / "shards" / "manifest.json").read_text())
    assert manifest["dataset_id"] in page
    assert 'src="http' not in page and 'href="http' not in page
    assert {"sex", "contrast"} <= {task["name"] for task in results["tasks"]}
    assert results["retrieval"]
    assert results["training"]["curves"]["loss"]["step"] == [1, 2, 3, 4]
    for task in results["tasks"]:
        own = next(score for score in task["scores"] if score["probe"] == "linear" and score["system"] == "encoder")
        assert f"{own['auroc']['value']:.3f}" in page


def test_plain_transformers_loads_the_export_and_fm_embeds_a_nifti(miniature_demo: Path, tmp_path: Path) -> None:
    export = miniature_demo / "pretrain" / "export"
    model = transformers.AutoModel.from_pretrained(export)
    assert type(model).__name__ == "FmModel"
    values = np.random.default_rng(0).gamma(4.0, 100.0, (64, 64, 16)).astype(np.float32)
    scan = tmp_path / "scan.nii.gz"
    nib.Nifti1Image(values, np.diag([3.0, 3.0, 5.0, 1.0])).to_filename(scan)
    encoder = fm.load_encoder(export)
    image, text = encoder.embed(scan), encoder.embed_text("No lesion.")
    assert image.shape == text.shape == (encoder.dim,)
    assert np.linalg.norm(image) == pytest.approx(1.0, abs=1e-3)
    assert np.allclose(encoder.embed(scan), image, atol=1e-5)


def test_run_again_repeats_nothing(miniature_demo: Path) -> None:
    results = miniature_demo / "evaluate" / "results.json"
    before = (results.stat().st_mtime_ns, (miniature_demo / "pretrain" / "metrics.jsonl").stat().st_mtime_ns)
    done = subprocess.run([FM, "demo", f"run={miniature_demo}"], capture_output=True, text=True, check=True)
    assert (results.stat().st_mtime_ns, (miniature_demo / "pretrain" / "metrics.jsonl").stat().st_mtime_ns) == before
    assert done.stdout.count("(earlier)") == 4
    assert str(miniature_demo / "evaluate" / "report.html") in done.stdout.replace("\n", "")


def test_run_again_with_other_values_is_refused(miniature_demo: Path) -> None:
    words = [FM, "demo", f"run={miniature_demo}", "studies=25"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "studies is 24 there, 25 here" in done.stderr


@pytest.mark.full
def test_the_demo_takes_real_dicom_without_reports(mri_dev: Path, tmp_path: Path) -> None:
    words = [FM, "demo", f"input={mri_dev / 'dicom'}", f"run={tmp_path / 'run'}", "max_steps=3", "prepare.deface=none"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    account = json.loads((tmp_path / "run" / "shards" / "prepare.json").read_text())
    assert (account["series"], account["volumes"], account["reports"]) == (10, 29, 0)
    assert (tmp_path / "run" / "evaluate" / "report.html").is_file()


TIMES = ("created_utc", "seconds", "volumes_per_s", "Volumes per second, median", "time", "cost", "commit")
"""What a results.json says of the clock, attempts within the cost; and the clone's commit, which work on it moves."""


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.full
def test_a_demo_killed_in_pretraining_goes_on_to_the_same_results(tmp_path: Path) -> None:
    """SIGKILL of the whole process group, twice: before the first checkpoint and after it."""
    run, pretrain = tmp_path / "run", tmp_path / "run" / "pretrain"
    words = ["experiment=demo_tiny", "max_steps=8", "trainer.checkpoint_every_steps=3"]
    subprocess.run([FM, "demo", f"run={run}", *words], capture_output=True, check=True)
    results = run / "evaluate" / "results.json"
    calm = json.loads(results.read_text())
    for folder in (pretrain, run / "evaluate"):
        shutil.rmtree(folder)
        (run / "stages" / f"{folder.name}.json").unlink()
    for step in (2, 5):
        started = subprocess.Popen([FM, "demo", f"run={run}"], stdout=subprocess.DEVNULL, start_new_session=True)
        while not (steps_of(pretrain) & set(range(step, 9))):
            assert started.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        assert not (pretrain / "verdict.json").exists(), "killed too late: nothing was tested"
    subprocess.run([FM, "demo", f"run={run}"], capture_output=True, check=True)
    said = (pretrain / "events.log").read_text()
    assert said.count("starts at step 0 of 8") == 2 and "attempt 3: resumes at step 3 of 8" in said
    killed = json.loads(results.read_text())
    assert without_times(killed) == without_times(calm)
    assert calm["training"]["cost"]["total"]["attempts"] == 1
    assert killed["training"]["cost"]["total"]["attempts"] == 3


def steps_of(run_dir: Path) -> set[int]:
    path = run_dir / "metrics.jsonl"
    return {row["step"] for row in read_metrics(path)} if path.exists() else set()


@pytest.mark.parametrize(
    ("train", "wanted", "fitted"),
    [
        (400, (32, 16), (32, 16)),
        (32, (32, 16), (32, 16)),
        (31, (32, 16), (30, 15)),
        (5, (32, 16), (4, 2)),
        (1, (32, 16), (1, 1)),
        (26, (32, 4), (26, 1)),
    ],
)
def test_a_small_split_gets_a_batch_that_two_processes_share(
    train: int, wanted: tuple[int, int], fitted: tuple[int, int]
) -> None:
    size, micro = fit_batch(train, *wanted)
    assert (size, micro) == fitted
