from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fm.config.data import DataConfig
from fm.data.index import Manifest
from fm.data.inspect.views import draw_sheets, mosaic, patches_of
from fm.data.plan import keyed_rng
from fm.data.reader import StudyReader
from fm.data.shared import anchor_of, centre_of
from fm.data.views import lattice_of
from fm.grid import apply_affine
from tests.evals import conftest as drawn

PATCH = (2, 8, 8)


def _reader(url: str, **changes: Any) -> StudyReader:
    values = {"spacing_mm": 4.0, "slice_spacing_mm": 5.0, "global_keep": 0.5, **changes}
    data = DataConfig(**values)
    return StudyReader(Manifest.open(url), data, lattice_of(data, PATCH), None, 5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawn.write_dataset(tmp_path_factory.mktemp("views") / "shards", 8)


@pytest.mark.parametrize("cross_sequence", [False, True])
def test_every_token_is_drawn_where_it_lies_and_every_other_patch_is_told(dataset: str, cross_sequence: bool) -> None:
    reader = _reader(dataset, cross_sequence=cross_sequence)
    manifest = reader.manifest
    for key in manifest.keys[:4]:
        meta = manifest.study(key)
        for one in reader.see(meta, 2, manifest.read, keyed_rng(5, 2, key)):
            centre = centre_of(anchor_of(one.series, meta.series) if cross_sequence else one.series)
            draws = reader.draws(meta, one.series, 2)
            for name, view in one.views.items():
                found = patches_of(one.series, draws[name], one.crops[name], view, one.touches[name], PATCH, centre)
                where = apply_affine(one.series.affine, found.first + (found.tokens + 0.5) * found.step)
                seen = view.position_mm - np.float32(one.touches[name].offset_mm) + centre
                assert np.allclose(where, seen, atol=1e-2), name
                assert len(found.tokens) + len(found.dropped) == len(one.crops[name].patches)
                assert (found.tokens >= 0).all() and (found.tokens < found.count).all()
                assert len({tuple(p) for p in np.concatenate([found.tokens, found.dropped]).tolist()}) == len(
                    one.crops[name].patches
                )


def test_a_layer_shows_the_voxels_of_its_tokens_and_hatches_the_rest(dataset: str) -> None:
    reader = _reader(dataset)
    manifest = reader.manifest
    meta = manifest.study(manifest.keys[0])
    one = next(reader.see(meta, 0, manifest.read, keyed_rng(5, 0, meta.key)))
    draws = reader.draws(meta, one.series, 0)
    found = patches_of(
        one.series, draws["global_a"], one.crops["global_a"], one.views["global_a"], one.touches["global_a"], PATCH,
        centre_of(one.series),
    )  # fmt: skip
    layer, sample = found.shown(3, one.views["global_a"], PATCH)
    assert layer == int((3 - found.first[0]) / found.step[0]), "the layer of the slice"
    assert found.shown(99, one.views["global_a"], PATCH)[0] == np.bincount(found.tokens[:, 0]).argmax()
    canvas = mosaic(found, one.views["global_a"], PATCH, layer, sample)
    assert canvas.shape == (found.count[1] * 8, found.count[2] * 8, 3)
    rows = np.flatnonzero(found.tokens[:, 0] == layer)
    for row in rows:
        _, y, x = found.tokens[row]
        want = np.clip((one.views["global_a"].patches[row].reshape(PATCH)[sample] + 1) / 2.2, 0, 1)
        assert np.allclose(canvas[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8, 1], want, atol=1e-6)
    grey = (canvas[:, :, 0] == canvas[:, :, 1]) & (canvas[:, :, 1] == canvas[:, :, 2])
    assert grey.sum() == 64 * len(rows)


def test_sheets_are_the_same_every_time_and_spread_over_the_split(dataset: str, tmp_path: Path) -> None:
    reader = _reader(dataset)
    sheets = list(draw_sheets(reader, reader.manifest, 2, 0, 1))
    assert [sheet.title for sheet in sheets] == ["Study study000, head", "Study study007, head"]
    again = list(draw_sheets(_reader(dataset), reader.manifest, 2, 0, 1))
    assert [sheet.image for sheet in sheets] == [sheet.image for sheet in again]
    picture = np.asarray(Image.open(io.BytesIO(sheets[0].image)).convert("RGB"), dtype=int)
    purple = (abs(picture - [123, 79, 163]).max(axis=2) < 25).mean()
    assert purple > 0.005, "half of the tokens are left out, and seen to be"
