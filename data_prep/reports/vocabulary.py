"""Words that the scrubbing of reports must know: those of English and of radiology that no name may swallow.

A word in :data:`WORDS` ends a name that is written without capitals, and is never taken for a misspelt name.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        """white black brown green gray grey young old long short small large may june april august march summer winter
        day baker parkinson bell hill wood stone field rice rose bush banks west north south east good best low high
        strong sharp little moore major minor head hand foot back neck love hope grace joy mark will art case cook
        price page reading marsh park rivers brook lane bridge church king knight bishop pope hunter fisher potter
        mason cooper smith mass left right normal axial lake ball bone burns cross ford frost glass hall keen lamb
        noble power ray sage swan tongue ward wise bowel crane hernia virchow robin schwann barrett graves addison
        cushing chiari rathke rich""",
    )
)
"""Surnames that are also words of reports: removed only where they are written as names."""

WORDS = EVERYDAY | frozenset(resources.files(__package__).joinpath("report_words.txt").read_text("utf-8").split())
"""Words of English and of radiology, lower case."""

EPONYM_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """disease diseases syndrome sign signs palsy cyst cysts cleft pouch cave node nodes tendon tendons ligament
        ligaments tubercle fracture fractures lesion lesions defect defects sarcoma tumour tumor tumours tumors
        lymphoma carcinoma adenoma cell cells body bodies dementia thyroiditis orbitopathy neuroma stage grade score
        scale classification index type angle line lines space spaces malformation anomaly degeneration valve shunt
        catheter stent tube coil procedure operation repair lamp artery arteries vein veins canal canals duct ducts
        fissure gland glands aqueduct foramen criteria contracture deformity dislocation hernia nodule nodules ring
        sinus sulcus triangle tract loop fascia membrane area encephalopathy ataxia chorea atrophy variant pattern
        method technique position view manoeuvre maneuver test reflex phenomenon law plaque plaques histiocytosis
        injury lacuna muscle nerve ganglion plexus gyrus cistern virus spot osteotomy rod screw plate nail clip
        filter reservoir pump""",
    )
)
"""Nouns that make the name before them an eponym: Blake pouch, Morton neuroma."""

EPONYMS = EVERYDAY | frozenset(
    re.findall(
        r"\w+",
        """achilles alzheimer anderson arnold arco bankart bartholin bekhterew berry binswanger blake blount bosniak
        bouchard bowen broca brodie buerger burkitt caroli castleman charcot codman colles cooley crohn dandy
        dejerine douglas dupuytren ehlers danlos erdheim ewing fabry fazekas forestier freiberg galen gartner
        gaucher gorlin grynfeltt guillain barre guyon haglund hallervorden hashimoto heberden henle herring heschl
        heubner hippel lindau hirschsprung hodgkin hoffa horner huntington jefferson jefferys jersey jones kernohan
        kienbock kohler kernig klatskin klippel feil korsakoff krabbe langerhans legg calve perthes leigh lewy
        lhermitte lisfranc lister luschka magendie maisonneuve marchiafava marfan marie meckel merkel mirizzi modic
        monro morel lavallee morgagni morton moyamoya muller mullerian nissen ollier osgood paget pancoast parinaud
        pott pratt pringle proust ramsay reye riedel rolando romberg rosenthal salter harris sachs schatzker
        scheltens scheuermann schlatter schmorl segond sever silvius sjogren spigel stafne still sturge weber suzuki
        sylvius takayasu tarlov tietze todd tooth tourette treves virchow robin waldenstrom walker wallenberg
        weigert wernicke wharton whipple wilms wilson willis wormian zenker""",
    )
)
"""Names of people that stand for anatomy and disease: kept where no title or role says that a person is meant."""


_CLINICAL_END = re.compile(
    r"(?:graph(?:y|ic|ies)|scop(?:y|ic)|metr(?:y|ic)|ograms?|itis|itides|omas?|omata|os[ie]s|olog(?:y|ic|ical|ist)|"
    r"[aeo]emia|path(?:y|ic|ies)|ectom(?:y|ies)|plast(?:y|ies)|tom(?:y|ies)|pleg(?:ia|ic)|phas(?:ia|ic)|trop(?:hy|hic)|"
    r"intens(?:e|ity)|tion|tions|ively|ically|ness|ment|ments|ular|iform|oidal|aceous|genic|lucent|opaque)$"
)


def is_clinical(word: str) -> bool:
    """Whether a folded word is one that reports use: in :data:`WORDS`, a plural of one, or of a clinical ending."""
    if word in WORDS or (len(word) > 6 and _CLINICAL_END.search(word) is not None):
        return True
    return any(
        word.endswith(end) and word[: -len(end)] + stem in WORDS
        for end, stem in (("s", ""), ("es", ""), ("ies", "y"), ("ly", ""), ("ed", ""), ("ing", ""))
    )


@cache
def given_names() -> frozenset[str]:
    """Given names in capitals without accents, less those that are words or eponyms.

    The 1990 census of the United States (public domain) and common names of fifteen other countries.
    """
    text = resources.files(__package__).joinpath("given_names.txt").read_text(encoding="utf-8")
    return frozenset(word for word in text.split() if word.lower() not in WORDS | EPONYMS)
