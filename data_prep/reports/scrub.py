"""Rules for identifiers that no header names: numbers and dates by their form, people by what stands beside them.

A rule is tuned to take the identifier and leave the sentence: names end at the first word that reports use.
"""

from __future__ import annotations

import re

from data_prep.reports.people import PARTICLES, REMOVED, WORD, Known, fold, remove_known, remove_words
from data_prep.reports.places import remove_places
from data_prep.reports.vocabulary import EPONYM_NOUNS, EPONYMS, EVERYDAY, given_names, is_clinical

_MONTH = (
    r"(?:jan(?:uary|uar|vier)?|feb(?:ruary|ruar)?|f[ée]vrier|mar(?:ch|s|zo)?|m[äa]rz|apr(?:il|ile)?|avril|mai|june?|juni|"
    r"juin|july?|juli|juillet|aug(?:ust)?|ao[ûu]t|sept?(?:ember|embre)?|o[ck]t(?:ober|obre|ubre)?|nov(?:ember|embre)?|"
    r"de[cz](?:ember|iembre)?|d[ée]cembre)"
)
_YEAR = r"(?:19|20)\d\d"
_DIGITS = r"(?:(?:[./-]|[ ]?[()]{1,2}[ ]?|[ ](?:-[ ])?)?\d)"
"""A further digit of a telephone number: the end of a sentence is no separator."""
_EXTENSION = r"(?:\s*(?:x|ext\.?)\s*\d+)?"
_RECORD = (
    r"mrn|m\.r\.n\.|nhs|acc(?:ession)?|case|id|record|patient|hospital|insurance|policy|order|request|referral|file|chart|"
    r"visit|encounter|specimen|sample|histology|pathology|social security|ssn|passport|licen[cs]e|serial|barcode"
)
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i)[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
        r"(?i)\b(?:https?://|www\.)\S+[\w/]",
        r"\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b",
        r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})\b",
        rf"\b(?:0?[1-9]|[12]\d|3[01]) (?:0?[1-9]|[12]\d|3[01]) {_YEAR}\b",
        rf"\b(?:0?[1-9]|1[0-2])[-/.]{_YEAR}\b",
        rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th)?[\s.-]*(?:of\s+|de\s+)?{_MONTH}\b(?:(?:[\s.,-]*(?:de\s+)?{_YEAR}|-\d\d|\s?'\d\d)\b)?",
        # "grade 2 may represent": May needs an ordinal or a year, or a capital before no verb
        rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th)\s+(?:of\s+)?may\b(?:[\s,-]*{_YEAR}\b)?|\b\d{{1,2}}[\s.-]*(?:of\s+)?may"
        rf"(?:[\s.,-]+{_YEAR}|-\d\d|\s?'\d\d)\b",
        r"\b\d{1,2}[ -]May\b(?!\s+[a-z])",
        rf"(?i)\b(?:{_MONTH}|may)\.?\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?!\s*(?:mm|cm|ml|x|months?|weeks?|years?|days?)\b)"
        rf"(?:,?\s*{_YEAR}\b)?",
        rf"(?i)\b(?:{_MONTH}|may)\.?,?\s+{_YEAR}\b",
        rf"(?i:\b(?:in|since|from|until|by|last|this|early|late|mid|end of|of))\s+(?:(?i:{_MONTH})|May)\b(?!\s+[a-z])",
        rf"(?i)\b(?:in|from|since|of|dated?|year|prior|previous|study|exam|mri|ct)\s+({_YEAR})\b(?!\s*(?:ms|mm|ml|cm|hz))",
        r"(?i)\b\d{1,2}[:.]\d{2}(?::\d{2})?\s*(?:h\b|hrs?\b|am\b|pm\b|uhr\b|o'clock)",
        r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b",
        rf"(?i)\b(?:tel|phone|telephone|fax|pager|bleep|call|ext|extension|mobile|cell|contact|direct line|line is|"
        rf"reached (?:on|at))\b[ .:#]*\+?\(?\d{_DIGITS}{{3,}}{_EXTENSION}",
        rf"\+\d{_DIGITS}{{7,}}{_EXTENSION}|\(\+?\d{{2,5}}\)[ -]*\d{_DIGITS}{{5,}}{_EXTENSION}",
        r"\b(?:\d{3}-)?\d{3}[-. ]\d{3}[-. ]\d{4}\b(?:\s*(?:x|ext\.?)\s*\d+)?|\b0\d{1,4}[-/ ]\d{4,}\b",
        r"\b0\d{1,4}(?:[-./ ]{1,2}\d{2,4}){2,5}\b|\b\d{1,4}(?:[-.]\d{2,4}){3,5}\b|\b\d{2} \d{4,5}[- ]\d{4}\b",
        rf"(?i)\b(?:{_RECORD})\b(?:\s*(?:id|no|nr|number|code)\b)?[\s.:#]*(?=[\w/-]*\d[\w/-]*\d)[\w/-]{{4,}}",
        rf"(?i)\b(?:{_RECORD})\s*(?:id|no|nr|number)\b[\s.:#]*(?=[\w/-]*\d)[\w/-]{{3,}}",
        r"\b\d{6,}\b|\b\d{3}-\d{2}-\d{4}\b|\b\d{2,4}-\d{4}-\d{2,6}\b",
        r"\b(?!(?:TR|TE|TI|FOV|ETL|PI|LI|BI|HLA|IDH)-)(?=[A-Z0-9-]*\d{3})(?=[A-Z0-9-]*[A-Z]{2})[A-Z][A-Z0-9-]{5,}\b|\b[A-Z]{1,3}[-/]?\d{5,}\b|\b[A-Z]\d{2}[-/]\d{4,}\b",
        r"(?i)\b(?:9\d|1[0-2]\d)(?=\s*-?\s*(?:years?|yrs?|y/?o|yo|jährig\w*|jahre|ans|años|anni)\b)",
        r"(?i)\b(?:aged?|age of|age is|alter)\s*:?\s+(?:9\d|1[0-2]\d)\b",
    )
)
_ROLE = (
    r"(?:neuro)?radiologist|radiographer|technologist|technician|registrar|resident|fellow|attending|surgeon|"
    r"neuro(?:logist|surgeon)|oncologist|physician|cardiologist|urologist|clinician|gp|nurse|secretary|typist|"
    r"transcriptionist|midwife|physiotherapist|interpreter|chaperone|referrer|operator|consultant|reader|author|matron"
)
_KIN = (
    r"mother|father|mum|mom|dad|parents?|wife|husband|spouse|partner|fianc[ée]e?|son|daughter|sister|brother|sibling|twin|"
    r"aunt|uncle|niece|nephew|cousin|grand(?:mother|father|son|daughter|parents?)|guardian|carer|caregiver|friend|"
    r"neighbou?r|next of kin|(?:mother|father|son|daughter|sister|brother)-in-law"
)
_WHOSE = r"his|her|the|their|an?|our|my"
_DONE = (
    r"reported|dictated|signed|read|reviewed|approved|verified|authori[sz]ed|discussed|transcribed|typed|communicated|"
    r"conveyed|relayed|phoned|telephoned|explained|handed|sent|faxed|forwarded|given|referred|requested|ordered|"
    r"performed|scanned|supervised|checked|countersigned|validated|seen|examined|operated|attended|accompanied|"
    r"written|interpreted|prepared|spoke|spoken|talked|consulted|taken|obtained|described|known"
)
_SURE = re.compile(
    r"(?<!\w)(?:(?:Mr|Ms|Miss|Mx|Sir|Sister|Nurse|Doctor|Professor|DOCTOR|PROFESSOR|Mrs|mrs)|(?i:drs?|prof|herr|frau|mme))"
    r"\b\.?(?:[ ]+(?:Dr|Prof|med)\b\.?)*[ \t]+(?!\[)"
)
"""What a name follows whatever it looks like; MR, MS and MRS are resonance, sclerosis and spectroscopy."""
_LIKELY = re.compile(
    rf"(?i)\b(?:{_DONE})(?:\s+(?:off|over|back|out|directly|electronically|today|and|\w+ly))*"
    r"(?:\s+(?:by|with|to|from|through|as)){1,2}\s*:?\s+(?!\[)"
    r"|\b(?:informed|notified|paged|contacted|alerted|telephoned|phoned|referring|referrer|dear|attn|née|thank you|"
    r"thanks)\b[\s:,]+(?!\[)"
    rf"|\b(?:{_ROLE})s?\b\s*(?:[,:(]\s*|\s(?:is|was)\s+|\s)(?!\[)"
    rf"|\b(?:{_KIN})\b\s*(?:[,:(]\s*|\s(?:is|was|called|named)\s+|\s)(?!\[)"
    r"|(?:^|(?<=[.;!?] )|(?<=\n))(?:patient(?:'s)?(?: name)?|name|re|cc|copy to|copies to|ordered by|contact|signed|"
    r"typed|dictated|verified|approved|reported|reporting|reviewed|countersigned|authori[sz]ed|witness|relative|"
    r"nok)\s*[:=]\s*(?!\[)"
)
"""What a name often follows: the next word must be written as one."""
_RELATED = re.compile(
    rf"(?<!\w)(?P<name>{WORD.pattern}(?:,?[ ](?!(?:{_WHOSE})\b){WORD.pattern}){{0,2}})"
    rf"(?:,\s*|\s+\(?|\s*\()(?:(?:{_WHOSE})\s+)?"
    rf"(?i:{_KIN}|{_ROLE})\b"
)
_DEGREE = re.compile(
    rf"(?<!\w)(?P<name>(?:[^\W\d_a-z]\.\s?){{0,3}}{WORD.pattern}(?:,?[ ]{WORD.pattern}){{0,2}}),?\s+"
    r"(?:MD|M\.D\.|FRCR|FRANZCR|FRCS|PhD|MBBS|MRCP|consultant radiologist)\b"
)
_PREFIX = re.compile(rf"(?:(?:{'|'.join(sorted(PARTICLES | {'die'}))})[ ]+)+(?=[^\W\d_a-z])")
_RUN = re.compile(rf"(?<!\w)(?:[^\W\d_]\.[ ]?){{0,3}}{WORD.pattern}(?:,?[ ](?:[^\W\d_]\.|{WORD.pattern}))*")
_INITIALS = re.compile(rf"(?<![\w.])(?P<initials>(?:[^\W\d_a-z]\.[ ]?){{1,3}})(?P<name>{WORD.pattern})")
_LATIN = re.compile(r"(?:us|is|a|um|ae|alis|i)$")
_SIGNING = frozenset(
    re.findall(
        r"\w+",
        """electronically digitally signed reported dictated verified approved authorised authorized discussed
        communicated transcribed typed and by with to on at dr prof med telephone phone consultant radiologist
        registrar""",
    )
)
"""A line of nothing but these words and what was removed is a signature: it says which hospital wrote, and no more."""


def scrub(text: str, found: Known) -> str:
    """Replace identifiers by ``[removed]``; runs of them become one, and spaces are evened out."""
    for pattern in _PATTERNS[:2]:  # mail and links before the names that stand in them
        text = pattern.sub(REMOVED, text)
    text = remove_places(remove_known(text, found))
    for pattern in _PATTERNS[2:]:
        text = pattern.sub(REMOVED, text)
    text = _after(text, _SURE, sure=True, keep_cue=False)
    text = _after(text, _LIKELY, sure=False, keep_cue=True)
    for rule in (_DEGREE, _RELATED):
        text = rule.sub(_without_group, text)
    text = _INITIALS.sub(_without_initials, text)
    text = remove_words(_RUN.sub(_without_given, text), found)
    text = re.sub(rf"(?<!\w)(?:(?:{'|'.join(sorted(PARTICLES))})\s+)+(?=\[removed\])", "", text)
    text = re.sub(r"\[removed\](?:[\s,;/^-]*\[removed\])+", REMOVED, text)
    text = re.sub(r"(?i)\b(?:drs?|prof|professor|doctor)\b\.?\s*(?=\[removed\])", "", text)
    text = "\n".join(line for line in text.split("\n") if not _is_signature(line))
    return re.sub(r"[ \t]+", " ", text).strip()


def _is_signature(line: str) -> bool:
    return REMOVED in line and all(word.lower() in _SIGNING for word in WORD.findall(line.replace(REMOVED, "")))


def _after(text: str, cue: re.Pattern[str], sure: bool, keep_cue: bool) -> str:
    """Remove the name that follows each cue."""
    pieces: list[str] = []
    place = 0
    for match in cue.finditer(text):
        if match.start() < place:
            continue
        end = _name_end(text, match.end(), sure)
        if end is not None:
            pieces += [text[place : match.end() if keep_cue else match.start()], REMOVED]
            place = end
    return "".join((*pieces, text[place:]))


def _name_end(text: str, start: int, sure: bool) -> int | None:
    """Where the name ends that starts here; None where none does."""
    shouted = _shouted(text, start)
    prefix = _PREFIX.match(text, start)
    end, count, place = None, 0, prefix.end() if prefix is not None else start
    while count < 4:
        initial = re.compile(r"[^\W\d_a-z]\.(?=[\s,]|[^\W\d_a-z])").match(text, place)
        word = initial or WORD.match(text, place)
        if word is None:
            break
        if (
            initial is None
            and not (fold(word.group()) in PARTICLES and count)
            and not (
                _first(text, word, sure, shouted)
                if count == 0 or end is None
                else _further(word.group(), shouted, sure)
            )
        ):
            break
        if initial is not None or fold(word.group()) not in PARTICLES or end is None:
            end = word.end() if initial is None or sure or end is not None else end
        count += 1
        gap = re.compile(r"[ \t]*(?:-|,(?=[ ][^\W\d_a-z]))?[ \t]*").match(text, word.end())
        place = gap.end() if gap is not None else word.end()
    return end


def _first(text: str, word: re.Match[str], sure: bool, shouted: bool) -> bool:
    """Whether a word can begin a name after a cue."""
    token, folded = word.group(), fold(word.group())
    if sure and (token[0].isupper() or not is_clinical(folded)):
        return True
    if not token[0].isupper() or _is_eponym(text, word, folded):
        return False
    if shouted:
        return len(token) > 2 and not is_clinical(folded) and folded not in EPONYMS
    if token.isupper() and len(token) < 5 and token not in given_names():
        return False
    return folded in EVERYDAY or not is_clinical(folded)


def _further(token: str, shouted: bool, sure: bool) -> bool:
    """Whether a word goes on a name."""
    folded = fold(token)
    if is_clinical(folded) and (shouted or not token[0].isupper() or not {folded, folded.removesuffix("s")} & EVERYDAY):
        return False
    return token[0].isupper() or (sure and token.islower() and len(token) > 2)


def _is_eponym(text: str, word: re.Match[str], folded: str) -> bool:
    """Whether a name stands for anatomy or disease here: Rathke cleft, Bell's palsy, Hill-Sachs."""
    following = WORD.match(text, word.end() + 1)
    noun = following is not None and fold(following.group()) in EPONYM_NOUNS
    halves = re.split(r"['’-]", folded)
    return noun or (len(halves) > 1 and all(half in EPONYMS for half in halves if len(half) > 1))


def _shouted(text: str, place: int) -> bool:
    """Whether the line around a place is all capitals."""
    start, end = text.rfind("\n", 0, place) + 1, text.find("\n", place)
    line = text[start : end if end >= 0 else len(text)].replace(REMOVED, "")
    return line.isupper()


def _without_group(match: re.Match[str]) -> str:
    """Remove the name before a relation, role or degree, from its first word that is none of reports."""
    text, start = match.string, match.start("name")
    words = list(re.finditer(rf"(?:[^\W\d_a-z]\.|{WORD.pattern})", match.group("name")))
    shouted = _shouted(text, start)
    taken = len(words)
    while taken and (
        _further(words[taken - 1].group().rstrip("."), shouted, False)
        or (0 < taken - 1 < len(words) - 1 and words[taken - 1].group() in PARTICLES)
    ):
        taken -= 1
    if taken == len(words):
        return match.group()
    first = words[taken]
    if match.re is _RELATED and taken == len(words) - 1 and fold(first.group()) in EVERYDAY | EPONYMS:
        return match.group()
    whole = match.group()
    return whole[: first.start()] + REMOVED + whole[words[-1].end() :]


def _without_initials(match: re.Match[str]) -> str:
    """Remove J. Smith; not the label of a list or figure (A. Axial), nor Latin (M. rectus)."""
    name, folded = match.group("name"), fold(match.group("name"))
    if not name[0].isupper() or len(name) < 3 or is_clinical(folded) or _shouted(match.string, match.start()):
        return match.group()
    if match.group("initials").strip() in ("A.", "M.", "N.", "V.", "R.") and _LATIN.search(folded):
        return match.group()
    word = WORD.match(match.string, match.start("name"))
    return match.group() if word is not None and _is_eponym(match.string, word, folded) else REMOVED


def _without_given(match: re.Match[str]) -> str:
    """Remove a given name with the family name beside it, from a run of words."""
    run = match.group()
    words = list(WORD.finditer(run))
    shouted = _shouted(match.string, match.start())
    cut: list[tuple[int, int]] = []
    for k, word in enumerate(words):
        token, folded = word.group(), fold(word.group())
        if (cut and word.start() < cut[-1][1]) or not token[0].isupper() or folded.upper() not in given_names():
            continue
        absolute = WORD.match(match.string, match.start() + word.start())
        if absolute is not None and _is_eponym(match.string, absolute, folded):
            continue
        first, last = k, k
        while last + 1 < len(words) and last < k + 3 and _further(words[last + 1].group(), shouted, False):
            last += 1
        if token.isupper() and len(token) < (4 if last > k else 5):  # ICA, PICA and the like are arteries
            continue
        before = words[k - 1] if k else None
        gap = run[before.end() : word.start()] if before is not None else ""
        if before is not None and gap == ", " and _family(before.group()):
            first = k - 1
        cut.append((words[first].start(), words[last].end()))
    for start, end in reversed(cut):
        run = run[:start] + REMOVED + run[end:]
    return run


def _family(token: str) -> bool:
    folded = fold(token)
    return token[0].isupper() and not is_clinical(folded) and folded not in EPONYMS
