"""Members read ahead of their turn, group by group in the order of the shards: for work whose order does not matter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fm.data.index import DatasetError, Manifest, parse_study
from fm.data.sample import StudyMeta

Read = Callable[[str, str], bytes | memoryview]
"""Bytes of (study, member); raises DatasetError."""

_HEADERS = 256
"""JSON members that are asked for together."""


class Fetched:
    """Members that came ahead of their turn, or why they did not; what was not asked for ahead is read now."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._found: dict[tuple[str, str], bytes | memoryview | DatasetError] = {}

    def fetch(self, members: Sequence[tuple[str, str]]) -> None:
        """Read those of the (study, member) pairs that the index knows, together."""
        wanted = [(key, m) for key, m in dict.fromkeys(members) if m in self.manifest.sample(key).members]
        requests = [(member, self.manifest.request(*member)) for member in wanted]
        # As they lie on the disk, so that a slow one need not seek.
        requests.sort(key=lambda pair: (pair[1].shard, pair[1].where.offset))
        found = self.manifest.store.read_many([request for _, request in requests])
        self._found |= zip((member for member, _ in requests), found, strict=True)

    def __call__(self, key: str, member: str) -> bytes | memoryview:
        """The bytes, or the error in their place."""
        found = self._found.get((key, member))
        if isinstance(found, DatasetError):
            raise found
        return self.manifest.read(key, member) if found is None else found


class Sweep:
    """Each study once, its group's voxels and text read together; the next groups are under way meanwhile.

    The rows of a manifest follow the shards, so groups of neighbours are few long reads. Threads may share a sweep.
    """

    def __init__(self, manifest: Manifest, groups: Sequence[Sequence[str]], ahead: int = 2) -> None:
        """Reading starts with the first study.

        Args:
            manifest: where the members lie.
            groups: keys of the studies that are worked on together, in the manifest's order.
            ahead: groups that may wait in memory, encoded, beside those at work.
        """
        self._manifest = manifest
        self._groups = groups
        self._ahead = ahead
        self._group_of = {key: number for number, group in enumerate(groups) for key in group}
        self._left = [len(group) for group in groups]
        self._under_way: dict[int, Future[Fetched]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sweep")

    def take(self, key: str) -> Read:
        """What reads the members of a study; a second time it is read anew."""
        number = self._group_of[key]
        with self._lock:
            if self._left[number] <= 0:
                return self._manifest.read
            for near in range(number, min(number + self._ahead + 1, len(self._groups))):
                if near not in self._under_way and self._left[near] == len(self._groups[near]):
                    self._under_way[near] = self._pool.submit(self._fetched, near)
            found = self._under_way[number]
            self._left[number] -= 1
            if not self._left[number]:
                del self._under_way[number]
        return found.result()

    def _fetched(self, number: int) -> Fetched:
        fetched = Fetched(self._manifest)
        members = [(key, m) for key in self._groups[number] for m in self._manifest.sample(key).members]
        fetched.fetch([(key, m) for key, m in members if not m.endswith(".seg.b2")])
        return fetched


def read_studies(manifest: Manifest, keys: Sequence[str]) -> list[StudyMeta]:
    """The JSON members of studies, in order, many at a time.

    Raises:
        DatasetError, SampleError: one that is missing, damaged or breaks the contract.
    """
    studies = []
    for first in range(0, len(keys), _HEADERS):
        group = keys[first : first + _HEADERS]
        fetched = Fetched(manifest)
        fetched.fetch([(key, "json") for key in group])
        studies += [parse_study(key, fetched(key, "json")) for key in group]
    return studies
