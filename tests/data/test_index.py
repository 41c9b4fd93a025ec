from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import webdataset

from fm.data.codec import decode_volume
from fm.data.index import DatasetError, Manifest, dataset_hash, open_store, write_index
from fm.data.table import SampleTable

MakeDataset = Callable[..., str]


def test_members_are_what_a_plain_webdataset_reader_sees(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    manifest = Manifest.open(url)
    seen = {}
    for sample in webdataset.WebDataset(
        [f"{url}/{shard.name}" for shard in manifest.shards], shardshuffle=False, empty_check=False
    ):
        for name, payload in sample.items():
            if not name.startswith("__"):
                seen[sample["__key__"], name] = payload
    assert len(seen) == 12
    assert all(manifest.read(key, name) == payload for (key, name), payload in seen.items())


def test_index_knows_patients_splits_and_labels(make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    assert manifest.keys == ["k00", "k01", "k02", "k10", "k11", "k12"]
    assert manifest.select(split="test").keys == ["k00", "k10"]
    assert manifest.select(split="train", region="head").keys == ["k01", "k02", "k11", "k12"]
    assert len(manifest.select(region="abdomen")) == 0
    sample = manifest.sample("k11")
    assert (sample.patient, sample.region, sample.shard, sample.labels) == (
        "p11",
        "head",
        "shard-000001.tar",
        {"lesion": 1},
    )
    assert manifest.study("k11").series[0].name == "t1w"
    assert manifest.select(split="test").dataset_id == manifest.dataset_id


def test_equal_contents_give_one_id_wherever_they_lie(make_dataset: MakeDataset) -> None:
    one, two = make_dataset(name="one"), make_dataset(name="two")
    assert Manifest.open(one).dataset_id == Manifest.open(two).dataset_id
    assert Manifest.open(make_dataset(studies=2, name="three")).dataset_id != Manifest.open(one).dataset_id


def test_the_split_is_part_of_the_id(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    manifest = Manifest.open(url)
    before, samples = manifest.dataset_id, list(manifest.samples)
    assert write_index(url, manifest.shards, samples, {}) == before
    for sample in samples:
        sample.split = "train"
    assert write_index(url, manifest.shards, samples, {}) != before


def test_object_storage_gives_the_same_bytes(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    store = fsspec.filesystem("memory")
    for file in Path(url).iterdir():
        store.pipe_file(f"/bucket/set/{file.name}", file.read_bytes())
    remote, local = Manifest.open("memory://bucket/set"), Manifest.open(url)
    assert remote.dataset_id == local.dataset_id
    assert all(remote.read(key, "t1w.b2") == local.read(key, "t1w.b2") for key in local.keys)


def _read_in_child(manifest: Manifest) -> int:
    return int(decode_volume(manifest.read("k10", "t1w.b2")).sum())


def test_a_manifest_travels_to_workers(make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    here = _read_in_child(manifest)
    assert _read_in_child(pickle.loads(pickle.dumps(manifest))) == here
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_read_in_child, (manifest,)) == here


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat /etc/passwd",
        "http://host/x",
        "pipe://cat x",
        "simplecache::s3://b/x",
        "s3://b/x::memory://y",
        "ftp://h/x",
    ],
)
def test_row_28_only_listed_schemes_are_opened(url: str) -> None:
    with pytest.raises(DatasetError, match=r"refused|are not read|not a dataset"):
        Manifest.open(url)


def test_a_local_path_is_taken_literally(tmp_path: Path) -> None:
    fs, path = open_store(str(tmp_path / "~a=b {c}, 2026_11_21"))
    assert "file" in fs.protocol
    assert path.endswith("~a=b {c}, 2026_11_21")


def test_a_folder_without_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has not finished"):
        Manifest.open(str(tmp_path))


def test_row_26_a_shard_that_is_cut_missing_or_empty_stops_the_opening(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    shard = Path(url, "shard-000001.tar")
    payload = shard.read_bytes()
    for damaged in (payload[:-100], b""):
        shard.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"shard-000001\.tar"):
            Manifest.open(url)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"shard-000001\.tar: missing"):
        Manifest.open(url)


def test_row_26_a_shard_that_goes_after_the_opening_is_named(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    manifest, shard = Manifest.open(url), Path(url, "shard-000001.tar")
    payload = shard.read_bytes()
    where = manifest.sample("k12").members["t1w.b2"]
    for damaged, words in ((payload[: where.offset + 9], "is damaged"), (b"", "not readable"), (None, "missing")):
        shard.unlink()
        if damaged is not None:
            shard.write_bytes(damaged)
        with pytest.raises(DatasetError, match=rf"shard-000001\.tar: .*{words}") as bad:
            pickle.loads(pickle.dumps(manifest)).read("k12", "t1w.b2")
        assert "study k12, member t1w.b2" in str(bad.value)


def test_row_25_a_flipped_byte_names_shard_and_study(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    where = Manifest.open(url).sample("k11").members["t1w.b2"]
    with Path(url, "shard-000001.tar").open("r+b") as file:
        file.seek(where.offset + where.length // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    manifest = Manifest.open(url)
    with pytest.raises(DatasetError, match=r"shard-000001\.tar: study k11, member t1w\.b2"):
        manifest.read("k11", "t1w.b2")
    assert manifest.read("k11", "json")


def test_samples_and_manifest_must_agree(make_dataset: MakeDataset) -> None:
    url, other = make_dataset(), make_dataset(studies=2, name="other")
    shutil.copy(f"{other}/samples.parquet", f"{url}/samples.parquet")
    with pytest.raises(DatasetError, match="is not the one"):
        Manifest.open(url)


def test_a_changed_manifest_is_refused(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    path = Path(url, "manifest.json")
    good = json.loads(path.read_text())
    hostile = {
        "format": {**good, "format": 99},
        "dataset_id": {**good, "dataset_id": "0" * 32},
        "count": {**good, "shards": [{**good["shards"][0], "samples": 4}, good["shards"][1]]},
        "name": {**good, "shards": [{**good["shards"][0], "name": "../../etc/passwd"}, good["shards"][1]]},
    }
    for changed in hostile.values():
        path.write_text(json.dumps(changed))
        with pytest.raises(DatasetError):
            Manifest.open(url)
    path.write_text("{" * 100_000)
    with pytest.raises(DatasetError, match="not JSON"):
        Manifest.open(url)


def test_unknown_study_and_member_are_named(make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    with pytest.raises(DatasetError, match="no study nobody"):
        manifest.read("nobody", "json")
    with pytest.raises(DatasetError, match=r"no member 'flair\.b2'; it has \['json', 't1w\.b2'\]"):
        manifest.read("k00", "flair.b2")


def test_the_index_leaves_no_temporary_file(make_dataset: MakeDataset) -> None:
    assert sorted(os.listdir(make_dataset())) == [
        "manifest.json",
        "samples.parquet",
        "shard-000000.tar",
        "shard-000001.tar",
    ]


def test_an_index_without_splits_is_refused(make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    samples = list(manifest.samples)
    samples[0].split = ""
    with pytest.raises(DatasetError, match="split"):
        write_index(manifest.url, manifest.shards, samples, {})


def test_row_27_an_index_that_counts_other_studies_is_refused(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    manifest = Manifest.open(url)
    samples = list(manifest.samples)
    for wrong in (samples[:-1], [*samples[:-1], replace(samples[-1], shard="shard-000000.tar")]):
        write_index(url, manifest.shards, wrong, {})
        with pytest.raises(DatasetError, match="count different studies"):
            Manifest.open(url)
    with pytest.raises(DatasetError, match="each once"):
        write_index(url, manifest.shards, [*samples, samples[0]], {})


def test_row_33_a_patient_in_two_splits_is_refused(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    manifest = Manifest.open(url)
    samples = list(manifest.samples)
    assert {sample.split for sample in samples} == {"train", "test"}
    mixed = [replace(sample, patient="p0" if sample.key in ("k00", "k01") else sample.patient) for sample in samples]
    with pytest.raises(DatasetError, match=r"1 patient\(s\) have studies in more than one split, first p0:"):
        write_index(url, manifest.shards, mixed, {})
    # An index that another program wrote so is refused when it is opened.
    table = SampleTable.of(mixed).to_parquet()
    Path(url, "samples.parquet").write_bytes(table)
    about = json.loads(Path(url, "manifest.json").read_text())
    about["samples"].update(bytes=len(table), sha256=hashlib.sha256(table).hexdigest())
    Path(url, "manifest.json").write_text(json.dumps(about))
    with pytest.raises(DatasetError, match="more than one split"):
        Manifest.open(url)


def test_a_row_is_found_and_read_from_columns(make_dataset: MakeDataset) -> None:
    samples = list(Manifest.open(make_dataset()).samples)
    shuffled = [samples[i] for i in (3, 0, 5, 1, 4, 2)]
    table = SampleTable.of(shuffled)
    again = pickle.loads(pickle.dumps(SampleTable.from_parquet(table.to_parquet())))
    assert list(again) == shuffled == [again[i] for i in range(6)] and again[-1] == shuffled[-1]
    assert again[1:3] == shuffled[1:3] and [again.row(s.key) for s in shuffled] == list(range(6))
    assert again.row("k0") is None and again.row("zz") is None
    part = again.where(split="train")
    assert [s.key for s in part] == [s.key for s in shuffled if s.split == "train"]
    assert SampleTable.from_parquet(part.to_parquet())[1] == part[1] and len(again.where(split="nowhere")) == 0
    with pytest.raises(IndexError):
        again[6]


def test_the_id_is_the_hash_of_the_plain_list(make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    odd = [replace(sample, split='sp"lit \u00e4') for sample in manifest.samples]
    content = {
        "shards": [[shard.name, shard.sha256, shard.samples] for shard in manifest.shards],
        "splits": sorted([sample.key, sample.split] for sample in odd),
    }
    want = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    assert dataset_hash(manifest.shards, odd[::-1]) == want
