"""The pixel element of a DICOM file, looked at from outside (DICOM PS3.5, section 7.1 and annex A)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_prep.ledger import QuarantineError, Reason


def check_pixels(file: BinaryIO, ds: Dataset, path: str, wanted: int) -> None:
    """The pixel element must be there, whole, and encoded as the transfer syntax says; nothing is decoded.

    Args:
        file: stands where the header ends.
        ds: the header.
        path: of the file.
        wanted: bytes of uncompressed pixels.

    Raises:
        QuarantineError: pixels are missing or cut short, or contradict the transfer syntax.
    """
    syntax = UID(str(ds.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2")))
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise QuarantineError(Reason.TRANSFER_SYNTAX)
    if syntax.is_deflated:
        return  # dcmread has inflated it whole: positions in the file mean nothing
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(12)
    if len(head) < 8:
        raise QuarantineError(Reason.NO_PIXELS)
    group, element = struct.unpack_from(order + "HH", head)
    if (group, element) not in ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009)):
        raise QuarantineError(Reason.NO_PIXELS if group < 0x7FE0 else Reason.TRANSFER_SYNTAX)
    explicit = not syntax.is_implicit_VR
    if explicit and head[4:6] not in (b"OW", b"OB", b"OF", b"OD", b"UN"):
        raise QuarantineError(Reason.TRANSFER_SYNTAX)
    if explicit and len(head) < 12:
        raise QuarantineError(Reason.TRUNCATED)
    (length,) = struct.unpack_from(order + "I", head, 8 if explicit else 4)
    start = file.tell() - len(head) + (12 if explicit else 8)
    left = Path(path).stat().st_size - start
    if syntax.is_compressed:
        file.seek(start)
        if length != 0xFFFFFFFF or file.read(4) != b"\xfe\xff\x00\xe0":
            raise QuarantineError(Reason.TRANSFER_SYNTAX)
        return
    if length == 0xFFFFFFFF:
        raise QuarantineError(Reason.TRANSFER_SYNTAX)
    if min(left, length) < wanted:
        raise QuarantineError(Reason.TRUNCATED)
