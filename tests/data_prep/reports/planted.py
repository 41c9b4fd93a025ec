"""Radiology reports with identifiers planted in them; knows nothing of the rules that look for them.

Names, addresses, numbers and mail come from Faker in twelve locales. Every kind of identifier has sentences that the
rules were written with (`seen`) and sentences that were set aside before a rule was written (`unseen`).
"""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from faker import Faker

from data_prep.headers import Identity

from ..test_deid import NOBODY

LOCALES = ("en_US", "en_GB", "en_IN", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "sv_SE", "tr_TR", "pt_BR")
WORDS_AS_NAMES = (
    ("Baker", "Grace"), ("White", "May"), ("Parkinson", "Rose"), ("Young", "Mark"), ("Stone", "Hope"),
    ("Black", "Will"),
    ("Bell", "Iris"), ("Long", "June"), ("Wood", "Art"), ("Short", "April"), ("Hill", "Rich"), ("Head", "Joy"),
)  # fmt: skip
CLINICAL = (
    "There is a Baker cyst of the left knee measuring 32 x 18 x 12 mm.",
    "White matter hyperintensities may represent small vessel disease, Fazekas grade 2.",
    "No restricted diffusion at b 1000; ADC of the lesion is 1.2.",
    "Known Parkinson disease with normal swallow tail sign on SWI.",
    "Bell palsy on the right with enhancement of the facial nerve.",
    "Chiari malformation type 1, tonsils 9 mm below the foramen magnum.",
    "Virchow-Robin spaces are prominent in the basal ganglia.",
    "Disc protrusion at L4/5 with contact to the left L5 root, Modic type 2 changes.",
    "Acute infarct in the territory of the right MCA, M1 segment occluded, ASPECTS 7.",
    "The mass shows ring enhancement and measures 4.2 cm, previously 3.6 cm.",
    "Midline shift of 6 mm to the right; the fourth ventricle is patent.",
    "Hippocampal volume is low for age, Scheltens grade 3.",
    "Langerhans cell histiocytosis is less likely than Ewing sarcoma.",
    "The Achilles tendon is thickened to 11 mm with a partial tear.",
    "PI-RADS 4 lesion in the left peripheral zone at mid gland, 14 mm.",
    "Grade 2 spondylolisthesis L5/S1 with pars defects on both sides.",
    "Hill-Sachs defect and Bankart lesion after anterior dislocation.",
    "Long head of biceps tendon in place; labrum intact.",
    "Meckel cave and cavernous sinus are clear.",
    "Wallerian degeneration along the left corticospinal tract.",
    "Gadobutrol 7.5 ml was given; TR 4500 ms, TE 100 ms, 5 mm slices.",
    "The patient was unable to lie still; motion degrades series 5 and 6.",
    "Young man with headache for 3 weeks and papilloedema.",
    "64-year-old woman with weakness of the right arm since 2 days.",
    "Black blood imaging shows concentric enhancement of the M1 wall.",
    "Normal study of the brain; no mass, bleed or hydrocephalus.",
    "Follow-up in 3 to 6 months is advised.",
    "Small bowel wall thickening over 12 cm in keeping with Crohn disease.",
    "Bosniak II cyst of the upper pole of the left kidney, 23 mm.",
    "Segment VIII lesion of 18 mm with washout, LI-RADS 5.",
    "Stage T2 N1 disease; three mesorectal nodes up to 8 mm.",
    "Moyamoya pattern of collaterals, Suzuki stage III.",
    "Rathke cleft cyst of 7 mm; the pituitary stalk is central.",
    "Sylvian fissure, circle of Willis and vein of Galen are normal.",
    "Susceptibility artefact from a Codman shunt valve on the right.",
    "Mild motion artefact; overall diagnostic quality is good.",
    "Short tau inversion recovery shows marrow oedema in T11 and T12.",
    "Head of femur with a subchondral fracture, ARCO stage 3.",
    "Stone of 6 mm in the gallbladder, common duct 5 mm.",
    "Art of the branch vessels is beaded; will need catheter angiography.",
    "Hope sign absent; Wood lamp not applicable.",
    "Findings suggest Alzheimer disease rather than Lewy body dementia.",
    "Hashimoto thyroiditis and Graves orbitopathy with fat stranding.",
    "Schmorl nodes at several levels, Scheuermann disease likely.",
    "The Lisfranc ligament and the Lister tubercle are intact.",
    "Dandy-Walker spectrum excluded; Blake pouch remnant of 5 mm.",
    "Morton neuroma in the third web space, 7 mm.",
    "T2 FLAIR mismatch sign, IDH mutant astrocytoma likely.",
    "In March fracture pattern the second metatarsal is broken.",
    "Second opinion of this study: no change of the diagnosis.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frames:
    """Sentences around one kind of identifier, `{}` where it stands."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


FRAMES = {
    "patient": Frames(
        seen=(
            "{} was scanned supine.",
            "Study of {} compared side by side.",
            "Images of Mr {} were reviewed.",
            "Patient: {}.",
            "This is the second visit of {}.",
            "Clinical details: {} fell down the stairs.",
        ),
        unseen=("We thank you for referring {}.", "{} tolerated the examination well.", "The CD was handed to {}."),
    ),
    "misspelt": Frames(
        seen=("{} was scanned supine.", "Images of Mrs {} were reviewed.", "History: {} has had headaches."),
        unseen=("We thank you for referring {}.", "The CD was handed to {} afterwards."),
    ),
    "relative": Frames(
        seen=(
            "Accompanied by her husband {}.",
            "History taken from his daughter {}.",
            "Mother ({}) reports seizures.",
            "Next of kin: {}.",
            "His brother, {}, had the same disease.",
            "Consent was given by the guardian {}.",
        ),
        unseen=(
            "Her sister {} carries the mutation.",
            "{}, his wife, was present.",
            "The results were explained to her son {} as well.",
        ),
    ),
    "physician": Frames(
        seen=(
            "Referred by Dr. {}.",
            "Discussed with Dr {} at the tumour board.",
            "Reported by {}.",
            "Electronically signed by {}.",
            "Prof. {} was informed.",
            "Radiologist: {}.",
            "Dictated by: {}, MD.",
            "dr {} will see the patient.",
            "Findings were communicated to {} on the ward.",
            "{}, consultant radiologist.",
        ),
        unseen=(
            "Findings were phoned through to {} in the emergency department.",
            "Verified: {}.",
            "Signed off by {} (registrar).",
            "Thank you, Doctor {}.",
            "Radiographer {} positioned the coil.",
            "cc: {}.",
        ),
    ),
    "phone": Frames(
        seen=("Call {} with questions.", "Tel. {}.", "The ward can be reached on {}.", "Phone: {}."),
        unseen=("Our direct line is {}.", "Results were left on {} today."),
    ),
    "email": Frames(seen=("Send the images to {}.", "Contact: {}."), unseen=("Write to {} for the raw data.",)),
    "url": Frames(seen=("Images at {}.",), unseen=("The report is also found under {} in the portal.",)),
    "date_written": Frames(
        seen=(
            "Compared with the MRI of {}.",
            "Surgery on {}.",
            "Previous study dated {}.",
            "Last seen on {}, unchanged since.",
        ),
        unseen=("Symptoms began {} after a fall.", "The next visit is planned for {}."),
    ),
    "date_numeric": Frames(
        seen=("Compared with the MRI of {}.", "CT {}: no change.", "Date of surgery {}."),
        unseen=("Operated elsewhere ({}).", "Unchanged to {}."),
    ),
    "own_date": Frames(
        seen=("Examination of {}.", "Date of birth {}.", "Scanned on {}."), unseen=("Born {}.", "Today, {}, no change.")
    ),
    "record": Frames(
        seen=("MRN: {}.", "Accession number {}.", "Case no. {}.", "Hospital number {}."),
        unseen=("Insurance no. {}.", "Filed under {}.", "Pathology specimen {}."),
    ),
    "own_record": Frames(seen=("MRN: {}.", "ID {}.", "Number {} in our files."), unseen=("Filed under {}.",)),
    "address": Frames(seen=("Lives at {}.", "Address: {}.", "Resident of {}."), unseen=("Please send the CD to {}.",)),
    "hospital": Frames(
        seen=("Transferred from {}.", "Prior imaging at {}."), unseen=("Scans from {} were not available.",)
    ),
    "institution": Frames(seen=("Performed at {}.", "{}, department of radiology."), unseen=("Scanned in {}.",)),
    "age": Frames(
        seen=("{}-year-old with falls.", "Patient aged {} years.", "{} y/o with confusion.", "Age: {}."),
        unseen=("The patient is {} years old.", "At the age of {} surgery is not advised."),
    ),
}
IN_HEADER = ("patient", "own_date", "own_record", "institution", "physician_known")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plant:
    """One identifier that stands in a report."""

    kind: str
    text: str
    unseen: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Planted:
    """One report, what was planted in it, and the sentences that must stay."""

    text: str
    identity: Identity
    plants: tuple[Plant, ...]
    clinical: tuple[str, ...]


def planted_reports(count: int, seed: int) -> list[Planted]:
    """`count` reports with about eight identifiers each, half of them absent from the header."""
    rng = random.Random(seed)
    fakers = {locale: Faker(locale) for locale in LOCALES}
    for number, locale in enumerate(LOCALES):
        fakers[locale].seed_instance(seed * 100 + number)
    return [_report(rng, fakers[LOCALES[number % len(LOCALES)]], number) for number in range(count)]


def _report(rng: random.Random, fake: Faker, number: int) -> Planted:
    family, given = fake.last_name(), fake.first_name()
    if number % 8 == 7:
        family, given = WORDS_AS_NAMES[number // 8 % len(WORDS_AS_NAMES)]
    born = dt.date(1931, 1, 1) + dt.timedelta(days=rng.randrange(80 * 365))
    seen_on = dt.date(2014, 1, 1) + dt.timedelta(days=rng.randrange(10 * 365))
    referring = (fake.last_name(), fake.first_name())
    identity = replace(
        NOBODY,
        patient_id=_digits(rng, rng.choice(("########", "P######", "##-####-##"))),
        accession=_digits(rng, rng.choice(("A########", "MR#######"))),
        people=(f"{family}^{given}".upper(), f"{referring[0]}^{referring[1]}"),
        places=(_hospital(rng, fake),),
        dates=(seen_on.strftime("%Y%m%d"), born.strftime("%Y%m%d")),
    )
    identity = replace(identity, numbers=(identity.patient_id, identity.accession))
    known = [
        ("patient", _styled(rng, given, family)),
        ("own_date", _date(rng, rng.choice((born, seen_on)), rng.random() < 0.5)),
        ("own_record", rng.choice(identity.numbers)),
        rng.choice((("institution", identity.places[0]), ("physician_known", " ".join(referring[::-1])))),
    ]
    foreign = [_foreign(rng, fake, kind, given, family) for kind in rng.sample(FOREIGN, 4)]
    plants = tuple(_plant(rng, kind, text) for kind, text in known + foreign)
    clinical = tuple(rng.sample(CLINICAL, rng.randint(8, 12)))
    return Planted(_layout(rng, plants, clinical), identity, plants, clinical)


FOREIGN = (
    "misspelt", "relative", "relative", "physician", "physician", "physician", "phone", "email", "url", "date_written",
    "date_written", "date_numeric", "record", "address", "hospital", "age",
)  # fmt: skip


def _foreign(rng: random.Random, fake: Faker, kind: str, given: str, family: str) -> tuple[str, str]:
    """An identifier that no header of the patient holds."""
    day = dt.date(1995, 1, 1) + dt.timedelta(days=rng.randrange(28 * 365))
    match kind:
        case "misspelt":
            longer = max(given, family, key=len)
            return kind, _misspell(rng, longer if len(longer) >= 5 else family + given.lower())
        case "relative":
            return kind, rng.choice((fake.first_name(), f"{fake.first_name()} {family}"))
        case "physician":
            first, last = fake.first_name(), fake.last_name()
            return kind, rng.choice((f"{first} {last}", last, f"{first[0]}. {last}", f"{last}, {first}"))
        case "phone":
            return kind, fake.phone_number()
        case "email":
            return kind, fake.email()
        case "url":
            return kind, fake.url() + rng.choice(("", f"study/{rng.randrange(10**6)}"))
        case "date_written":
            return kind, _date(rng, day, written=True)
        case "date_numeric":
            return kind, _date(rng, day, written=False)
        case "record":
            return kind, _digits(rng, rng.choice(("#######", "??-#####", "###-###-####", "H##/#####", "?#######")))
        case "address":
            return kind, fake.address().replace("\n", ", ")
        case "hospital":
            return kind, _hospital(rng, fake)
    return kind, str(rng.randrange(90, 106))


def _plant(rng: random.Random, kind: str, text: str) -> Plant:
    frames = FRAMES["physician" if kind == "physician_known" else kind]
    unseen = rng.random() < 1 / 3
    return Plant(kind, text, unseen, rng.choice(frames.unseen if unseen else frames.seen).format(text))


def _layout(rng: random.Random, plants: Sequence[Plant], clinical: Sequence[str]) -> str:
    """Sentences of both sorts mixed, under the headings of a report, the whole now and then in capitals."""
    sentences = [plant.sentence for plant in plants] + list(clinical)
    rng.shuffle(sentences)
    first, second = sorted(rng.sample(range(2, len(sentences) - 1), 2))
    gap = rng.choice((" ", "\n"))
    parts = [sentences[:first], sentences[first:second], sentences[second:]]
    heads = rng.choice((("HISTORY", "FINDINGS", "IMPRESSION"), ("Clinical information", "Description", "Conclusion")))
    return "\n\n".join(f"{head}:{gap}{gap.join(part)}" for head, part in zip(heads, parts, strict=True))


def _styled(rng: random.Random, given: str, family: str) -> str:
    return rng.choice(
        (
            f"{given} {family}",
            f"{family}, {given}",
            f"{family.upper()} {given}",
            f"{given[0]}. {family}",
            f"{given} {family}".upper(),
        )
    )


def _misspell(rng: random.Random, word: str) -> str:
    """Two letters swapped, one lost, one doubled or one changed; never the first."""
    letters = [k for k in range(1, len(word) - 1) if word[k].isalpha() and word[k + 1].isalpha()]
    k = rng.choice(letters or [1])
    kind = rng.randrange(4)
    if kind == 0 and word[k] != word[k + 1]:
        return word[:k] + word[k + 1] + word[k] + word[k + 2 :]
    if kind == 1 and word[k] != word[k + 1]:
        return word[:k] + word[k + 1 :]
    if kind == 2:
        return word[:k] + word[k] + word[k:]
    return word[:k] + rng.choice([c for c in "aeiourst" if c != word[k].lower()]) + word[k + 1 :]


def _hospital(rng: random.Random, fake: Faker) -> str:
    return rng.choice(
        (f"{fake.city()} General Hospital", f"{fake.last_name()} Clinic", f"University Hospital {fake.city()}",
         f"Klinikum {fake.city()}", f"{fake.city()} Medical Center")
    )  # fmt: skip


def _digits(rng: random.Random, mask: str) -> str:
    return re.sub(r"[#?]", lambda m: rng.choice("123456789" if m[0] == "#" else "ABCDEFGHJKLMNPRSTUWXZ"), mask)


def _date(rng: random.Random, day: dt.date, written: bool) -> str:
    month, number = MONTHS[day.month - 1], day.day
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    if written:
        return rng.choice(
            (
                f"{number} {month} {day.year}",
                f"{month} {number}, {day.year}",
                f"the {number}{suffix} of {month} {day.year}",
                f"{number} {month[:3]} {day.year}",
                f"{month} {day.year}",
                f"{number}{suffix} {month}",
                f"{month[:3]}. {number}, {day.year}",
                f"{number}-{month[:3].upper()}-{day.year % 100:02d}",
            )
        )
    return rng.choice(
        (
            day.strftime("%d/%m/%Y"),
            day.strftime("%m/%d/%Y"),
            day.strftime("%d.%m.%y"),
            day.strftime("%Y-%m-%d"),
            day.strftime("%Y%m%d"),
            f"{number}.{day.month}.{day.year}",
            day.strftime("%d-%m-%Y"),
            day.strftime("%m/%Y"),
            day.strftime("%d %m %Y"),
        )
    )
