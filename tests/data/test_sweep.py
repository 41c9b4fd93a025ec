from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import pytest

from fm.data.index import DatasetError, Manifest
from fm.data.store import Request, Store
from fm.data.sweep import Sweep, read_studies

MakeDataset = Callable[..., str]


@pytest.fixture
def remote(make_dataset: MakeDataset) -> Manifest:
    """Two shards of eight studies in an object store that answers from memory."""
    url = make_dataset(2, 8)
    fs = fsspec.filesystem("memory")
    for file in Path(url).iterdir():
        fs.pipe_file(f"/sweep/{file.name}", file.read_bytes())
    return Manifest.open("memory://sweep")


def test_a_sweep_gives_each_member_once_and_in_the_order_of_the_shards(
    remote: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    read_many = Store.read_many

    def noted(self: Store, requests: Sequence[Request]) -> list[bytes | DatasetError]:
        asked.extend((request.shard, request.where.offset) for request in requests)
        return read_many(self, requests)

    monkeypatch.setattr(Store, "read_many", noted)
    keys = remote.keys
    sweep = Sweep(remote, [keys[:5], keys[5:11], keys[11:]], ahead=1)
    got = {key: sweep.take(key)(key, "t1w.b2") for key in keys}
    assert asked == sorted(set(asked)) and len(asked) == 2 * len(keys)
    assert got == {key: remote.read(key, "t1w.b2") for key in keys}
    assert sweep.take(keys[3])(keys[3], "json") == remote.read(keys[3], "json"), "a second time it is read anew"


def test_what_cannot_be_read_is_said_when_its_turn_comes(remote: Manifest) -> None:
    where = remote.sample("k03").members["t1w.b2"]
    fs = fsspec.filesystem("memory")
    payload = bytearray(fs.cat_file(f"/sweep/{remote.sample('k03').shard}"))
    payload[where.offset + where.length - 3] ^= 1
    fs.pipe_file(f"/sweep/{remote.sample('k03').shard}", bytes(payload))
    sweep = Sweep(remote, [remote.keys])
    for key in remote.keys:
        read = sweep.take(key)
        if key == "k03":
            with pytest.raises(DatasetError, match="study k03"):
                read(key, "t1w.b2")
        else:
            assert read(key, "t1w.b2")


def test_headers_come_many_at_a_time(remote: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read_many = Store.read_many
    monkeypatch.setattr(Store, "read_many", lambda self, r: calls.append(len(r)) or read_many(self, r))
    assert [study.key for study in read_studies(remote, remote.keys)] == remote.keys
    assert calls == [16]
