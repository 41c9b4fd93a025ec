from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest

from fm.config import registry
from fm.config.compose import compose
from fm.config.errors import ConfigError
from fm.config.load import build, difference, load, save
from fm.config.root import JOBS

REQUIRED = {
    "phantom": ["out=o"],
    "prepare": ["input=i", "out=o"],
    "index": ["url=x"],
    "verify": ["url=x"],
    "withdraw": ["url=x", "patient=p"],
    "inspect": ["url=x"],
    "pretrain": ["data.url=2026_11_21"],
    "export": ["from_run=r", "out=o"],
    "evaluate": ["encoder=e", "data.url=s3://b/k"],
    "embed": ["encoder=e", "input=i", "out=o"],
    "finetune": ["data.url=u", "task.label=l"],
    "predict": ["model=m", "input=i", "out=o"],
    "demo": [],
    "doctor": [],
    "findings sheet": ["url=u", "out=o"],
    "findings score": ["sheet=s"],
    "runs list": [],
    "runs show": ["from_run=r"],
    "checkpoint list": ["from_run=r"],
    "checkpoint verify": ["from_run=r"],
    "submit": ["verb=pretrain"],
    "jobs list": [],
    "jobs logs": ["folder=runs/first"],
    "jobs cancel": ["folder=runs/first"],
    "jobs resubmit": ["folder=runs/first"],
    "checkpoint convert": ["from_run=r", "out=o"],
}

OF_OPTIONS = {
    "launch=kubernetes": ["launch.image=fm:1"],
    "launch=sagemaker": ["launch.image=fm:1", "launch.role=arn", "launch.output=s3://bucket/models"],
}
"""What an option leaves to its user."""


class Colour(StrEnum):
    RED = "red"
    OFF = "off"


@dataclass(kw_only=True, slots=True)
class Part:
    size: tuple[int, int] = (1, 2)
    colour: Colour = Colour.RED


@dataclass(kw_only=True, slots=True)
class Whole:
    part: Part
    parts: dict[str, Part] = field(default_factory=dict)
    where: Path = Path("x")
    word: str = "w"
    ratio: float | None = None


def test_types_are_restored() -> None:
    whole = build(
        Whole, {"part": {"size": [3, 4]}, "parts": {"a": {"colour": "off"}}, "where": "y/z", "word": "${word}"}
    )
    assert whole.part.size == (3, 4)
    assert whole.parts["a"].colour is Colour.OFF
    assert whole.where == Path("y/z")
    assert whole.word == "${word}"


def test_yaml_booleans_are_words_of_an_enum() -> None:
    assert build(Whole, {"part": {"colour": False}}).part.colour is Colour.OFF


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"part": {"size": [1, 2, 3]}}, "part.size"),
        ({"part": {"colour": "rad"}}, "did you mean red"),
        ({"part": {"coulor": "red"}}, "did you mean part.colour"),
        ({"parts": {"a": {"coulor": "red"}}}, "parts.a.coulor"),
        ({"part": 3}, "is a section"),
        ({"ratio": "much"}, "ratio"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(Whole, values)


def shipped() -> list[tuple[str, list[str]]]:
    """Every verb as it is, every option of every group in the verb that has them all, every experiment in each verb."""
    options = [f"{group}={name}" for group in registry.GROUPS[1:] for name in registry.options(group)]
    cases = [("finetune" if word.startswith("task=") else "demo", [word]) for word in options]
    for verb, job in JOBS.items():
        experiments = registry.options("experiment") if set(registry.keys(job)) & set(registry.GROUPS) else []
        cases += [(verb, []), *((verb, [f"experiment={name}"]) for name in experiments)]
    return cases


def test_the_demo_has_every_group_that_has_options_but_the_task() -> None:
    groups = {group for group in registry.GROUPS[1:] if registry.options(group)}
    assert groups - {"task"} <= set(registry.keys(JOBS["demo"]))


@pytest.mark.parametrize(("verb", "words"), shipped(), ids=lambda value: str(value))
def test_every_shipped_configuration_composes_and_round_trips(verb: str, words: list[str], tmp_path: Path) -> None:
    job = compose(verb, [*REQUIRED[verb], *words, *(more for word in words for more in OF_OPTIONS.get(word, []))])
    save(job, tmp_path / "run.yaml", verb=verb)
    again = load(tmp_path / "run.yaml")
    assert again == job
    assert type(again) is type(job)
    for name in registry.keys(type(job)):
        assert type(getattr(again, name)) is type(getattr(job, name))


def test_a_file_that_is_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"no run\.yaml"):
        load(path)
    path.write_text("about: {verb: pretrian}\n")
    with pytest.raises(ConfigError, match="pretrain"):
        load(path)
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_difference_names_dotted_keys_with_both_values() -> None:
    one = compose("pretrain", ["data.url=x"])
    two = compose("pretrain", ["data.url=y", "optim.warmup_steps=7"])
    found = difference(one, two)
    assert found == {"data.url": ("x", "y"), "optim.warmup_steps": (one.optim.warmup_steps, 7)}
