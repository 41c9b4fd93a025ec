from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fm.batch import PackedTokens, StudyBatch
from fm.config.data import DataConfig
from fm.data.codec import encode_volume
from fm.data.index import Manifest, write_index
from fm.data.plan import PlanError
from fm.data.reader import ReadError, build_loader, view_names
from fm.data.sample import Contrast, Plane, Report, Role, SeriesMeta, StudyMeta, to_json
from fm.data.tokenizer import train_tokenizer, training_reports
from fm.data.verify import scan_shard

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


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(manifest: Manifest, tokenizer: PreTrainedTokenizerFast, workers: int) -> None:
    alone = _batches(manifest, tokenizer, _data(micro_batch_size=2))
    shared = _batches(manifest, tokenizer, _data(micro_batch_size=2, workers=workers))
    assert len(alone) == len(shared) == 10
    assert all(_same(a, b) for a, b in zip(alone, shared, strict=True))


def test_every_world_size_sees_the_same_global_batches(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = _batches(manifest, tokenizer, _data())
    ranks = [_batches(manifest, tokenizer, _data(micro_batch_size=2), rank=r, world_size=2) for r in range(2)]
    quarters = _batches(manifest, tokenizer, _data(micro_batch_size=1))
    for k, batch in enumerate(whole):
        parts = [ranks[0][k], ranks[1][k]]
        assert [key for part in parts for key in part.keys] == batch.keys
        turns = quarters[4 * k : 4 * k + 4]
        assert [turn.step for turn in turns] == [k] * 4 and [turn.keys[0] for turn in turns] == batch.keys
        for name, view in batch.views.items():
            assert torch.equal(torch.cat([part.views[name].patches_TP for part in parts]), view.patches_TP)
            assert torch.equal(torch.cat([turn.views[name].patches_TP for turn in turns]), view.patches_TP)


def test_resume_at_step_k_sees_step_k(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    straight = _batches(manifest, tokenizer, _data(), 6)
    resumed = _batches(manifest, tokenizer, _data(), 6, start_step=4)
    assert len(resumed) == 2 and all(_same(a, b) for a, b in zip(straight[4:], resumed, strict=True))


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_leaves_a_hole_and_shifts_nothing(
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


def test_too_many_bad_samples_stop_the_run_with_the_list(damaged: Manifest, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ReadError, match=r"of \d+ samples could not be read.*s04.*fm verify"):
        _batches(damaged, tokenizer, _data(max_bad_fraction=0.01), 40)


def test_batches_that_do_not_fit_are_refused_before_anything_is_read(
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
