"""Which patients are held out: by the keyed order of their pseudonyms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from data_prep.keys import Keyring


def split_patients(patients: Sequence[str], fraction: float, seed: int, keyring: Keyring) -> dict[str, str]:
    """'test' for the first share of the patients in keyed order, 'train' for the rest.

    The share is met exactly (rounded; at least one patient on each side where there are two and a share is wanted),
    and the order depends on key, seed and pseudonyms alone.
    """
    order = _keyed(patients, seed, keyring)
    held = round(fraction * len(order))
    if fraction > 0 and len(order) > 1:
        held = min(max(held, 1), len(order) - 1)
    return {patient: "test" if rank < held else "train" for rank, patient in enumerate(order)}


def extend_splits(
    standing: Mapping[str, str], patients: Iterable[str], fraction: float, seed: int, keyring: Keyring
) -> dict[str, str]:
    """Splits of patients old and new: the old stay where they were, the new fill up the share in keyed order."""
    new = _keyed([patient for patient in patients if patient not in standing], seed, keyring)
    held = round(fraction * (len(standing) + len(new))) - sum(split == "test" for split in standing.values())
    return dict(standing) | {patient: "test" if rank < held else "train" for rank, patient in enumerate(new)}


def _keyed(patients: Iterable[str], seed: int, keyring: Keyring) -> list[str]:
    return sorted(set(patients), key=lambda patient: keyring.digest("split", str(seed), patient))
