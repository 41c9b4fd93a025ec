"""Faces: nothing goes on until somebody has decided; quickshear on phantom heads; a program of one's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from data_prep.convert import Volume
from data_prep.deface import deface, shear
from data_prep.ledger import QuarantineError
from data_prep.phantom import simulate
from data_prep.prepare import prepare
from data_prep.study import StudyResult
from fm.config.errors import ConfigError, UserError
from fm.config.phantom import PhantomConfig
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest
from fm.data.volume import from_sample, mask_from_sample

from .conftest import MakeSeries, head, uid

BRAIN = (1, 2, 3, 4, 5)
"""Lesion, oedema, ventricle, grey and white matter of the phantom's masks."""
EYE = 11


def test_heads_are_refused_until_somebody_has_decided(make_series: MakeSeries, tmp_path: Path) -> None:
    """One line that names the setting; a series without a region counts as a head, a knee does not."""
    make_series(folder="in/a", study="a")
    make_series(folder="in/b", study="b", BodyPartExamined=None, SeriesDescription="t2", ProtocolName="x")
    make_series(folder="in/c", study="c", BodyPartExamined="KNEE", SeriesDescription="t2", ProtocolName="x")
    config = PrepareConfig(key_file=str(tmp_path / "key"))
    with pytest.raises(UserError, match=r"2 of 3 studies .*prepare\.deface=quickshear, command, or none") as caught:
        prepare(str(tmp_path / "in"), None, None, str(tmp_path / "out"), config, 1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    summary = prepare(str(tmp_path / "in" / "c"), None, None, str(tmp_path / "out"), config, 1)
    assert summary.studies == 1
    manifest = Manifest.open(str(tmp_path / "out"))
    assert [manifest.study(key).series[0].defaced for key in manifest.keys] == [None]
    assert "113102" not in manifest.versions["confidentiality_options"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deface": Deface.command}, "needs prepare.deface_command=PROGRAM"),
        ({"deface": Deface.quickshear}, "needs prepare.brain_masks=DIR or prepare.brain_mask_command"),
        ({"deface_command": "mri_deface {input}"}, "say where its files go"),
        ({"face_margin_mm": -1.0}, "must not be negative"),
    ],
)
def test_a_step_without_its_program_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PrepareConfig(**settings)


@pytest.fixture(scope="module")
def sheared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Phantom heads before and after quickshear, with the phantom's own brain masks; the masks are stored too."""
    root = tmp_path_factory.mktemp("faces")
    config = PhantomConfig(head_share=1.0, missing_slice_share=0.0, nonaxial_share=0.4)
    simulate(root / "phantom", 2, 11, config, 1)
    for path in (root / "phantom" / "masks").rglob("*.nii.gz"):
        image: Any = nibabel.load(path)
        data = np.isin(np.asarray(image.dataobj), BRAIN).astype(np.uint8)
        (root / "brain").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, image.affine), root / "brain" / path.name)
    for out, kind in (("before", Deface.none), ("after", Deface.quickshear)):
        settings = PrepareConfig(
            key_file=str(root / "key"), masks=str(root / "phantom" / "masks"), deface=kind,
            brain_masks=str(root / "brain") if kind is Deface.quickshear else "",
        )  # fmt: skip
        prepare(str(root / "phantom" / "dicom"), None, None, str(root / out), settings, 1)
    return root / "before", root / "after"


def test_faces_go_and_brains_stay(sheared: tuple[Path, Path]) -> None:
    """Of every series: nose, mouth and chin are gone and most of the eyes, 99.9 % of the brain is as it was."""
    before, after = (Manifest.open(str(out)) for out in sheared)
    assert after.versions["confidentiality_options"].split()[-1] == "113102"
    assert "113102" not in before.versions["confidentiality_options"]
    shares = []
    for key in before.keys:
        series_after = {series.name: series for series in after.study(key).series}
        for series in before.study(key).series:
            assert (series.defaced, series_after[series.name].defaced) == ("none", "quickshear")
            whole = from_sample(series, before.read(key, f"{series.name}.b2"))
            cut = from_sample(series_after[series.name], after.read(key, f"{series.name}.b2"))
            mask = mask_from_sample(series, before.read(key, f"{series.name}.seg.b2"))
            brain = np.isin(mask, BRAIN) & whole.body
            kept = np.abs(cut.values - whole.values) <= 1.01 * (whole.scale + cut.scale)
            eyes = (mask == EYE) & whole.body
            assert eyes.any(), series.name
            place = np.moveaxis(np.indices(whole.body.shape), 0, -1) @ whole.affine[1:3, :3].T + whole.affine[1:3, 3]
            low = place[eyes][:, 1].mean() - 10
            face = whole.body & (place[..., 0] > place[eyes][:, 0].min()) & (place[..., 1] < low)
            removed = cut.values <= cut.offset + 1.01 * cut.scale
            shares.append((removed[eyes].mean(), removed[face].mean(), kept[brain].mean()))
    eyes_gone, face_gone, brain_kept = np.array(shares).min(axis=0)
    print(
        f"\n{len(shares)} series: at least {face_gone:.4f} of the face below the eyes and {eyes_gone:.3f} of the eyes"
    )
    print(f"removed, at least {brain_kept:.5f} of the brain as it was")
    assert face_gone == 1.0 and eyes_gone >= 0.5 and brain_kept >= 0.999


def test_the_plane_spares_the_brain_in_any_axes() -> None:
    """Seen from the side the brain is a half disc with a tail; flipped and turned axes give the same cut."""
    x, y, z = np.mgrid[-60:61:4, -90:91:4, -90:91:4]
    brain = ((y / 80) ** 2 + (z / 70) ** 2 + (x / 60) ** 2 < 1) & (z > -20)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -60, -90, -90
    kept = shear(brain, affine, 10.0)
    assert kept[brain].all()
    assert not kept[(y > 85) & (z < -30)].any() and kept[z > 20].all()
    turned = affine[:, [2, 0, 1, 3]].copy()
    turned[:3, 3] += turned[:3, 0] * (brain.shape[2] - 1)
    turned[:3, 0] *= -1
    assert np.array_equal(shear(brain.transpose(2, 0, 1)[::-1], turned, 10.0), kept.transpose(2, 0, 1)[::-1])
    with pytest.raises(QuarantineError, match="no_brain_mask"):
        shear(brain & (z > 60), affine, 10.0)


def program(folder: Path, body: str) -> str:
    """A program of one's own: reads `source`, writes `target`."""
    path = folder / "program.py"
    path.write_text(f"import sys, nibabel, numpy as np\nsource, target = sys.argv[1:]\n{body}\n")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))} {{input}} {{output}}"


LOADED = "image = nibabel.load(source)\ndata = np.asarray(image.dataobj).copy()\n"
SAVED = "nibabel.save(nibabel.Nifti1Image(data, image.affine), target)\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (LOADED + "data[:10] = 0\n" + SAVED, None),
        (LOADED + "data = data[:10]\n" + SAVED, "deface_failed"),
        ("sys.exit(3)", "deface_failed"),
        ("open(target, 'w').write('no image')", "deface_failed"),
    ],
)
def test_a_program_of_ones_own(
    make_series: MakeSeries, process: Callable[..., StudyResult], tmp_path: Path, body: str, reason: str | None
) -> None:
    result = process(make_series(), deface=Deface.command, deface_command=program(tmp_path, body))
    if reason is not None:
        assert [entry.reason for entry in result.tally.entries] == [reason]
        assert result.tally.quarantined_files == 6
        return
    assert json.loads(result.members["json"])["series"][0]["defaced"] == "command"


def test_a_program_that_is_missing_is_one_line(make_series: MakeSeries, process: Callable[..., StudyResult]) -> None:
    with pytest.raises(UserError, match="no-such-program: no such program"):
        process(make_series(), deface=Deface.command, deface_command="no-such-program {input} {output}")


def test_a_brain_mask_by_a_program(tmp_path: Path) -> None:
    """Without a file the program is asked; without either, or where it fails, the series is quarantined."""
    values = head(depth=40, rows=48, columns=40).transpose(2, 1, 0).astype(np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    volume = Volume(
        values=values, affine=affine, slice_valid=np.ones(40, bool), slice_mm=[4.0 * k for k in range(40)],
        b_value=None, index=0,
    )  # fmt: skip
    body = LOADED + "_, y, z = np.indices(data.shape)\ndata = ((y - z < 15) & (z > 8)).astype(np.uint8)\n" + SAVED
    config = PrepareConfig(deface=Deface.quickshear, brain_mask_command=program(tmp_path, body))
    cut, how = deface(volume, "unknown", "", config)
    assert how == "quickshear"
    assert not cut.values[:, 40:, :4].any() and np.array_equal(cut.values[:, :20, 20:], values[:, :20, 20:])
    for config in (
        PrepareConfig(deface=Deface.quickshear, brain_mask_command=program(tmp_path, "sys.exit(1)")),
        PrepareConfig(deface=Deface.quickshear, brain_masks=str(tmp_path)),
    ):
        with pytest.raises(QuarantineError, match="no_brain_mask"):
            deface(volume, "head", "", config)
    assert deface(volume, "knee", "", config) == (volume, None)


def test_quickshear_without_a_mask_keeps_the_head_back(make_series: MakeSeries, tmp_path: Path) -> None:
    make_series(folder="in/a", study="a")
    make_series(folder="in/c", study="c", BodyPartExamined="KNEE", SeriesDescription="t2", ProtocolName="x")
    os.mkdir(tmp_path / "brains")
    config = PrepareConfig(
        key_file=str(tmp_path / "key"), deface=Deface.quickshear, brain_masks=str(tmp_path / "brains")
    )
    summary = prepare(str(tmp_path / "in"), None, None, str(tmp_path / "out"), config, 1)
    assert (summary.quarantined, summary.studies) == ({"no_brain_mask": 6}, 1)
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert f"{json.loads(line)['item']},series,{uid('aseries')}" in Path(summary.link_table).read_text()
