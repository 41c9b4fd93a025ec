from __future__ import annotations

from dataclasses import dataclass

import pytest

from fm.config import reference, registry
from fm.config.root import JOBS


@dataclass(kw_only=True, slots=True)
class Documented:
    first: int = 1
    """What the first
    is about."""
    second: str | None = None


def test_documentation_of_a_key_is_the_text_below_it() -> None:
    keys = registry.keys(Documented)
    assert keys["first"].doc == "What the first is about."
    assert keys["second"].doc == ""
    assert keys["second"].type_name == "text or null"
    assert keys["second"].default_text == "null"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("aptim.warmup_steps", "optim.warmup_steps"),
        ("optim.warmup", "optim.warmup_steps"),
        ("optim.ws", "optim.warmup_steps"),
        ("stage", "trainer.stage"),
        ("xyzzy", None),
    ],
)
def test_nearest(word: str, found: str | None) -> None:
    assert registry.nearest(word, ["optim.warmup_steps", "optim.beta", "trainer.stage"]) == found


def test_every_key_of_every_verb_has_a_type_in_words() -> None:
    for job in JOBS.values():
        for dotted, key in registry.walk(job):
            assert not key.type_name.startswith("typing."), dotted


def test_reference_page_is_up_to_date() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run make docs"
