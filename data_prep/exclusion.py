"""Which readable files are left out on purpose: the rules that one header decides (PS3.4 B.5, PS3.3 C.8.3.1)."""

from __future__ import annotations

from pydicom.dataset import Dataset

from data_prep.ledger import QuarantineError, Reason, Rule
from data_prep.values import words_of

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
LEGACY_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.4"
_IMAGE_CLASSES = {MR_IMAGE, ENHANCED_MR, LEGACY_ENHANCED_MR}
_CAPTURED = ("DV", "DI", "DF", "WSD", "SD", "SI", "DRW")
"""Conversion types of secondary captures: scans of film and paper, screens of workstations, drawings, video."""


def left_out(ds: Dataset) -> Rule | None:
    """The rule by which a header leaves its file out; None where it stays.

    Raises:
        QuarantineError: it says neither its class nor its modality.
    """
    sop_class = str(ds.get("SOPClassUID", ""))
    modality = str(ds.get("Modality", ""))
    kinds = {word.upper() for word in words_of(ds.get("ImageType"))}
    text = f"{ds.get('SeriesDescription', '')} {ds.get('ProtocolName', '')}".lower()
    if modality == "SR" or sop_class.startswith("1.2.840.10008.5.1.4.1.1.88."):
        return Rule.STRUCTURED_REPORT
    captured = str(ds.get("ConversionType", "")).upper() in _CAPTURED
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.7") or captured:
        return Rule.SECONDARY_CAPTURE
    if not sop_class and not modality:
        raise QuarantineError(Reason.BAD_HEADER)
    if modality not in ("MR", "") or (sop_class not in _IMAGE_CLASSES and sop_class):
        return Rule.OTHER_MODALITY
    if ds.get("SamplesPerPixel", 1) != 1:
        return Rule.COLOUR
    if str(ds.get("BurnedInAnnotation", "")).upper() == "YES":
        return Rule.BURNED_IN
    if kinds & {"LOCALIZER", "SCOUT"} or any(word in text for word in ("localizer", "localiser", "scout", "survey")):
        return Rule.LOCALIZER
    if kinds & {"PROJECTION IMAGE", "MIP", "MNIP", "MINIP"}:
        return Rule.PROJECTION
    if kinds & {"SCREEN SAVE", "SCREENSAVE", "CSA REPORT", "CSAPARALLEL", "REPORT"}:
        return Rule.DERIVED_SCREEN
    return None
