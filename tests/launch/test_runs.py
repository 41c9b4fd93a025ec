from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fm.config import registry
from fm.config.compose import expand, parse
from fm.config.errors import ConfigError, UserError
from fm.config.jobs.training import PretrainJob
from fm.config.load import load
from fm.data.store import Access
from fm.engine.places import keep_run
from launch import runs

TINY = ["experiment=demo"]
TINY_DIM = yaml.safe_load((registry.CONFIGS / "model" / "tiny.yaml").read_text())["dim"]


@pytest.fixture(autouse=True)
def dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Datasets by URL, in place of shards on disk; the tests change what a URL holds."""
    held: dict[str, str] = {"x": "id-x", "y": "id-y"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_dataset_id", lambda job: held[job.data.url])
    return held


def open_run(*words: str) -> Any:
    return runs.open_run(parse("pretrain", list(words)))


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_run(*words)
    return str(caught.value)


def test_without_run_the_folder_is_named_by_experiment_and_time() -> None:
    job = open_run("data.url=x", *TINY)
    folder = Path(job.run)
    assert folder.parent == Path("runs/demo")
    assert folder.name.endswith("Z") and len(folder.name) == 16
    assert Path(open_run("data.url=x").run).parent == Path("runs/pretrain")


def test_a_new_folder_gets_run_yaml_with_commit_and_dataset() -> None:
    job = open_run("data.url=x", "run=r", "optim.warmup_steps=3")
    about = yaml.safe_load(Path("r/run.yaml").read_text())["about"]
    assert about["verb"] == "pretrain" and about["dataset_id"] == "id-x" and about["commit"]
    assert load(Path("r/run.yaml")) == job
    (line,) = runs.attempts(Path("r"))
    assert line["attempt"] == 1
    assert line["overrides"] == ["data.url=x", "run=r", "optim.warmup_steps=3"]
    assert line["changes"] == {}


def test_run_alone_resumes_with_the_stored_configuration() -> None:
    first = open_run("data.url=x", "run=r", "optim.warmup_steps=3", *TINY)
    assert open_run("run=r") == first
    assert open_run("run=r", "data.url=x", "optim.warmup_steps=3", *TINY) == first
    assert open_run("run=r", "optim.warmup_steps=3") == first
    assert len(runs.attempts(Path("r"))) == 4


def test_row_46_overrides_that_differ_are_refused_with_the_difference() -> None:
    open_run("data.url=x", "run=r", "optim.warmup_steps=3")
    before = Path("r/run.yaml").read_bytes()
    said = refused("run=r", "optim.warmup_steps=4")
    assert "optim.warmup_steps is 3 there, 4 here" in said
    assert "model." in refused("run=r", "model=tiny")
    assert "data.url is x there, y here" in refused("run=r", "data.url=y")
    assert Path("r/run.yaml").read_bytes() == before
    assert len(runs.attempts(Path("r"))) == 1


def test_what_an_attempt_may_change_is_recorded_and_stays() -> None:
    open_run("data.url=x", "run=r")
    before = Path("r/run.yaml").read_bytes()
    job = open_run("run=r", "max_steps=7", "launch.processes=3", "tracker.wandb=off", "launch=local")
    assert (job.max_steps, job.launch.processes) == (7, 3)
    assert Path("r/run.yaml").read_bytes() == before
    changes = runs.attempts(Path("r"))[-1]["changes"]
    assert changes == {"max_steps": 7, "launch.processes": 3, "tracker.wandb": "off"}
    layout = open_run("run=r", "trainer.stage=1", "data.micro_batch_size=8", "data.workers=2")
    assert (layout.trainer.stage, layout.data.micro_batch_size, layout.data.workers) == (1, 8, 2)
    again = open_run("run=r", "max_steps=9")
    assert (again.max_steps, again.launch.processes) == (9, 3)
    assert runs.attempt_job(Path("r")) == again


def test_row_46_a_changed_dataset_is_refused_until_its_id_is_accepted(dataset: dict[str, str]) -> None:
    open_run("data.url=x", "run=r")
    dataset["x"] = "id-grown"
    said = refused("run=r")
    assert "id-x" in said and "data.accept=id-grown" in said
    assert refused("run=r", "data.accept=id-y")
    assert open_run("run=r", "data.accept=id-grown").data.accept == "id-grown"
    assert runs.attempts(Path("r"))[-1]["changes"] == {"data.accept": "id-grown"}
    assert open_run("run=r").data.accept == "id-grown"


def test_from_run_repeats_a_run_in_a_new_folder() -> None:
    open_run("data.url=x", "run=r", "optim.warmup_steps=3", *TINY)
    open_run("run=r", "max_steps=9")
    job = open_run("from_run=r", "run=new")
    assert (job.optim.warmup_steps, job.max_steps, job.model.dim, job.run) == (3, 9, TINY_DIM, "new")
    assert yaml.safe_load(Path("new/run.yaml").read_text())["about"]["from_run"] == "r"
    other = open_run("from_run=r", "run=newer", "seed=5", "model=base")
    assert (other.seed, other.model.dim, other.optim.warmup_steps) == (5, 768, 3)
    assert "new folder" in refused("from_run=r", "run=new")
    assert "cannot be read" in refused("from_run=absent", "run=z")
    assert not Path("z").exists()


def test_a_folder_that_is_no_run_is_refused() -> None:
    Path("full").mkdir()
    Path("full/thing").write_text("")
    assert "name a new folder" in refused("run=full", "data.url=x")
    Path("file").write_text("")
    assert "name a new folder" in refused("run=file", "data.url=x")
    Path("empty").mkdir()
    assert open_run("run=empty", "data.url=x").run == "empty"


def test_a_run_of_another_verb_is_refused() -> None:
    open_run("data.url=x", "run=r")
    with pytest.raises(ConfigError, match="is a run of fm pretrain, not of fm evaluate"):
        runs.open_run(parse("evaluate", ["run=r", "data.url=x", "encoder=e"]))


def test_nothing_is_written_where_configuration_or_data_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data.url" in refused("run=r")
    monkeypatch.undo()
    with pytest.raises(UserError, match="not a dataset"):
        open_run("data.url=/no/such/dataset", "run=/no/such/run")
    assert not Path("r").exists() and not Path("/no").exists()


def test_a_torn_last_attempt_is_left_out() -> None:
    open_run("data.url=x", "run=r")
    with open("r/attempts.jsonl", "a") as file:
        file.write('{"attempt": 2, "cha')
    assert open_run("run=r").run == "r"
    lines = Path("r/attempts.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["attempt"] == 2
    assert [line["attempt"] for line in runs.attempts(Path("r"))] == [1, 2]


def test_a_stage_goes_on_where_its_job_is_the_same() -> None:
    job = runs.start(
        "pretrain",
        {
            "data": {"url": "x"},
            "model": {"kind": "vit_text"},
            "objective": {"kind": "joint"},
            "launch": {"kind": "local"},
        },
        Path("s"),
    )
    assert isinstance(job, PretrainJob)
    assert runs.open_stage("pretrain", job, Path("s")) == job
    job.seed = 4
    with pytest.raises(ConfigError, match="seed is 0 there, 4 here"):
        runs.open_stage("pretrain", job, Path("s"))


def test_each_job_of_a_sweep_has_its_own_child_folder() -> None:
    request = parse("pretrain", ["data.url=x", "run=parent", "model=tiny,base", "seed=1,2"])
    parent = runs.sweep_parent(request)
    children = [runs.sweep_child(parent, n, job, request) for n, job in enumerate(expand(request))]
    folders = [child.chosen("run") for child in children]
    assert folders[1] == "parent/001,model=tiny,seed=2"
    assert len(set(folders)) == 4
    job = runs.open_run(children[3])
    assert (job.model.dim, job.seed) == (768, 2)


def test_a_lost_folder_is_made_anew_from_the_place_of_its_checkpoints(tmp_path: Path) -> None:
    place = f"trainer.checkpoint_url={tmp_path / 'far'}"
    words = ("data.url=x", "run=r", "optim.warmup_steps=3", place, *TINY)
    first = open_run(*words)
    keep_run(Path("r"), str(tmp_path / "far"), Access())
    shutil.rmtree("r")
    assert "run=r holds another run: optim.warmup_steps is 3 there, 4 here" in refused(*words, "optim.warmup_steps=4")
    assert not Path("r").exists(), "nothing is left of a run that was refused"
    assert open_run(*words) == first
    assert [line["attempt"] for line in runs.attempts(Path("r"))] == [1, 2]
    assert "holds another run: name a new place" in refused("from_run=r", "run=again")
    assert "trainer.checkpoint_url is" in refused("run=r", "trainer.checkpoint_url=elsewhere")


def test_a_copy_of_a_run_goes_on_from_its_own_folder(tmp_path: Path) -> None:
    job = open_run("data.url=x", "run=r", f"trainer.checkpoint_url={tmp_path / 'far'}", *TINY)
    open_run("run=r", "trainer.log_every_steps=2")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "metrics.jsonl").write_text('{"step": 1}\n')
    runs.copy_run(Path("r"), Path("copy"), tmp_path / "step")
    copied = open_run("run=copy")
    assert (copied.trainer.checkpoint_url, copied.trainer.log_every_steps) == ("", 2)
    assert copied.model == job.model and (Path("copy") / "metrics.jsonl").is_file()
    assert [line["attempt"] for line in runs.attempts(Path("copy"))] == [1, 2, 3, 4]
