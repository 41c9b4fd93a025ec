"""The identifiers that a study's own headers name, found in its report however they are written.

Names are looked up word by word without accents, with umlauts as one letter or two, in parts, and misspelt by a letter
or two; numbers with or without their separators; dates in the usual ways of writing.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.headers import Identity
from data_prep.reports.vocabulary import EPONYM_NOUNS, EPONYMS, EVERYDAY, is_clinical

REMOVED = "[removed]"
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
PARTICLES = frozenset(
    re.findall(r"\w+", "van von der den de del della di da do dos das du la le al el ten ter zu zum bin ibn")
)
"""Words inside names that are words of languages too: they go with the name beside them."""

_SPECIAL = str.maketrans({"ø": "o", "ł": "l", "ğ": "g", "ß": "ss", "ı": "i", "æ": "ae", "œ": "oe", "đ": "d", "þ": "th"})
_TWO_LETTERS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
_TITLE = r"(?:Drs?|Prof|Professor|Doctor|Mrs|Mr|Ms|Miss|Mx|Herr|Frau|[Pp]atient|[Nn]ame|by|for|[Rr]e)\b\.?:?\s+"
_SPELT = re.compile(r"(?<!\w)(?:[^\W\d_][\W_]{1,2}){4,}[^\W\d_](?!\w)")


@dataclass(kw_only=True, slots=True)
class Known:
    """What the headers of a study name."""

    exact: re.Pattern[str] | None
    """Numbers, places and dates."""
    names: frozenset[str]
    """Folded parts of people's names that are no words of reports, in every way of writing umlauts."""
    alike: frozenset[str] = frozenset()
    """What misspelt names are compared with: the names, and longer words among them."""
    words: tuple[tuple[str, ...], ...] = ()
    """Folded names of people who have a part that is a word of reports (White, May)."""
    digits: frozenset[str] = field(default_factory=frozenset)
    """The digits of numbers, six or more."""
    numbers: frozenset[str] = field(default_factory=frozenset)
    """Folded numbers."""


def known(identity: Sequence[Identity]) -> Known:
    """The identifiers of every series' headers, ready to be sought."""
    exact: set[str] = set()
    names: set[str] = set()
    words: set[tuple[str, ...]] = set()
    numbers: set[str] = set()
    for one in identity:
        numbers.update(word for word in one.numbers if len(word) >= 3)
        exact.update(_loose(word) for word in one.places if len(word) >= 3)
        exact.update(re.escape(written).replace(r"\ ", r"\s+") for day in one.dates for written in _written_dates(day))
        for person in one.people:
            parts = _name_parts(person)
            plain = tuple(dict.fromkeys(spelling for part in parts for spelling in (fold(part), part.lower())))
            safe = {part for part in parts if not _is_word(fold(part)) or fold(part) in EPONYMS - EVERYDAY}
            names.update(spelling for part in safe for spelling in (fold(part), _two_letters(part)))
            if len(safe) < len(parts):
                words.add(plain)
    exact.update(_separated(word) for word in numbers)
    ordered = sorted(exact, key=lambda piece: (-len(piece), piece))
    return Known(
        exact=re.compile(rf"(?i)(?<!\w)(?:{'|'.join(ordered)})(?!\w)") if ordered else None,
        names=frozenset(names),
        alike=frozenset(names) | {part for person in words for part in person if len(part) >= 5},
        words=tuple(sorted(words)),
        digits=frozenset(found for found in (re.sub(r"\D", "", word) for word in numbers) if len(found) >= 6),
        numbers=frozenset(fold(word) for word in numbers if len(word) >= 4),
    )


def remove_known(text: str, found: Known) -> str:
    """Replace what the headers name by ``[removed]``."""
    if found.exact is not None:
        text = found.exact.sub(REMOVED, text)
    written_small = {word for word in re.findall(r"(?<![\w'’-])[^\W\d_]+(?![\w'’-])", text) if word.islower()}
    text = WORD.sub(lambda word: _without_name(word, found, written_small), text)
    return remove_words(text, found)


def remove_words(text: str, found: Known) -> str:
    """Replace the names that are words of reports where they are written as names; again once other names are gone."""
    for person in found.words:
        text = _without_words(text, person)
    return text


def survivors(text: str, found: Known) -> bool:
    """Whether a known identifier is left: as a word, glued into another, spelt letter by letter, or as digits."""
    folded = fold(text)
    tokens = set(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", folded))
    letters = {part for token in tokens for part in re.split(r"[\W\d_]+", token)}
    names = {name for name in found.names if len(name) >= 3 and name not in EPONYMS}
    if names & (tokens | letters) or found.numbers & tokens:
        return True
    strange = [token for token in tokens if not is_clinical(token)]
    if any(len(name) >= 6 and name in token for name in names for token in strange):
        return True
    spelt = ["".join(re.findall(r"[^\W\d_]", run)) for run in _SPELT.findall(folded)]
    if any(len(name) >= 5 and name in run for name in names for run in spelt):
        return True
    digits = re.sub(r"(?<=\d)[\s./-](?=\d)", "", folded)
    return any(number in digits for number in found.digits)


def fold(text: str) -> str:
    """Lower case without accents."""
    spread = unicodedata.normalize("NFKD", text.lower().translate(_SPECIAL))
    return "".join(c for c in spread if not unicodedata.combining(c))


def _two_letters(text: str) -> str:
    return fold(unicodedata.normalize("NFC", text).lower().translate(_TWO_LETTERS))


def _is_word(folded: str) -> bool:
    return is_clinical(folded) or folded in EPONYMS or folded in PARTICLES or len(folded) < 2


def _name_parts(person: str) -> list[str]:
    """Parts of a DICOM person name, those of hyphenated names beside the whole."""
    parts = [part.strip("'’-_*()") for part in re.split(r"[\^=,\s.]+", person)]
    halves = [half for part in parts if "-" in part for half in part.split("-") if len(half) >= 3]
    joined = [re.sub(r"['’]", "", part) for part in parts if "'" in part or "’" in part]
    return [part for part in (*parts, *halves, *joined) if len(part) >= 2 and not part.isdigit()]


def _without_name(word: re.Match[str], found: Known, written_small: set[str]) -> str:
    text = word.group()
    bare = re.sub(r"['’]s$", "", text).replace("’", "'")
    following = WORD.match(word.string, word.end() + 1)
    if fold(bare) in EPONYMS and following is not None and fold(following.group()) in EPONYM_NOUNS:
        return text
    if "-" in bare and all(fold(half) in EPONYMS for half in bare.split("-")):
        return text
    for whole in (bare, *bare.split("-")):
        folded = fold(whole)
        if folded in found.names or _two_letters(whole) in found.names:
            return REMOVED
        if _may_be_misspelt(whole, folded, written_small) and any(_near(folded, name) for name in found.alike):
            return REMOVED
    return text


def _may_be_misspelt(word: str, folded: str, written_small: set[str]) -> bool:
    """Written with a capital, long enough, and no word of reports nor of this one."""
    return word[0].isupper() and len(folded) >= 4 and not _is_word(folded) and word.lower() not in written_small


def _near(word: str, name: str) -> bool:
    """Whether a word is a name with one letter (two from eight letters on) swapped, lost, added or changed."""
    if len(name) < 4 or word[0] != name[0] or (len(name) == 4 and len(word) < 4):
        return False
    allowed = 2 if len(name) >= 8 else 1
    return abs(len(word) - len(name)) <= allowed and _distance(word, name) <= allowed


def _distance(one: str, two: str) -> int:
    """Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours."""
    before: list[int] = []
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(two, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == two[j - 2] and one[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _without_words(text: str, person: tuple[str, ...]) -> str:
    """Remove a name that is a word of reports only where it is written as a name."""
    parts = "|".join(re.escape(part) for part in sorted(person, key=len, reverse=True))
    one = rf"(?i:(?:{parts}))"
    capital = rf"(?=[^\W\d_a-z]){one}\b"
    particles = rf"(?:(?:{'|'.join(sorted(PARTICLES))})\s+)*"
    between = rf"(?:,\s*|\s+)(?:[^\W\d_a-z]\.?\s+)?{particles}"
    text = re.sub(rf"(?<!\w)(?:{_TITLE})?{capital}(?:{between}{capital})+", REMOVED, text)
    text = re.sub(rf"(?<!\w)(?:[^\W\d_a-z]\.\s?)+{particles}{capital}", REMOVED, text)
    text = re.sub(
        rf"(?<=\[removed\])[\s,]+{particles}{capital}|(?<!\w){capital}[\s,]+(?=\[removed\])", f" {REMOVED} ", text
    )
    text = re.sub(rf"(?<!\w)(?<!MR )(?<!MS ){_TITLE}{capital}", REMOVED, text)
    # a name in capitals is one in a line that is not all capitals
    shouted = re.compile(rf"(?<!\w)(?:{parts.upper()})(?!\w)")
    return "\n".join(line if line.isupper() else shouted.sub(REMOVED, line) for line in text.split("\n"))


def _written_dates(date: str) -> set[str]:
    """The usual ways to write a DICOM date, the bare eight digits among them."""
    try:
        day = dt.date(int(date[:4]), int(date[4:6]), int(date[6:8]))
    except ValueError:
        return set()
    two, one = f"{day.day:02d}", str(day.day)
    months = (f"{day.month:02d}", str(day.month))
    written = {date[:8]}
    for year in (f"{day.year:04d}", f"{day.year % 100:02d}"):
        for separator in "-/. ":
            for d in (two, one):
                for m in months:
                    written |= {separator.join(p) for p in ((d, m, year), (m, d, year), (year, m, d))}
    for month in (day.strftime("%B"), day.strftime("%b")):
        for d in (two, one):
            written |= {f"{d} {month} {day.year}", f"{d}-{month}-{day.year}", f"{month} {d}, {day.year}"}
    return written


def _separated(number: str) -> str:
    """Match a number with or without separators between its parts."""
    parts = re.findall(r"[^\W\d_]+|\d+", number)
    return r"[\s./_-]?".join(re.escape(part) for part in parts) if parts else re.escape(number)


def _loose(word: str) -> str:
    """Match words whatever their case, accents and inner spaces; umlauts also as two letters."""
    twin = {"ä": "(?:ä|ae|a)", "ö": "(?:ö|oe|o)", "ü": "(?:ü|ue|u)", "ø": "(?:ø|oe|o)", "å": "(?:å|aa|a)"}
    pieces: list[str] = []
    for letter in word.lower():
        plain = fold(letter)
        if letter in twin:
            pieces.append(twin[letter])
        elif letter == "ß":
            pieces.append("(?:ß|ss)")
        elif letter.isspace():
            pieces.append(r"\s+")
        elif plain != letter and plain:
            pieces.append(f"(?:{re.escape(letter)}|{re.escape(plain)})")
        else:
            pieces.append(re.escape(letter))
    return "".join(pieces)
