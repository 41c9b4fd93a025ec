"""Addresses and hospitals in reports, by the words that streets and hospitals have in many languages, and postcodes."""

from __future__ import annotations

import re

from data_prep.reports.people import REMOVED, WORD, fold
from data_prep.reports.vocabulary import EVERYDAY, is_clinical

_UPPER = "A-Z" + "".join(chr(code) for code in range(0xC0, 0x250) if chr(code).isupper())
_CAPITAL = rf"(?:[{_UPPER}][^\W_]*(?:['’-][^\W_]+)*|St\.)"
_SMALL = (
    r"(?:de la|de los|de|del|della|dei|di|da|do|dos|das|du|des|la|le|van|van de|van der|den|der|am|an der|of|the|y|e|"
    r"et)"
)
_NAMES = rf"{_CAPITAL}(?:[ -](?:{_SMALL}[ ])?{_CAPITAL}){{0,3}}"
_HOUSE = r"\d{1,4}(?!\d)(?:[-/]\d{1,4})?[a-zA-Z]?\b"
_STREETS = (
    r"Street|Road|Avenue|Ave|Lane|Drive|Way|Close|Court|Place|Square|Squares|Boulevard|Blvd|Terrace|Crescent|Gardens?|"
    r"Groves?|Mews|Parkway|Parkways|Highway|Trail|Trails|Plaza|Plazas|Circles?|Loop|Alley|Walk|Walks|Row|Roads|Streets|"
    r"Courts|Lanes|Drives|Ways|Avenues|Estates?|Manors?|Heights|Hills?|Hollow|Junctions?|Ridges?|Points?|Ports?|Turnpike|"
    r"Crossing|Crossroad|Extensions?|Expressway|Freeway|Islands?|Keys?|Knolls?|Landing|Locks?|Meadows?|Mills?|Mission|"
    r"Motorway|Oval|Overpass|Passage|Pike|Pines?|Plains?|Prairie|Shoals?|Shores?|Springs?|Spurs?|Station|Stravenue|Stream|"
    r"Summit|Throughway|Track|Tunnel|Underpass|Unions?|Valleys?|Via|Viaduct|Views?|Villages?|Ville|Vista|Wells?|Sokak|"
    r"Sokağı|Caddesi|Bulvarı|Mahallesi|Marg|Nagar|Chowk|Path|Ganj|Zila"
)
_STREET = (
    rf"(?:{_HOUSE},?[ ]{_NAMES}[ ](?:{_STREETS})\b\.?"
    rf"|\b[^\W\da-z_][^\W\d_]*(?:straße|strasse|str\.|weg|platz|allee|gasse|damm|ufer|straat|laan|plein|gracht|kade|gatan|vägen|"
    rf"gränd|stigen|torget)[ ]{_HOUSE}"
    rf"|(?i:\b(?:rue|avenue|boulevard|chemin|via|viale|piazza|corso|contrada|borgo|rotonda|strada|stretto|vicolo|canale|"
    rf"incrocio|calle|avenida|avda?\.|plaza|paseo|glorieta|pasadizo|callejón|cuesta|ronda|camino|c\.|urbanización|acceso|"
    rf"alameda|cañada|via|rua|travessa|praça|largo|ladeira|vila|viaduto|estação|favela|jardim|lago|loteamento|setor|"
    rf"sítio|trecho|trevo|vale|ulica|ul\.|al\.|aleja|plac|pl\.|os\.))[ ](?:{_SMALL}[ ])?{_NAMES}(?:,?[ ]"
    rf"(?:s/n|{_HOUSE})(?:[ ][A-ZÀ-Þ]\b)?)?)"
)
_POSTCODE = (
    rf"(?:\b[A-Z]{{1,2}}\d[A-Z\d]?[ ]\d[A-Z]{{2}}\b|\b[A-Z]{{2}}[ ]\d{{5}}(?:-\d{{4}})?\b|\b\d{{5}}[ ]{_NAMES}|"
    rf"\b\d{{4}}[ ]?[A-Z]{{2}}[ ,]+{_NAMES}|\b\d{{2}}-\d{{3}}[ ]{_NAMES}|\b\d{{5}}-?\d{{3}}\b(?:[ ]{_NAMES})?|"
    rf"\b{_NAMES}[ -]\d{{6}}\b|\b\d{{3}}[ ]\d{{2}}[ ]{_NAMES})"
)
_CHUNK = (
    rf"(?:[{_UPPER}0-9][^\W_]*(?:[.'’/-]*[^\W_]+)*)"
    rf"(?:[ ](?:(?:{_SMALL}|-|\()[ ]?)?[{_UPPER}0-9][^\W_]*(?:['’/-][^\W_]+)*\)?){{0,5}}"
)
_ANCHOR = re.compile(rf"{_STREET}|{_POSTCODE}")
_BEFORE = re.compile(rf"(?<![^\s(:;])(?:{_CHUNK},[ ])+$")
_BEHIND = re.compile(rf"(?:(?:,[ ]*|[ ]-[ ])(?:{_POSTCODE}|{_CHUNK}))+")
_CUE = re.compile(
    rf"(?i:\b(?:lives? (?:at|in)|living (?:at|in)|resid(?:es|ing) (?:at|in)|resident of|home address|address|moved to))"
    rf"\s*:?\s*(?:{_HOUSE}|(?-i:[{_UPPER}]))"
    rf"[^\n]*?(?=(?<!St)(?<!Apt)(?<!No)(?<!str)(?<!\s[A-Z])[.;](?:\s+[{_UPPER}]|\s*$)|\n|$)"
)
_KIND = (
    r"(?:(?:General|University|Regional|District|Community|Children's|County|Memorial|Royal|City|Central|Teaching|"
    r"Private)[ ])*(?:Hospitals?|Clinics?|Infirmary|Medical[ ]Cent(?:er|re)|Health[ ]Cent(?:er|re)|"
    r"Imaging[ ]Cent(?:er|re)|Hospice|Sanatorium|Krankenhaus|Klinik|Klinikum|Universitätsklinikum|Praxis|Hôpital|"
    r"Clinique|Ospedale|Clinica|Clínica|Szpital|Ziekenhuis|Sjukhus|Hastanesi)"
)
_HOSPITAL_WORD = re.compile(
    r"Hospital|Clini[cqk]|Infirmary|Cent(?:er|re)\b|Hospice|Sanatorium|Krankenhaus|[Kk]lini[ck]|Praxis|Hôpital|Ospedale|"
    r"Ospedale|Clinica|Clínica|Szpital|Ziekenhuis|Sjukhus|Hastanesi"
)
_HOSPITAL = re.compile(
    rf"\b(?P<before>{_NAMES})[ ]{_KIND}\b(?:[ ](?:(?:of|in|at|de|di)[ ])?(?:the[ ])?(?P<behind>{_NAMES}))?"
    rf"|\b{_KIND}[ ](?:(?:of|in|at|de|di|am|im|zum)[ ])?(?:the[ ])?(?P<after>{_NAMES})"
)


def remove_places(text: str) -> str:
    """Replace addresses and the names of hospitals by ``[removed]``."""
    text = _CUE.sub(REMOVED, text)
    if _HOSPITAL_WORD.search(text):
        text = _HOSPITAL.sub(_without_hospital, text)
    return "\n".join(_without_address(line) for line in text.split("\n"))


def _without_address(line: str) -> str:
    """Remove streets and postcodes, and what commas tie to them."""
    pieces: list[str] = []
    place = 0
    for anchor in _ANCHOR.finditer(line):
        if anchor.start() < place:
            continue
        before = _BEFORE.search(line, max(place, anchor.start() - 80), anchor.start())
        behind = _BEHIND.match(line, anchor.end())
        pieces += [line[place : before.start() if before is not None else anchor.start()], REMOVED]
        place = behind.end() if behind is not None else anchor.end()
    return "".join((*pieces, line[place:]))


def _without_hospital(match: re.Match[str]) -> str:
    """Remove a hospital that has a name; 'the University Hospital' has none."""
    named = " ".join(match.group(part) or "" for part in ("before", "behind", "after"))
    words = [fold(word) for word in WORD.findall(named)]
    telling = [word for word in words if word in EVERYDAY or not is_clinical(word)]
    return REMOVED if telling and not set(words) <= {"the", "this", "our", "university", "general"} else match.group()
