"""Structured findings from the text of a report: what it states, what it denies, and what it leaves open.

A finding that is not mentioned is missing, never negative; so is one that is only thought possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fm.config.errors import UserError

PREFIX = "report_"
"""Of the labels that findings become."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+|\s+(?=(?i:but|however|although|whereas)\b)")
_BEFORE = re.compile(
    r"(?i)\b(?:no|non|not|nor|neither|without|w/o|free (?:of|from)|absence of|absent|negative for|denies|"
    r"(?:has|have) resolved|resolution of|exclude[sd]|ruled out|unlikely|rather than)\b"
)
"""What denies the words behind it, in its part of the sentence."""
_BEHIND = re.compile(
    r"(?i)^[^,:]{0,60}?\b(?:(?:is|are|was|were) (?:not|no longer)|not (?:seen|evident|identified|present|found)|"
    r"(?:is|are) absent|(?:has|have) resolved|(?:is|are|was|were) excluded|ruled out|unlikely)\b"
)
_ENDS_DENIAL = re.compile(
    r"(?i)[:]|\b(?:with|w/|due to|but|except|apart from|other than|besides|beyond|because|in the|change (?:in|of)|"
    r"(?:is|are) (?:seen|present))\b"
)
"""What ends the reach of a denial: "no shift with a large mass"."""
_OPEN_BEFORE = re.compile(
    r"(?i)\b(?:possibl[ey]|questionable|equivocal|may|might|could|perhaps|suspicion of|query|versus|vs\.?|r/o|rule out|"
    r"to exclude|differential(?: diagnosis)?|cannot exclude|not exclude[sd]?|\?)\W*(?:\w+\W+){0,6}$|\?\s*$"
)
_OPEN_BEHIND = re.compile(
    r"(?i)^[^.]{0,60}?(?:\b(?:cannot|can not|not) be (?:excluded|ruled out)\b|\bnot (?:excluded|ruled out)\b|"
    r"\b(?:is|are) possible\b|\bversus\b|\?)"
)


class State(Enum):
    """What a report says of a finding that it mentions."""

    PRESENT = 1
    ABSENT = 0
    OPEN = -1


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, and the words that name or deny it."""

    name: str
    region: str
    present: re.Pattern[str]
    absent: re.Pattern[str] | None

    @property
    def words(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Mention:
    """What was decided of a finding, and the sentence that decided."""

    state: State
    sentence: str


@lru_cache(maxsize=4)
def read_findings(path: str) -> tuple[Finding, ...]:
    """The findings of a YAML file ('': those that are shipped): region, finding, ``present`` and ``absent``.

    Raises:
        UserError: not YAML, or not of this form; the line names the place.
    """
    where = f"prepare.findings_file={path}"
    try:
        text = (Path(path) if path else resources.files(__package__).joinpath("findings.yaml")).read_text("utf-8")
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UserError(f"{where} is no readable YAML file ({type(err).__name__})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must map regions to findings, as data_prep/reports/findings.yaml")
    found: list[Finding] = []
    for region, findings in raw.items():
        for name, words in (findings if isinstance(findings, dict) else {"": None}).items():
            place = f"{where}, {region}.{name}"
            if not isinstance(words, dict) or not words.get("present") or not _NAME.fullmatch(str(name)):
                raise UserError(f"{place}: a finding needs a name of [a-z0-9_] and a list `present` of expressions")
            if unknown := sorted(set(words) - {"present", "absent"}):
                raise UserError(f"{place}: unknown key {unknown[0]}; use present and absent")
            found.append(
                Finding(
                    name=str(name),
                    region=str(region),
                    present=_pattern(words["present"], place),
                    absent=_pattern(words["absent"], place) if words.get("absent") else None,
                )
            )
    names = [finding.name for finding in found]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: {repeated} stands there twice; a finding has one name in all regions")
    return tuple(found)


def findings_of(findings: Iterable[Finding], region: str) -> list[Finding]:
    """The findings that a study of a region is searched for; all where the region has none, or is not known."""
    own = [finding for finding in findings if finding.region == region]
    return own or list(findings)


def mentions(text: str, findings: Sequence[Finding]) -> dict[str, Mention]:
    """What a text says of each finding that it mentions: stated once counts as stated, left open before denied."""
    found: dict[str, Mention] = {}
    order = (State.PRESENT, State.OPEN, State.ABSENT)
    for sentence in _SENTENCE.split(text):
        for finding in findings:
            for state in _states(sentence, finding):
                known = found.get(finding.name)
                if known is None or order.index(state) < order.index(known.state):
                    found[finding.name] = Mention(state, sentence.strip())
    return found


def as_labels(found: Mapping[str, Mention]) -> dict[str, int]:
    """Labels of a study: 1 stated, 0 denied; what is left open is missing as what is not mentioned."""
    return {PREFIX + name: m.state.value for name, m in sorted(found.items()) if m.state is not State.OPEN}


def _states(sentence: str, finding: Finding) -> set[State]:
    if finding.absent is not None and finding.absent.search(sentence):
        return {State.ABSENT}
    return {_state(sentence, match) for match in finding.present.finditer(sentence)}


def _state(sentence: str, match: re.Match[str]) -> State:
    """Whether a sentence states, denies or leaves open what its words at `match` name."""
    before, behind = sentence[: match.start()], sentence[match.end() :]
    if _OPEN_BEFORE.search(before) or _OPEN_BEHIND.search(behind):
        return State.OPEN
    for cue in _BEFORE.finditer(before):
        if not _ENDS_DENIAL.search(before, cue.end()):
            return State.ABSENT
    inside = _BEFORE.search(match.group())
    return State.ABSENT if inside is not None or _BEHIND.search(behind) else State.PRESENT


def _pattern(words: Any, place: str) -> re.Pattern[str]:
    try:
        return re.compile(
            "|".join(f"(?:{word})" for word in ([words] if isinstance(words, str) else words)), re.IGNORECASE
        )
    except (re.error, TypeError):
        raise UserError(f"{place}: an entry is no regular expression") from None
