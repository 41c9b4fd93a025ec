from __future__ import annotations

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest

from fm.engine import checkpoint
from fm.engine.checkpoint import CheckpointError, CheckpointStore


def save(store: CheckpointStore, step: int) -> Path:
    partial = store.begin(step)
    (partial / "engine").mkdir()
    (partial / "engine" / "rank0.pt").write_bytes(bytes([step]) * 100)
    (partial / "teacher.safetensors").write_bytes(b"t" * 50)
    return store.commit(step, partial)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    for step in (1, 2, 3):
        save(store, step)
    return store


def test_keeps_the_last_and_finds_the_newest(store: CheckpointStore) -> None:
    assert store.steps() == [2, 3]
    assert store.newest(required=True) == (3, store.folder(3))
    assert not store.folder(1).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "manifest"])
def test_row_38_damage_falls_back_to_the_one_before_loudly(
    damage: str, store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store.folder(3)
    target = folder / "engine" / "rank0.pt"
    if damage == "flip":
        target.write_bytes(b"\x03" * 50 + b"\x02" + b"\x03" * 49)
    elif damage == "truncate":
        target.write_bytes(b"\x03" * 99)
    elif damage == "remove":
        target.unlink()
    elif damage == "add":
        (folder / "engine" / "rank1.pt").write_bytes(b"x")
    else:
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace("100", "99"))
        target.write_bytes(b"\x03" * 99)
    with caplog.at_level(logging.ERROR):
        assert store.newest(required=True) == (2, store.folder(2))
    assert "step-00000003" in caplog.text and "falling back" in caplog.text


def test_checkpoints_at_every_mth_step_are_kept_for_good(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, keep_every_steps=3)
    for step in range(1, 9):
        save(store, step)
    assert store.steps() == [3, 6, 7, 8]


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["engine/rank0.pt", "engine/planted.pt", "moments-00000-of-00001.safetensors"])
def test_row_48_a_checkpoint_that_tries_to_run_code(name: str, store: CheckpointStore, tmp_path: Path) -> None:
    """In place of a file it is other content, beside the files it is in no manifest: never opened either way."""
    mark = tmp_path / "ran"
    payload = pickle.dumps(Bomb(mark))
    (store.folder(3) / name).write_bytes(payload)
    assert store.newest(required=True) == (2, store.folder(2))
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the bomb is live"


def test_row_39_all_bad_is_an_error_even_where_nothing_is_required(store: CheckpointStore) -> None:
    for step in store.steps():
        (store.folder(step) / "teacher.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        store.newest(required=False)


def test_row_39_none_is_an_error_only_where_required(tmp_path: Path) -> None:
    empty = CheckpointStore(tmp_path / "none")
    assert empty.newest(required=False) is None
    with pytest.raises(CheckpointError, match="resume=required"):
        empty.newest(required=True)


@pytest.mark.parametrize("moment", ["files", "manifest", "rename", "commit", "prune"])
def test_row_34_a_save_cut_short_anywhere_leaves_the_previous_one(
    moment: str, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut by an exception at each phase, as a kill would; the next save works and cleans up."""

    class Cut(BaseException):
        pass

    def cut(*_: object, **__: object) -> None:
        raise Cut

    real = checkpoint.write_atomically
    if moment == "files":
        monkeypatch.setattr(checkpoint.hashlib, "file_digest", cut)
    elif moment in ("manifest", "commit"):
        wanted = {"manifest": "manifest.json", "commit": "COMMITTED"}[moment]
        monkeypatch.setattr(
            checkpoint, "write_atomically", lambda path, data: cut() if path.name == wanted else real(path, data)
        )
    elif moment == "rename":
        monkeypatch.setattr(Path, "rename", cut)
    else:
        monkeypatch.setattr(checkpoint.shutil, "rmtree", cut)
    with pytest.raises(Cut):
        save(store, 4)
    monkeypatch.undo()
    found = store.newest(required=True)
    assert found is not None and found[0] == (4 if moment == "prune" else 3)
    save(store, 5)
    found = store.newest(required=True)
    assert found is not None and found[0] == 5
    assert not list(store.root.glob("*.tmp"))


def test_row_40_a_full_disk_leaves_the_previous_one(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        save(store, 4)
    store.discard(4)
    assert store.newest(required=True) == (3, store.folder(3)) and not list(store.root.glob("*.tmp"))


def test_row_38_a_copied_checkpoint_of_another_run_is_no_checkpoint_without_commit(store: CheckpointStore) -> None:
    shutil.copytree(store.folder(3), store.folder(9))
    (store.folder(9) / "COMMITTED").unlink()
    assert store.steps() == [2, 3]
    with pytest.raises(CheckpointError, match="not committed"):
        store.verify(9)
