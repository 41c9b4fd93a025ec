"""One unmistakable word in every kind of place of a DICOM file, of file names and of a report."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from .conftest import head, slice_header, write_slice

ROOT = "1.3.6.1.4.1.99887766"
"""UID root that names an institution."""
TEXTS = {
    "LO": (
        "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientAddress", "PatientMotherBirthName", "MilitaryRank",
        "PatientBirthName", "CountryOfResidence", "RegionOfResidence", "PatientReligiousPreference", "AdmissionID",
        "StudyDescription", "SeriesDescription", "ProtocolName", "InstitutionalDepartmentName", "ManufacturerModelName",
        "DeviceSerialNumber", "SoftwareVersions", "RequestedProcedureDescription", "PerformedProcedureStepDescription",
        "ContrastBolusAgent", "CurrentPatientLocation", "ServiceEpisodeDescription", "ReasonForStudy",
        "InsurancePlanIdentification", "MedicalRecordLocator", "ClinicalTrialSubjectID", "ClinicalTrialSponsorName",
        "InstitutionName", "MedicalAlerts", "Allergies", "Manufacturer", "DetectorID", "ResponsibleOrganization",
    ),
    "SH": (
        "AccessionNumber", "StationName", "StudyID", "PatientTelephoneNumbers", "EthnicGroup", "Occupation",
        "PerformedProcedureStepID", "ScheduledProcedureStepID", "SequenceName",
    ),
    "PN": (
        "OtherPatientNames", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
        "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord", "RequestingPhysician", "ResponsiblePerson",
    ),
    "ST": ("InstitutionAddress", "ReferringPhysicianAddress", "DerivationDescription", "AcquisitionComments"),
    "LT": ("PatientComments", "AdditionalPatientHistory", "IdentifyingComments", "ImageComments"),
    "UT": ("LabelText", "ReasonForVisit"),
    "AE": ("RetrieveAETitle", "StationAETitle"),
    "DA": ("StudyDate", "SeriesDate", "PatientBirthDate", "AdmittingDate", "LastMenstrualDate"),
    "TM": ("StudyTime", "AcquisitionTime"),
    "UI": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "DeviceUID"),
}  # fmt: skip
SCRIPTS = {
    "ISO_IR 192": ("Zqxutfö^Ärzt", "zqxutfö"),
    "ISO_IR 100": ("Zqxlatin^Jürgenæ", "zqxlatin"),
    "ISO_IR 144": ("Зкхлюксем^Иван", "Зкхлюксем"),
    "ISO_IR 126": ("Ζκξδιον^Αννα", "Ζκξδιον"),
    "\\ISO 2022 IR 87": ("Zqxyama^Tarou=山鹿^太郎", "山鹿"),
    "\\ISO 2022 IR 149": ("Zqxhong^Gildong=洪^吉洞=홍갑^길동", "홍갑"),
    "GB18030": ("Zqxwang^Xiao=王鵬^小东", "王鵬"),
}
"""Person names by character set, and the part that is sought."""


@dataclass(slots=True)
class Canaries:
    """Where each canary was planted."""

    places: dict[str, str] = field(default_factory=dict)
    """Place to the string that is sought."""

    def word(self, place: str) -> str:
        """A word of its own for a place: letters only, so that it passes for a name."""
        number = len(self.places)
        word = "Zqx" + chr(97 + number // 26) + chr(97 + number % 26) + "elo"
        self.places[place] = word.lower()
        return word

    def date(self, place: str) -> str:
        """A day of its own."""
        day = f"191{len(self.places) % 10}{1 + len(self.places) % 12:02d}{1 + len(self.places) % 27:02d}"
        self.places[place] = day
        return day

    def time(self, place: str) -> str:
        """A time of its own."""
        self.places[place] = found = f"1{len(self.places) % 10}3344.55{len(self.places) % 10}677"
        return found


def plant(folder: Path) -> tuple[Path, Path, Canaries]:
    """Write studies with canaries under `folder`; returns the input folder, the reports file, and the places."""
    canaries = Canaries()
    inside = folder / "in" / f"{canaries.word('name of a folder')}_scans"
    shared = slice_header()
    _texts(shared, canaries)
    _nested(shared, canaries)
    _private(shared, canaries)
    _pictures(shared, canaries)
    for number, (charset, (name, sought)) in enumerate(SCRIPTS.items()):
        canaries.places[f"person name in {charset.strip(chr(92))}"] = sought
        shared.SpecificCharacterSet = charset.split("\\")
        shared.PatientName = name
        shared.SeriesNumber = str(number)
        shared.SeriesInstanceUID = f"{ROOT}.2.{number}"
        for k, picture in enumerate(head(depth=3, rows=32, columns=32)):
            path = inside / f"{number}_{canaries.word('name of a file') if number == k == 0 else 'slice'}_{k}.dcm"
            position = ["-50", "-60", str(5 * k)]
            write_slice(
                path, shared, picture, ImagePositionPatient=position, InstanceNumber=str(k),
                SOPInstanceUID=f"{ROOT}.3.{number}.{k}",
            )  # fmt: skip
            _outside(path, canaries, first=number == k == 0)
    _others(inside, shared, canaries)
    return folder / "in", _report(folder, shared, canaries), canaries


def _texts(ds: Dataset, canaries: Canaries) -> None:
    for vr, keywords in TEXTS.items():
        for keyword in keywords:
            if vr == "UI":
                setattr(ds, keyword, f"{ROOT}.1")
            elif vr in ("DA", "TM"):
                setattr(ds, keyword, canaries.date(keyword) if vr == "DA" else canaries.time(keyword))
            else:
                word = canaries.word(keyword)
                setattr(ds, keyword, f"T2 {word}" if keyword == "SeriesDescription" else word)
    canaries.places["UID root"] = "99887766"


def _nested(ds: Dataset, canaries: Canaries) -> None:
    """Sequences in sequences, a private sequence, and codes."""
    deep = Dataset()
    deep.PatientName = canaries.word("nested sequence, three deep")
    middle = Dataset()
    middle.PersonName = canaries.word("nested sequence, two deep")
    middle.OtherPatientIDsSequence = Sequence([deep])
    outer = Dataset()
    outer.CodeMeaning = canaries.word("code meaning")
    outer.TextValue = canaries.word("nested text value")
    outer.RequestAttributesSequence = Sequence([middle])
    ds.RequestAttributesSequence = Sequence([outer])
    history = Dataset()
    history.InstitutionName = canaries.word("contributing equipment")
    ds.ContributingEquipmentSequence = Sequence([history])
    original = Dataset()
    modified = Dataset()
    modified.PatientID = canaries.word("modified attributes")
    original.ModifiedAttributesSequence = Sequence([modified])
    original.SourceOfPreviousValues = canaries.word("source of previous values")
    ds.OriginalAttributesSequence = Sequence([original])


def _private(ds: Dataset, canaries: Canaries) -> None:
    block = ds.private_block(0x0099, canaries.word("private creator"), create=True)
    block.add_new(1, "LO", canaries.word("private LO"))
    block.add_new(2, "PN", canaries.word("private PN"))
    block.add_new(3, "UN", canaries.word("private UN").encode())
    block.add_new(4, "OB", b"\0\x01" + canaries.word("private OB").encode() + b"\0")
    item = Dataset()
    item.PatientName = canaries.word("private sequence")
    block.add_new(5, "SQ", Sequence([item]))
    siemens = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    siemens.add_new(0x20, "OB", b"SV10\4\3\2\1" + canaries.word("Siemens CSA header").encode().ljust(64, b"\0"))
    philips = ds.private_block(0x2001, "Philips Imaging DD 001", create=True)
    philips.add_new(0x63, "CS", canaries.word("Philips private tag").upper())


def _pictures(ds: Dataset, canaries: Canaries) -> None:
    """Overlays, curves, graphics, a thumbnail and encapsulated documents."""
    ds.add_new(0x60000010, "US", 32)
    ds.add_new(0x60000011, "US", 32)
    ds.add_new(0x60000022, "LO", canaries.word("overlay description"))
    ds.add_new(0x60001500, "LO", canaries.word("overlay label"))
    ds.add_new(0x60003000, "OW", canaries.word("overlay bits").encode().ljust(128, b"\0"))
    ds.add_new(0x60004000, "LT", canaries.word("overlay comments"))
    ds.add_new(0x50002500, "LO", canaries.word("curve label"))
    ds.add_new(0x50003000, "OW", canaries.word("curve bits").encode().ljust(64, b"\0"))
    icon = Dataset()
    icon.PixelData = canaries.word("icon image").encode().ljust(64, b"\0")
    icon["PixelData"].VR = "OB"
    ds.IconImageSequence = Sequence([icon])
    text = Dataset()
    text.UnformattedTextValue = canaries.word("graphic annotation")
    ds.TextObjectSequence = Sequence([text])
    ds.EncapsulatedDocument = canaries.word("encapsulated document").encode().ljust(32, b"\0")
    ds.MIMETypeOfEncapsulatedDocument = "text/plain"
    ds.add_new(0xFFFCFFFC, "OB", canaries.word("trailing padding").encode().ljust(32, b"\0"))
    ds.DigitalSignatureDateTime = "19170707"


def _outside(path: Path, canaries: Canaries, first: bool) -> None:
    """The preamble and the file meta information of one file."""
    ds = pydicom.dcmread(path)
    if first:
        ds.preamble = canaries.word("preamble").encode().ljust(128, b"\0")
        meta = ds.file_meta
        meta.SourceApplicationEntityTitle = canaries.word("source AE title").upper()
        meta.SendingApplicationEntityTitle = canaries.word("sending AE title").upper()
        meta.ReceivingApplicationEntityTitle = canaries.word("receiving AE title").upper()
        meta.ImplementationVersionName = canaries.word("implementation version").upper()
        meta.ImplementationClassUID = f"{ROOT}.9"
        meta.PrivateInformationCreatorUID = f"{ROOT}.10"
        meta.PrivateInformation = canaries.word("private file meta").encode()
        ds.save_as(path)


def _others(folder: Path, shared: Dataset, canaries: Canaries) -> None:
    """Files that are quarantined or left out: their content and names must not be told either."""
    cut = folder / f"{canaries.word('name of a broken file')}.dcm"
    write_slice(cut, deepcopy(shared), head(depth=1, rows=32, columns=32)[0], SOPInstanceUID=f"{ROOT}.5")
    cut.write_bytes(cut.read_bytes()[:-900])
    (folder / f"{canaries.word('name of a foreign file')}.txt").write_text(canaries.word("text file"))
    (folder / "not.dcm").write_bytes(canaries.word("file that is no DICOM").encode())
    capture = folder / "capture.dcm"
    write_slice(
        capture, deepcopy(shared), np.zeros((16, 16), np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        SOPInstanceUID=f"{ROOT}.6", PatientComments=canaries.word("secondary capture"),
    )  # fmt: skip
    flat = folder / canaries.word("name of a quarantined series")
    for k in range(3):
        write_slice(
            flat / f"{k}.dcm", deepcopy(shared), np.full((32, 32), 7, np.uint16), SeriesInstanceUID=f"{ROOT}.7",
            SOPInstanceUID=f"{ROOT}.7.{k}", ImagePositionPatient=["0", "0", str(5 * k)],
            SeriesDescription=canaries.word(f"quarantined series, slice {k}"), SeriesNumber="99",
        )  # fmt: skip


def _report(folder: Path, shared: Dataset, canaries: Canaries) -> Path:
    """A report with the header's own names and with strangers, and one for a study that is not there."""
    stranger, kin, file = (canaries.word(f"report: {who}") for who in ("a physician", "a relative", "an unknown study"))
    mail, unknown = canaries.word("report: mail"), canaries.word("report: patient of an unknown study")
    text = (
        f"Patient: {shared.OtherPatientNames}, MRN {shared.PatientID}\n\nFINDINGS: Mr {shared.OtherPatientNames} was "
        f"seen by Dr. {stranger} at {shared.InstitutionName}. His wife {kin} came; write to {mail}@clinic.example. "
        f"Born {shared.PatientBirthDate}. No mass.\nIMPRESSION: Normal brain, accession {shared.AccessionNumber}.\n"
        f"Electronically signed by {shared.NameOfPhysiciansReadingStudy}"
    )
    path = folder / f"reports_{canaries.word('name of the reports file')}.csv"
    rows = [("study_uid", "accession", "patient_id", "text")]
    rows += [(f"{ROOT}.1", "", str(shared.PatientID), text), (f"{ROOT}.404", file, unknown, f"Seen by {file}.")]
    lines = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def found(texts: Iterator[tuple[str, str]], canaries: Canaries) -> dict[str, str]:
    """Places whose canary is in some text, and where it was seen."""
    seen: dict[str, str] = {}
    for where, text in texts:
        lowered = text.lower()
        for place, word in canaries.places.items():
            if word.lower() in lowered:
                seen.setdefault(place, where)
    return seen


def encoded(folder: Path) -> Iterator[tuple[str, str]]:
    """The bytes of every file below a folder in each character set of the person names, and the names of the files."""
    codecs = ("latin-1", "utf-8", "iso8859_5", "iso8859_7", "iso2022_jp", "euc_kr", "gb18030")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield "name", str(file.relative_to(folder))
        payload = file.read_bytes()
        for codec in codecs:
            yield codec, payload.decode(codec, "ignore")
