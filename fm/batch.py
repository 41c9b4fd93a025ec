"""The types that data, models and objectives share.

Shape legend: T tokens of the whole pack, P voxels per patch, S sequences (one per series view), B studies, L text
tokens, K phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class PackedTokens:
    """Patches of many series views, laid end to end; no padding anywhere.

    Sequence *s* owns rows ``offsets[s]:offsets[s + 1]``. A study with a missing series has one sequence fewer; a study
    without any is a hole (no sequence names it).
    """

    patches_TP: Tensor
    """(T, P) float: voxel values of each patch, normalised per series."""
    position_T3: Tensor
    """(T, 3) float32: patch centre in RAS+ mm from the centre of the series' foreground box."""
    offsets_S1: Tensor
    """(S + 1,) int64: where each sequence starts; the last entry is T."""
    contrast_S: Tensor
    """(S,) int64: index into :class:`fm.data.sample.Contrast`."""
    plane_S: Tensor
    """(S,) int64: index into :class:`fm.data.sample.Plane`."""
    agent_S: Tensor
    """(S,) int64: index into :class:`fm.data.sample.Agent`."""
    step_S33: Tensor
    """(S, 3, 3) float32: RAS+ mm from a voxel to the next; row *a* is the step along axis *a* of (D, H, W)."""
    study_S: Tensor
    """(S,) int64: row of the study in the batch, ascending."""

    @property
    def spacing_S3(self) -> Tensor:
        """(S, 3) float32: voxel spacing of the view in mm, (D, H, W)."""
        spacing: Tensor = torch.linalg.vector_norm(self.step_S33, dim=2)
        return spacing

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return (self.offsets_S1[1:] - self.offsets_S1[:-1]).tolist()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PackedTokens:
        """Move to a device; `dtype` applies to the patches only (positions stay float32)."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__}
        moved["patches_TP"] = moved["patches_TP"].to(dtype=dtype)
        return replace(self, **moved)


def concat(packs: Sequence[PackedTokens]) -> PackedTokens:
    """One pack of all sequences of `packs`, in order. Study rows are kept, so they ascend within each part only."""
    if len(packs) == 1:
        return packs[0]  # patches are the largest tensor of a step: not copied for nothing
    starts = [0, *accumulate(pack.patches_TP.shape[0] for pack in packs)]
    joined = {
        name: torch.cat([getattr(pack, name) for pack in packs])
        for name in PackedTokens.__slots__
        if name != "offsets_S1"
    }
    offsets = [pack.offsets_S1[:-1] + start for pack, start in zip(packs, starts, strict=False)]
    total = packs[0].offsets_S1.new_tensor([starts[-1]])
    return PackedTokens(offsets_S1=torch.cat([*offsets, total]), **joined)


@dataclass(kw_only=True, slots=True)
class TextBatch:
    """Tokenised texts, right-padded."""

    ids_BL: Tensor
    """(B, L) int64 token ids."""
    mask_BL: Tensor
    """(B, L) bool: True where a token stands."""
    present_B: Tensor
    """(B,) bool: False where the study has no report; its row is padding and must carry no loss."""
    identity_B: Tensor
    """(B,) int64: hash of the whole report text before augmentation; equal texts are no negatives of each other."""
    phrases_BK: Tensor
    """(B, K) bool: which phrases of :class:`fm.data.phrases.PhraseTable` the whole report holds; K may be 0."""
    cut_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(B,) int64: tokens of each text that were left out because the encoder reads no longer ones; (0,) where nobody
    counted."""

    def to(self, device: torch.device | str) -> TextBatch:
        """Move to a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__slots__})


@dataclass(kw_only=True, slots=True)
class Late:
    """What the voxels of one sequence still lack: numbers of the loader, for :func:`fm.data.touch.finish`."""

    gain: float = 1.0
    noise: float = 0.0
    """Standard deviation of what is added."""
    place: int = 0
    """Where in the bank of noise it begins."""
    field_444: NDArray[np.float64] | None = None
    """(4, 4, 4) coefficients of the bias field's logarithm; None without one."""
    corner_T3: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    """(T, 3) place of each patch's first voxel within the crop, whose axes run from −1 to 1."""
    pitch: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """From a voxel to the next, in the same units."""
    patch_voxels: tuple[int, int, int] = (1, 1, 1)


@dataclass(kw_only=True, slots=True)
class StudyBatch:
    """One rank's share of a micro-batch of studies."""

    step: int
    """Index k of the global batch that this share belongs to."""
    keys: list[str]
    """(B,) study keys, holes included."""
    weight_B: Tensor
    """(B,) float32: 1 for a usable study, 0 for a hole (a bad sample never shifts another)."""
    patient_B: Tensor
    """(B,) int64: hash of the patient's pseudonym; 0 for a hole."""
    views: dict[str, PackedTokens]
    """Named views, e.g. 'global_a', 'global_b', 'local'; all index the same B studies."""
    text: TextBatch
    late: dict[str, list[Late]] = field(default_factory=dict)
    """What each sequence of each view still lacks; empty where nothing is left to do."""

    @property
    def size(self) -> int:
        """B, holes included."""
        return len(self.keys)

    def to(self, device: torch.device | str) -> StudyBatch:
        """Move every tensor to a device."""
        return replace(
            self,
            weight_B=self.weight_B.to(device),
            patient_B=self.patient_B.to(device),
            views={name: view.to(device) for name, view in self.views.items()},
            text=self.text.to(device),
        )
