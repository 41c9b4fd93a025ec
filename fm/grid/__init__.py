"""Affine, orientation, millimetres, boxes and the body's outline: numpy only, shared by every room below."""

from __future__ import annotations

from fm.grid.affine import apply_affine, crop_affine, invert_affine, spacing_of
from fm.grid.boxes import Box, bounding_box, box_slices, clip_box, full_box
from fm.grid.foreground import border_connected_air, robust_range
from fm.grid.orientation import Reorientation, canonical_axes, plane_of

__all__ = [
    "Box",
    "Reorientation",
    "apply_affine",
    "border_connected_air",
    "bounding_box",
    "box_slices",
    "canonical_axes",
    "clip_box",
    "crop_affine",
    "full_box",
    "invert_affine",
    "plane_of",
    "robust_range",
    "spacing_of",
]
