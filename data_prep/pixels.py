"""The pixel element of a DICOM file, looked at from outside (DICOM PS3.5, section 7.1 and annex A)."""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_prep.ledger import QuarantineError, Reason

MAX_INFLATED = 2**28
"""Bytes that a deflated file may grow to."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_ITEM = b"\xfe\xff\x00\xe0"
_JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
_RLE = "1.2.840.10008.1.2.5"


def check_deflated(file: BinaryIO) -> None:
    """Refuse a deflated file that grows beyond :data:`MAX_INFLATED`; others pass. Memory stays at a megabyte.

    Args:
        file: a Part 10 file at its start; it is left there.

    Raises:
        QuarantineError: it grows too large.
    """
    start = file.read(1024)
    if _DEFLATED in start and start[132:136] == b"\x02\x00\x00\x00":
        file.seek(144 + int(struct.unpack_from("<I", start, 140)[0]))
        stream, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not stream.eof and (chunk := stream.unconsumed_tail or file.read(2**16)):
            total += len(stream.decompress(chunk, 2**20))
            if total > MAX_INFLATED:
                raise QuarantineError(Reason.TOO_LARGE)
    file.seek(0)


def check_pixels(file: BinaryIO, ds: Dataset, wanted: int) -> None:
    """The pixel element must be there, whole, and encoded as the transfer syntax says; nothing is decoded.

    Args:
        file: stands where the header ends.
        ds: the header.
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
    left = file.seek(0, os.SEEK_END) - start
    if syntax.is_compressed:
        file.seek(start)
        if length != 0xFFFFFFFF or not _encoded_as(file, str(syntax)):
            raise QuarantineError(Reason.TRANSFER_SYNTAX)
        return
    # lengths are even; "OW" and "OB" read as a length are odd: the file is explicit after all
    if length == 0xFFFFFFFF or length % 2:
        raise QuarantineError(Reason.TRANSFER_SYNTAX)
    if min(left, length) < wanted:
        raise QuarantineError(Reason.TRUNCATED)


def _encoded_as(file: BinaryIO, syntax: str) -> bool:
    """Whether the first fragment begins as its transfer syntax says (PS3.5 A.4); the file stands at the first item."""
    head = file.read(8)
    if len(head) < 8 or head[:4] != _ITEM:
        return False
    file.seek(struct.unpack_from("<I", head, 4)[0], 1)  # the basic offset table
    fragment = file.read(8 + 4)
    if len(fragment) < 12 or fragment[:4] != _ITEM:
        return False
    begins = fragment[8:]
    if syntax == _RLE:
        return 1 <= int(struct.unpack_from("<I", begins)[0]) <= 15
    if syntax in _JPEG_2000:
        return begins.startswith(b"\xff\x4f\xff\x51")
    # JPEG and JPEG-LS begin alike; the marker that follows at once, or after comments, tells JPEG-LS
    return begins.startswith(b"\xff\xd8\xff") and (syntax in _JPEG_LS or (syntax in _JPEG and begins[3] != 0xF7))
