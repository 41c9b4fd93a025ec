"""Crops that were drawn once, kept in memory up to a size."""

from __future__ import annotations

from collections import OrderedDict

from fm.data.views import SeriesView


class CropMemory:
    """Crops in memory up to a size, the least recently used forgotten first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.size = 0
        self._crops: OrderedDict[tuple[str, str, str, int], SeriesView] = OrderedDict()

    def get(self, place: tuple[str, str, str, int]) -> SeriesView | None:
        """The crop of (study, series, view, slot), or None."""
        if place in self._crops:
            self._crops.move_to_end(place)
        return self._crops.get(place)

    def __contains__(self, place: tuple[str, str, str, int]) -> bool:
        return place in self._crops

    def put(self, place: tuple[str, str, str, int], cropped: SeriesView) -> None:
        """Keep a crop, if it fits at all."""
        self._crops[place] = cropped
        self.size += cropped.patches.nbytes
        while self.size > self.limit:
            _, gone = self._crops.popitem(last=False)
            self.size -= gone.patches.nbytes
