from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fm.config import registry
from fm.config.compose import compose, composed_yaml, expand, parse
from fm.config.errors import ConfigError
from fm.config.jobs.training import PretrainJob
from fm.config.model import VitTextConfig

TINY_DIM = yaml.safe_load((registry.CONFIGS / "model" / "tiny.yaml").read_text())["dim"]


def message(verb: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(verb, list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_groups_then_experiment_then_command_line() -> None:
    base = compose("pretrain", ["data.url=x"])
    tiny = compose("pretrain", ["data.url=x", "experiment=demo"])
    mine = compose("pretrain", ["data.url=x", "experiment=demo", "model=base", "model.depth=3"])
    assert isinstance(base, PretrainJob)
    assert isinstance(base.model, VitTextConfig) and base.model.dim == 768
    assert isinstance(tiny.model, VitTextConfig) and tiny.model.dim == TINY_DIM
    assert (mine.model.dim, mine.model.depth) == (768, 3)


@pytest.mark.parametrize(
    "place",
    [
        "/data/2026_11_21",
        "~/müller",
        "a=b",
        "{a},{b}",
        "x y",
        "s3://bucket/k?v=1&w=[2]",
        "${HOME}/x",
        "1e5",
        "0010",
        "'q\"",
        "\\n",
    ],
)
def test_text_is_taken_as_it_stands(place: str) -> None:
    job = compose("pretrain", [f"data.url={place}", f"run={place}"])
    assert job.data.url == place
    assert job.run == place


def test_null_clears_a_text_that_may_be_null() -> None:
    assert compose("prepare", ["input=x", "out=y", "reports=null"]).reports is None
    assert compose("prepare", ["input=null", "out=y"]).input == "null"


def test_values_take_the_type_of_their_key() -> None:
    job = compose(
        "pretrain", ["data.url=x", "model.patch_voxels=[2,8,8]", "optim.learning_rate=1e-4", "tracker.wandb=off"]
    )
    assert job.model.patch_voxels == [2, 8, 8]
    assert job.optim.learning_rate == pytest.approx(1e-4)
    assert job.tracker.wandb.value == "off"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["optim.learning_rat=1"], "optim.learning_rate"),
        (["optim.lr=1"], "optim.learning_rate"),
        (["learning_rate=1"], "optim.learning_rate"),
        (["max_step=1"], "max_steps"),
        (["modle=tiny"], "model"),
        (["model=tyni"], "tiny"),
        (["trainer.precision=bf17", "data.url=x"], "bf16"),
        (["+optim.learning_rate=1"], "write optim.learning_rate="),
        (["++optim.learning_rat=1"], "write optim.learning_rate="),
        (["~model"], "write model="),
        (["model.kind=vit_txt", "data.url=x"], "vit_text"),
        (["suite.folds=3"], "fm evaluate"),
        (["model"], "write model=VALUE"),
        (["optim.learning_rate"], "write optim.learning_rate=VALUE"),
    ],
)
def test_row_45_a_slip_names_the_nearest(words: list[str], nearest: str) -> None:
    assert nearest in message("pretrain", *words)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("max_steps=many", "max_steps"),
        ("max_steps=1.5", "int"),
        ("trainer.stage=true", "trainer.stage"),
        ("optim.learning_rate=[1", "cannot be parsed"),
        ("model.patch_voxels=[a,b,c]", "model.patch_voxels"),
        ("max_steps=0", "max_steps=0 must be at least 1"),
    ],
)
def test_row_45_a_wrong_value_is_one_line_that_names_the_key(word: str, says: str) -> None:
    assert says in message("pretrain", "data.url=x", word)


def test_missing_values_are_named() -> None:
    assert "data.url=" in message("pretrain")
    said = message("prepare", "reports=x")
    assert "input=" in said and "out=" in said


def test_a_key_that_the_verb_fills_is_refused() -> None:
    assert "leave it out" in message("demo", "data.url=x")
    assert compose("demo", []).data.url == ""


def test_own_config_folder_lies_beside_the_shipped(tmp_path: Path) -> None:
    folder = tmp_path / "my, {configs} it's"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "mine.yaml").write_text("kind: vit_text\ndim: 48\nheads: 2\n")
    (folder / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\nmax_steps: 7\n"
    )
    job = compose("pretrain", ["data.url=x", "experiment=own"], [folder])
    assert (job.model.dim, job.max_steps) == (48, 7)
    (folder / "model" / "tiny.yaml").write_text("kind: vit_text\ndim: 24\nheads: 2\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml has the name of a shipped file"):
        compose("pretrain", ["data.url=x"], [folder])
    with pytest.raises(ConfigError, match="no such folder"):
        parse("pretrain", [], [tmp_path / "absent"])


def test_a_slip_in_a_config_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "slip.yaml").write_text("warmup_step: 3\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "slip.yaml").write_text("# @package _global_\nmax_step: 3\n")
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps"):
        compose("pretrain", ["data.url=x", "optim=slip"], [tmp_path])
    with pytest.raises(ConfigError, match="max_steps"):
        compose("prepare", ["input=x", "out=y", "experiment=slip"], [tmp_path])


def test_row_48_nothing_named_in_a_config_is_run(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    mark = tmp_path / "mark"
    (tmp_path / "optim" / "evil.yaml").write_text(f"_target_: os.system\n_args_: ['touch {mark}']\n")
    with pytest.raises(ConfigError, match="_target_"):
        compose("pretrain", ["data.url=x", "optim=evil"], [tmp_path])
    assert not mark.exists()


def test_sweep_is_the_product_of_swept_values_only() -> None:
    request = parse("pretrain", ["data.url=a,b", "model=tiny,base", "optim.learning_rate=1e-3,1e-4", "run=x,y"])
    jobs = [[str(item) for item in job.overrides] for job in expand(request)]
    assert len(jobs) == 4
    assert jobs[0] == ["data.url=a,b", "model=tiny", "optim.learning_rate=0.001", "run=x,y"]
    assert jobs[3] == ["data.url=a,b", "model=base", "optim.learning_rate=0.0001", "run=x,y"]


def test_a_range_is_swept_and_an_interval_refused() -> None:
    assert [job.chosen("seed") for job in expand(parse("pretrain", ["seed=range(3)"]))] == [0, 1, 2]
    with pytest.raises(ConfigError, match="interval"):
        parse("pretrain", ["seed=interval(0,1)"])


def test_shown_configuration_marks_what_is_missing() -> None:
    text = composed_yaml(parse("pretrain", ["model=tiny"]))
    assert "url: ???" in text
    assert f"dim: {TINY_DIM}" in text
