"""The files beside the shards, read and written: ledger, quarantine, and the removal of what no manifest names.

``ledger.jsonl`` says what became of each study, by keyed ids. It and the index have a name of their own for each
dataset of a chain, so that a kill at any point leaves either the old dataset or the new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from data_prep.ledger import Account, Entry, Tally
from fm.data.index import History, Manifest, Shard, open_store, publish
from fm.data.store import Access, Store

QUARANTINE = "quarantine.jsonl"
SUMMARY = "prepare.json"
_OURS = re.compile(r"shard-.*\.tar|(samples|series|duplicates)(-\d+)?\.parquet|ledger(-\d+)?\.jsonl")


def ledger_name(history: History) -> str:
    """Name of the ledger that belongs to an index."""
    return history.samples.replace("samples", "ledger").replace(".parquet", ".jsonl")


def read_ledger(out: str, history: History) -> Iterator[Account]:
    """What became of each study of a finished dataset.

    Raises:
        DatasetError: it cannot be read.
    """
    for line in Store(out, Access()).whole(ledger_name(history)).splitlines():
        yield Account.from_json(json.loads(line))


def ledger_line(account: Account) -> bytes:
    """A study's line; lines stand in the order of the studies' keys."""
    return (json.dumps(account.as_json(), sort_keys=True) + "\n").encode()


def write_quarantine(out: str, entries: Sequence[Entry]) -> None:
    """Write the list of what could not be used."""
    fs, root = open_store(out)
    lines = "".join(json.dumps(entry.as_json(), sort_keys=True) + "\n" for entry in entries)
    publish(fs, f"{root}/{QUARANTINE}", lines.encode())


def read_quarantine(out: str) -> list[Entry]:
    """The list of a finished dataset."""
    lines = Store(out, Access()).whole(QUARANTINE).splitlines()
    return Tally.from_json({"entries": [json.loads(line) for line in lines], "excluded": {}, "contrasts": {}}).entries


def next_number(shards: Sequence[Shard]) -> int:
    """Number of the shard that follows."""
    return max((int(shard.name.split("-")[1].removesuffix(".tar")) for shard in shards), default=-1) + 1


def remove_others(out: str, manifest: Manifest) -> None:
    """Remove the shards, indices, tables and ledgers that the manifest does not name: those of datasets before it."""
    fs, root = open_store(out)
    fs.invalidate_cache()
    history = manifest.history
    kept = {shard.name for shard in manifest.shards} | {history.samples, ledger_name(history)}
    kept |= {history.named(table) for table in manifest.tables}
    for entry in fs.ls(root, detail=True):
        name = str(entry["name"]).rsplit("/", 1)[-1]
        if _OURS.fullmatch(name) and name not in kept:
            fs.rm_file(f"{root}/{name}")
