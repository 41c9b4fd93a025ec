"""The secret key and everything derived from it: pseudonyms, study keys, item ids, the split's order.

HMAC-SHA-256 (RFC 2104). One key gives one patient one pseudonym across workers, runs and restarts; without the key a
pseudonym cannot be linked back, nor guessed by hashing all possible numbers.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fm.config.errors import UserError

_HEX_DIGITS = 20
_PLACEHOLDER = re.compile(
    r"[\W_0]*|anon(ymous|ymi[sz]ed)?\d*|dev|unknown|unk|none|null|na|n/a|test|patient|patientid|id|xxx+|deid(entified)?",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Keyring:
    """The secret, and the ids it gives."""

    secret: bytes

    def digest(self, purpose: str, *parts: str) -> str:
        """Keyed id of some strings: 80 bits as lower-case hex; different purposes never collide."""
        message = "\x1f".join((purpose, *parts)).encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:_HEX_DIGITS]

    def study(self, study_uid: str) -> str:
        """Key of a study in the shards."""
        return self.digest("study", study_uid)

    def patient(self, issuer: str, patient_id: str, study_uid: str) -> str:
        """Pseudonym of a patient; a placeholder number joins nobody, so each such study is its own patient."""
        if is_placeholder(patient_id):
            return self.digest("patient-of-study", study_uid)
        return self.digest("patient", issuer.strip(), patient_id.strip())

    def site(self, name: str) -> str:
        """Id of an institution, however its name is capitalised and spaced; empty for none."""
        words = " ".join(name.lower().split())
        return self.digest("site", words) if words else ""

    def item(self, *parts: str) -> str:
        """Id of a file, series or report in the quarantine."""
        return self.digest("item", *parts)


@dataclass(frozen=True, slots=True)
class Restricted:
    """The files beside the key that may name patients, all of one output but for the list of those who withdrew."""

    key_file: Path
    output: str
    """Keyed id of the output."""

    @property
    def links(self) -> Path:
        """The table from keyed ids to paths, UIDs and patient numbers."""
        return self._beside("links", ".csv")

    @property
    def catalogue(self) -> Path:
        """The headers of the input."""
        return self._beside("catalogue", ".sqlite")

    @property
    def unpacked(self) -> Path:
        """Members of archives, while a run lasts."""
        return self._beside("unpacked")

    @property
    def work(self) -> Path:
        """State of an unfinished run whose output is a URL."""
        return self._beside("work")

    @property
    def cluster(self) -> Path:
        """Certificates and logs of Slurm workers."""
        return self._beside("cluster")

    @property
    def pending(self) -> Path:
        """A withdrawal that was begun."""
        return self._beside("withdrawal", ".json")

    def withdrawn(self) -> set[str]:
        """Pseudonyms of patients who withdrew: no dataset under this key takes them in again."""
        path = self.key_file.with_name(f"{self.key_file.name}-withdrawn.txt")
        return set(path.read_text().split()) if path.exists() else set()

    def add_withdrawn(self, pseudonym: str) -> None:
        """Enter a patient who withdrew."""
        path = self.key_file.with_name(f"{self.key_file.name}-withdrawn.txt")
        words = sorted({*self.withdrawn(), pseudonym})
        temporary = path.with_name(f".{path.name}.tmp")
        _write_private(temporary, "".join(f"{word}\n" for word in words))
        os.replace(temporary, path)

    def refuse_pending(self) -> None:
        """Refuse to work on an output from which a patient is half withdrawn.

        Raises:
            UserError: so it is.
        """
        if self.pending.exists():
            raise UserError("a withdrawal from this output was interrupted; run the same fm withdraw again first")

    def _beside(self, what: str, ending: str = "") -> Path:
        return self.key_file.with_name(f"{self.key_file.name}-{what}-{self.output}{ending}")


def is_placeholder(patient_id: str) -> bool:
    """True for a PatientID that names nobody: empty, ``***``, ``DEV``, ``ANONYMOUS``, zeros, …"""
    return _PLACEHOLDER.fullmatch(patient_id.strip()) is not None


def default_key_file(out: str) -> Path:
    """Where the secret lies unless configured: a folder of its own beside a local output.

    Raises:
        UserError: the output is a URL, which has no beside.
    """
    if "://" in out and not out.startswith("file://"):
        raise UserError(f"out={out} is a URL: say where the secret key shall lie with prepare.key_file=FILE")
    folder = Path(os.path.abspath(out.removeprefix("file://")))
    return folder.with_name(folder.name + ".key") / "secret"


def open_keyring(key_file: Path, out: str) -> Keyring:
    """Read the secret, or make one (32 random bytes as hex, mode 0600, its folder 0700 if new).

    Raises:
        UserError: the file lies inside the output, or holds no key.
    """
    key_file = Path(os.path.abspath(key_file))
    if "://" not in out and key_file.is_relative_to(os.path.abspath(out)):
        raise UserError(f"prepare.key_file={key_file} lies inside out: the secret must never travel with the data")
    if not key_file.exists():
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = key_file.with_name(f".{key_file.name}.{os.getpid()}.tmp")
        _write_private(temporary, secrets.token_hex(32) + "\n")
        try:
            os.link(temporary, key_file)
        except FileExistsError:
            pass  # another run made it first: that one counts
        finally:
            temporary.unlink()
    try:
        secret = bytes.fromhex(key_file.read_text().strip())
    except (ValueError, OSError) as err:
        raise UserError(f"prepare.key_file={key_file} cannot be read as a key ({type(err).__name__})") from None
    if len(secret) < 16:
        raise UserError(f"prepare.key_file={key_file} holds fewer than 16 bytes; give 32 as hex, or let it be made")
    return Keyring(secret)


def write_link_table(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write the restricted table (id, kind, what it stands for), mode 0600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    _write_private(temporary, "")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "kind", "source"))
        writer.writerows(rows)
    os.replace(temporary, path)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
