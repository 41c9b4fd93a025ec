"""A small dataset of drawn studies, and an encoder with fresh weights."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fm.config.data import DataConfig
from fm.config.model import PatchStem, VitTextConfig
from fm.data.codec import encode_volume
from fm.data.index import write_index
from fm.data.sample import Contrast, Plane, Report, Role, SeriesMeta, StudyMeta, to_json
from fm.data.tokenizer import train_tokenizer
from fm.data.verify import scan_shard
from fm.models.build import build_model
from fm.models.encoder import Encoder

SHAPE = (6, 32, 28)


def draw(rng: np.random.Generator, labels: dict[str, Any], dark: bool) -> np.ndarray:
    """A disc of tissue, with a bright block where the labels say lesion."""
    _, h, w = np.indices(SHAPE)
    body = ((h - 16) / 13) ** 2 + ((w - 14) / 11) ** 2 < 1
    values = np.where(body, (200 if dark else 400) + 30 * rng.standard_normal(SHAPE), 0.0)
    if labels.get("lesion") == 1:
        w0 = 16 if labels["lesion_side"] == "right" else 6
        values[2:4, 12:18, w0 : w0 + 6] += 500
    return np.asarray(np.maximum(np.rint(values), 0) * body, dtype=np.float32)


def series(name: str, values: np.ndarray, contrast: Contrast) -> tuple[SeriesMeta, bytes]:
    encoded = encode_volume(values, air=values <= 0)
    inside = values[values > 0]
    low, high = np.percentile(inside, (0.5, 99.5))
    meta = SeriesMeta(
        name=name,
        contrast=contrast,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=SHAPE,
        spacing_mm=(5.0, 4.0, 4.0),
        affine=[[0.0, 0.0, 4.0, 0.0], [0.0, 4.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
        slice_position_mm=[5.0 * i for i in range(SHAPE[0])],
        slice_valid=[True] * SHAPE[0],
        frame_of_reference=0,
        foreground=((0, 3, 3), (6, 30, 26)),
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=float(low),
        intensity_high=float(high),
        repetition_time_ms=600.0 if contrast is Contrast.T1W else 4000.0,
        echo_time_ms=15.0 if contrast is Contrast.T1W else 90.0,
        field_strength_t=1.5,
        vendor="made_up",
    )
    return meta, encoded.payload


def make_study(rng: np.random.Generator, row: int, told: bool = True) -> tuple[StudyMeta, dict[str, bytes]]:
    lesion = int(rng.integers(2))
    side = str(rng.choice(["left", "right"])) if lesion else "none"
    labels: dict[str, Any] = {
        "lesion": lesion,
        "lesion_side": side,
        "lesion_grade": str(rng.choice(["easy", "medium"])) if lesion else "none",
        "atrophy": int(rng.integers(2)),
        "findings": f"{'tumour' if lesion else 'none'}.{side}",
    }
    members, metas = {}, []
    for name, contrast in (("t1w", Contrast.T1W), ("t2w", Contrast.T2W))[: 1 + int(rng.integers(2))]:
        meta, payload = series(name, draw(rng, labels, contrast is Contrast.T2W), contrast)
        metas.append(meta)
        members[f"{name}.b2"] = payload
    finding = f"Bright mass in the {side} hemisphere." if lesion else "No mass. Normal ventricles."
    report = Report(findings=f"{finding} The patient is a 54 year old man.", technique="T1 and T2.") if told else None
    study = StudyMeta(
        key=f"study{row:03d}",
        patient=f"p{row // 2:03d}",
        region="head",
        series=metas,
        age=float(rng.integers(30, 80)),
        sex=str(rng.choice(["f", "m"])),
        report=report,
        labels=labels if told else {},
    )
    return study, members


def write_dataset(
    folder: Path, studies: int, test_share: float = 0.4, told: bool = True, split_of: Callable[[int], str] | None = None
) -> str:
    """Shards of drawn studies with an index; two studies a patient."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    path = folder / "shard-000000.tar"
    with tarfile.open(path, "w") as tar:
        for row in range(studies):
            study, members = make_study(rng, row, told)
            for name, payload in {"json": to_json(study), **members}.items():
                info = tarfile.TarInfo(f"{study.key}.{name}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    with path.open("rb") as stream:
        shard, samples = scan_shard(stream, path.name)
    for row, sample in enumerate(samples):
        sample.split = split_of(row) if split_of else ("test" if row // 2 < studies * test_share / 2 else "train")
    write_index(str(folder), [shard], samples, {"code": "test"})
    return str(folder)


def write_encoder(folder: Path, tokenizer: bool = True) -> Path:
    """An export with fresh weights."""
    torch.manual_seed(0)
    model = VitTextConfig(
        patch_voxels=[2, 8, 8],
        patch_stem=PatchStem.linear,
        dim=24,
        depth=1,
        heads=2,
        registers=1,
        embed_dim=16,
        text_dim=16,
        text_depth=1,
        text_heads=2,
        text_max_tokens=32,
    )
    data = DataConfig(spacing_mm=4.0, slice_spacing_mm=5.0)
    words = [(f"p{i}", "Bright mass in the left right hemisphere. No mass. Normal ventricles.") for i in range(5)]
    made = train_tokenizer(words, 600, 2, 32)
    Encoder(build_model(model, data, len(made)), made if tokenizer else None).save(folder)
    return folder


@pytest.fixture(scope="session")
def drawn() -> SimpleNamespace:
    """The functions of this file, for tests that draw their own."""
    return SimpleNamespace(
        draw=draw, series=series, make_study=make_study, write_dataset=write_dataset, write_encoder=write_encoder
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "shards", 90)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder")
