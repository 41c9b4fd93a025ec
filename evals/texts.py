"""The text that an image is matched with: findings and impression, without technique, age or sex."""

from __future__ import annotations

import re

from fm.data.sample import StudyMeta

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_AGE = re.compile(
    r"""\b\d{1,3}[\s-]*(?:years?|yrs?|yo|y/o|y\.o\.?)\b
      | \b\d{1,3}[\s-]*(?:months?|weeks?|days?)[\s-]*(?:old|of\s+age)\b
      | \b(?:aged?|age\s+of)\s*:?\s*\d{1,3}\b
      | \b\d{1,3}\s*[mf]\b
      | \b(?:teenage[rd]?|adolescent|infant|toddler|neonate|octogenarian|nonagenarian)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_SEX = re.compile(
    r"\b(?:male|female|man|woman|men|women|gentleman|lady|boy|girl|he|she|his|her|him|hers)\b", re.IGNORECASE
)
_LENGTH = re.compile(r"\b\d+(?:\.\d+)?\s*[mc]m\b", re.IGNORECASE)


def matching_text(study: StudyMeta) -> str:
    """Findings and impression of a study's report, less every sentence that states an age or a sex.

    '' where there is no report.
    """
    if study.report is None:
        return ""
    sentences = [part.strip() for part in _SENTENCE.split(study.report.diagnostic)]
    return " ".join(part for part in sentences if part and not states_age_or_sex(part))


def states_age_or_sex(sentence: str) -> bool:
    """Whether a sentence gives the patient's age or sex away; lengths in mm and cm are no ages."""
    plain = _LENGTH.sub("", sentence)
    return bool(_AGE.search(plain) or _SEX.search(plain))
