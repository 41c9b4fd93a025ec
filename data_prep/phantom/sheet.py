"""A picture sheet of a phantom: some studies, their series through the finding, the lesion outlined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray

from data_prep.phantom.dicom import file_name
from data_prep.phantom.sites import SITES, Site
from data_prep.phantom.volume import MASK_LABELS

STUDIES, COLUMNS = 14, 4


def choose(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to :data:`STUDIES` studies that show different things: lesions of each kind, atrophy, a sinus; then others."""
    wanted: dict[str, dict[str, Any]] = {}
    ordered = sorted(records, key=lambda r: (-len(r["truth"]["series"]), r["index"]))
    for record in ordered:
        labels, truth = record["labels"], record["truth"]
        region = truth["region"]
        if labels["lesion"]:
            wanted.setdefault(f"{region} {labels['lesion_kind']} {labels['lesion_grade']}", record)
        elif labels["atrophy_grade"] == 2:
            wanted.setdefault("atrophy", record)
        elif labels["sinus"] in ("left", "right"):
            wanted.setdefault("sinus", record)
        else:
            wanted.setdefault(f"{region} normal", record)
        if truth["field_t"] < 0.5:
            wanted.setdefault("bedside", record)
    rank = {name: ("hard" in name, "medium" in name, "ABDOMEN" in name, name) for name in wanted}
    chosen = {wanted[name]["index"]: wanted[name] for name in sorted(wanted, key=rank.__getitem__)}
    chosen |= {record["index"]: record for record in ordered if record["index"] not in chosen}
    return list(chosen.values())[:STUDIES]


def draw_sheet(out: Path, records: list[dict[str, Any]]) -> Path:
    """Draw ``sheet.png`` from the written files, patients' left on the picture's right as radiologists view them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = choose(records)
    rows = max(1, -(-len(chosen) // 2))
    figure = Figure(figsize=(2 * (2.3 * COLUMNS + 1.9), 2.75 * rows), facecolor="black")
    FigureCanvasAgg(figure)
    widths = [0.8, *[1.0] * COLUMNS] * 2
    grid = figure.subplots(rows, 2 * (COLUMNS + 1), squeeze=False, gridspec_kw={"width_ratios": widths})
    for cell in grid.flat:
        cell.axis("off")
    for k, record in enumerate(chosen):
        cells = grid[k % rows, (k // rows) * (COLUMNS + 1) :][: COLUMNS + 1]
        cells[0].text(
            0.0, 0.5, _caption(record), color="white", fontsize=8, va="center", ha="left", linespacing=1.5,
            transform=cells[0].transAxes,
        )  # fmt: skip
        for cell, series in zip(cells[1:], record["truth"]["series"], strict=False):
            _draw_series(cell, out, record, series)
    figure.subplots_adjust(left=0.01, right=0.995, top=0.985, bottom=0.005, wspace=0.03, hspace=0.16)
    path = out / "sheet.png"
    figure.savefig(path, dpi=80, facecolor="black", metadata={"Software": None})
    return path


def _caption(record: dict[str, Any]) -> str:
    labels, truth = record["labels"], record["truth"]
    lines = [
        f"{truth['region'].lower()}, {truth['sex']}, {truth['age_years']} y",
        f"{truth['vendor']} {truth['field_t']:g} T",
    ]
    if labels["lesion"]:
        lines += [
            f"{labels['lesion_kind']} ({labels['lesion_grade']})",
            f"{labels['lesion_side']} {labels['lesion_site']}, {labels['lesion_size_mm']} mm",
            f"best CNR {labels['lesion_cnr'] if labels['lesion_cnr'] != '' else 'undefined'}",
        ]
    else:
        lines.append("no lesion")
    if truth["region"] == "HEAD":
        lines += [f"atrophy grade {labels['atrophy_grade']}", f"opaque sinus: {labels['sinus']}"]
    return "\n".join(lines)


def _draw_series(cell: Any, out: Path, record: dict[str, Any], series: dict[str, Any]) -> None:
    mask = _mask(out, record, series)
    seen = [k for k in range(mask.shape[2]) if k not in series["dropped_slices"]]
    names = ["lesion", "sinus_opacification", "ventricle", "liver"]
    if record["labels"]["atrophy_grade"] == 2:
        names.remove("sinus_opacification")
    k = mask.shape[2] // 2
    for name in names:
        count = (mask == MASK_LABELS[name]).sum(axis=(0, 1))
        if count[seen].max(initial=0):
            k = max(seen, key=lambda s: int(count[s]))
            break
    site = next(site for site in SITES if site.code == record["truth"]["site"])
    image = _slice(out / series["folder"], site, series, k)
    # DICOM shows columns to the right and rows downwards; the mask is (column, row).
    cell.imshow(image, cmap="gray", vmin=0, vmax=1.1 * float(np.percentile(image, 98.5)), interpolation="nearest")
    for name, colour in (("lesion", "#ffb000"), ("oedema", "#3fa7ff")):
        outline = (mask[:, :, k] == MASK_LABELS[name]).T.astype(float)
        if outline.any():
            cell.contour(outline, levels=[0.5], colors=[colour], linewidths=0.7)
    ratio = series["lesion_cnr"]
    title = f"{series['contrast']} {series['plane'][:3]} {k + 1}/{mask.shape[2]}"
    cell.set_title(title + (f"  CNR {ratio:.1f}" if ratio is not None else ""), color="white", fontsize=8, pad=2)


def _mask(out: Path, record: dict[str, Any], series: dict[str, Any]) -> NDArray[np.uint8]:
    """The written mask, back in DICOM's order of columns, rows and slices."""
    image = nib.load(out / "masks" / record["truth"]["study_uid"] / f"{series['series_uid']}.nii.gz")
    voxels = np.asarray(image.dataobj)[:, ::-1, :]  # type: ignore[attr-defined]  # nibabel types load() too widely
    affine = np.array(series["affine_lps"])
    if float(np.cross(affine[:3, 0], affine[:3, 1]) @ affine[:3, 2]) < 0:
        voxels = voxels[:, :, ::-1]
    return np.asarray(voxels, np.uint8)


def _slice(folder: Path, site: Site, series: dict[str, Any], k: int) -> NDArray[np.float32]:
    """Pixels of slice `k` of the last frame."""
    slices = series["shape_columns_rows_slices"][2]
    frames = max(1, len(series["sequence"]["b_values"])) if series["contrast"] == "DWI" else 1
    path = folder / file_name(site, (frames - 1) * slices + k + 1)
    return np.asarray(pydicom.dcmread(path).pixel_array, np.float32)
