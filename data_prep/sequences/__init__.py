"""What a series is: contrast, agent, role, plane, fat suppression, 2D or 3D, region, each with the rule that decided.

Physics tags come first, words second, voxels third: words are typed by hand and often belong to another series.
"""

from __future__ import annotations

from data_prep.sequences.answer import Answer
from data_prep.sequences.fields import is_localizer
from data_prep.sequences.recognise import Recognition, recognise

__all__ = ["Answer", "Recognition", "is_localizer", "recognise"]
