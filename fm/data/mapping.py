"""Which members and fields of foreign shards become which of ours, and how their values are read."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fm.config.errors import UserError
from fm.data.codec import MAX_VOXELS
from fm.data.sample import Contrast, LabelValue, SampleError

_VOXELS = ("nii", "nii.gz", "npy")
_FIELDS = ("patient", "split", "region", "age", "sex", "report", "spacing_mm", "affine")


class ForeignError(UserError):
    """Shards that cannot become a dataset."""


@dataclass(kw_only=True, slots=True)
class Mapping:
    """Which members and fields of a foreign sample become which of ours; see ``docs/data.md``."""

    images: dict[str, str] = field(default_factory=dict)
    """Contrast by extension; empty: by name."""
    report: str = "txt"
    metadata: str = "json"
    fields: dict[str, str] = field(default_factory=dict)
    """Their field by ours."""
    labels: list[str] = field(default_factory=list)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """(D, H, W) of npy members that come without."""

    def check(self) -> None:
        """Refuse what names nothing of ours.

        Raises:
            ForeignError: an unknown field or contrast, or a voxel member of another kind.
        """
        for name in self.fields:
            if name not in _FIELDS:
                raise ForeignError(f"fields: {name!r} is none of ours; choose from {', '.join(_FIELDS)}")
        for extension, contrast in self.images.items():
            if contrast not in list(Contrast):
                raise ForeignError(f"images: {contrast!r} is no contrast; choose from {', '.join(Contrast)}")
            if not is_voxels(extension):
                raise ForeignError(f"images: {extension} is not read; voxels end in {', '.join(_VOXELS)}")

    def contrast(self, extension: str) -> Contrast | None:
        """Contrast of a voxel member; None where it is not to be read."""
        if self.images:
            return Contrast(self.images[extension]) if extension in self.images else None
        if not is_voxels(extension):
            return None
        name = series_name(extension)
        return Contrast(name) if name in list(Contrast) else Contrast.OTHER

    def value(self, fields: dict[str, Any], name: str) -> Any:
        """One of our fields from theirs; None where it is missing."""
        return fields.get(self.fields.get(name, name))


def split_name(name: str) -> tuple[str, str, str]:
    """Key, dot and extension of a member as webdataset sees them: cut at the first dot of the file's own name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return folder + slash + stem, dot if stem else "", extension.lower()


def is_voxels(extension: str) -> bool:
    """Whether a member is read as voxels."""
    return extension in _VOXELS or extension.endswith(tuple(f".{kind}" for kind in _VOXELS))


def series_name(extension: str) -> str:
    """``t1w.nii.gz`` is the series t1w, ``nii.gz`` alone is image."""
    stem = re.sub(r"\.?(nii|nii\.gz|npy)$", "", extension)
    return re.sub(r"[^a-z0-9_]+", "_", stem).strip("_") or "image"


def parse_fields(payload: bytes | None) -> dict[str, Any]:
    """A metadata member; no fields where there is none.

    Raises:
        SampleError: no JSON object.
    """
    if payload is None:
        return {}
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        raise SampleError("its metadata is not JSON") from None
    if not isinstance(found, dict):
        raise SampleError("its metadata is no JSON object")
    return found


def read_npy(payload: bytes) -> NDArray[np.float32]:
    """A 3D array; its header is checked before anything is allocated, and objects are refused."""
    stream = io.BytesIO(payload)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_VOXELS or dtype.kind not in "uif":
        raise SampleError(f"npy of shape {shape} and type {dtype} is not one 3D volume of numbers")
    stream.seek(0)
    values = np.load(stream, allow_pickle=False).astype(np.float32)
    if not np.isfinite(values).all():
        raise SampleError("npy holds NaN or infinite voxels")
    return np.asarray(values, dtype=np.float32)


def age_of(value: Any) -> float | str | None:
    """Years as the contract has them: above 89 the category 90+."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 130:
        return "90+" if value == "90+" else None
    return "90+" if value >= 90 else float(int(value)) if value >= 2 else float(value)


def label_of(name: str, value: Any) -> LabelValue:
    """A label's value.

    Raises:
        SampleError: neither a number nor a word.
    """
    if isinstance(value, str | int | float) and (not isinstance(value, float) or math.isfinite(value)):
        return value
    raise SampleError(f"label {name} is neither a number nor a word")
