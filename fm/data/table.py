"""The rows of ``samples.parquet`` as columns: a million open in seconds, and one becomes an object when asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fm.data.sample import LabelValue
from fm.data.store import DatasetError, Member

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),
        ("region", pa.string()),
        ("shard", pa.string()),
        (
            "members",
            pa.list_(
                pa.struct(
                    [("name", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("crc32", pa.int64())]
                )
            ),
        ),
        ("labels", pa.string()),
    ]
)
_REPEATING = ("split", "region", "shard", "members.list.element.name")
"""Columns of few different words: kept as numbers into a dictionary."""


@dataclass(kw_only=True, slots=True)
class Sample:
    """One study's row of the index."""

    key: str
    patient: str
    split: str
    region: str
    shard: str
    members: dict[str, Member]
    """By extension: 'json', '<series>.b2', '<series>.seg.b2'."""
    labels: dict[str, LabelValue] = field(default_factory=dict)


class SampleTable(Sequence[Sample]):
    """Rows of the index; indexing and iteration make :class:`Sample` objects, which are copies."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        self._by_key: NDArray[np.int64] | None = None
        self._columns: dict[str, pa.Array] = {}

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleTable:
        """Columns of these rows."""
        if isinstance(samples, SampleTable):
            return samples
        rows = [
            {
                **{name: getattr(s, name) for name in ("key", "patient", "split", "region", "shard")},
                "members": [{"name": name, **asdict(member)} for name, member in sorted(s.members.items())],
                "labels": json.dumps(s.labels, sort_keys=True),
            }
            for s in samples
        ]
        return cls(pa.Table.from_pylist(rows, schema=_SCHEMA))

    @classmethod
    def join(cls, tables: Sequence[SampleTable]) -> SampleTable:
        """The rows of several tables, one after another."""
        plain = [pa.table([table._plain(name) for name in _SCHEMA.names], schema=_SCHEMA) for table in tables]
        return cls(pa.concat_tables(plain or [_SCHEMA.empty_table()]))

    def with_splits(self, splits: Mapping[str, str]) -> SampleTable:
        """The same rows, each study in its split."""
        words = pa.array([splits[key] for key in self.column("key").to_pylist()], type=pa.string())
        at = _SCHEMA.get_field_index("split")
        return SampleTable(self.table.set_column(at, _SCHEMA.field(at), words))

    @classmethod
    def from_parquet(cls, payload: bytes) -> SampleTable:
        """Read what :meth:`to_parquet` wrote.

        Raises:
            ArrowException, ValueError: damaged, or other columns.
        """
        file = pq.ParquetFile(io.BytesIO(payload), read_dictionary=list(_REPEATING))
        table = file.read()
        if table.column_names != _SCHEMA.names or any(column.null_count for column in table.columns):
            raise ValueError("other columns, or empty cells")
        for name in ("key", "patient", "labels"):
            if table.schema.field(name).type != pa.string():
                raise ValueError(f"column {name} is no text")
        found = cls(table)
        places = [found.members.field(name) for name in ("offset", "length", "crc32")]
        if any(place.type != pa.int64() or place.null_count for place in places):
            raise ValueError("members are not where bytes lie")
        return found

    def to_parquet(self) -> bytes:
        """The file's bytes; equal rows give equal bytes."""
        sink = io.BytesIO()
        # One row group: the dictionaries of several could not be joined again.
        table = pa.table([self._plain(name) for name in _SCHEMA.names], schema=_SCHEMA)
        pq.write_table(table, sink, compression="zstd", row_group_size=max(1, len(self)))
        return sink.getvalue()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> list[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | list[Sample]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return _sample({name: self.column(name)[at].as_py() for name in _SCHEMA.names})

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield _sample(row)

    def column(self, name: str) -> pa.Array:
        """One column, in one piece."""
        if name not in self._columns:
            found = self.table[name]
            one = found.chunk(0) if found.num_chunks == 1 else pa.concat_arrays(found.chunks or [_empty(name)])
            self._columns[name] = one
        return self._columns[name]

    def _plain(self, name: str) -> pa.Array:
        """A column with its dictionary written out."""
        column = self.column(name)
        if pa.types.is_dictionary(column.type):
            return column.dictionary_decode()
        if name == "members" and pa.types.is_dictionary(column.type.value_type.field("name").type):
            word, *numbers = (column.values.field(i) for i in range(4))
            values = pa.StructArray.from_arrays(
                [word.dictionary_decode(), *numbers], ["name", "offset", "length", "crc32"]
            )
            return pa.ListArray.from_arrays(column.offsets, values)
        return column

    def codes(self, name: str) -> tuple[NDArray[np.int64], list[str]]:
        """(N,) number of each row's word in a column of few words, and the words."""
        column = self.column(name)
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        return np.asarray(column.indices, dtype=np.int64), column.dictionary.to_pylist()

    @property
    def members(self) -> pa.StructArray:
        """Members of all rows, end to end: name, offset, length, crc32."""
        return self.column("members").flatten()

    @property
    def members_per_row(self) -> NDArray[np.int64]:
        """(N,) how many members each row has."""
        return np.asarray(pc.list_value_length(self.column("members")), dtype=np.int64)

    @property
    def by_key(self) -> NDArray[np.int64]:
        """(N,) rows in the order of their keys."""
        if self._by_key is None:
            keys = self.column("key")
            ascending = len(self) < 2 or pc.all(pc.less(keys[:-1], keys[1:])).as_py()
            order = np.arange(len(self)) if ascending else np.asarray(pc.sort_indices(keys))
            self._by_key = order.astype(np.int64)
        return self._by_key

    def row(self, key: str) -> int | None:
        """Row of a study; None where it is not here."""
        order, keys = self.by_key, self.column("key")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if keys[int(order[middle])].as_py() < key:
                low = middle + 1
            else:
                high = middle
        found = int(order[low]) if low < len(self) else -1
        return found if found >= 0 and keys[found].as_py() == key else None

    def where(self, **words: str | None) -> SampleTable:
        """The rows whose columns hold these words; None takes all."""
        kept = np.ones(len(self), dtype=bool)
        for name, word in words.items():
            if word is not None:
                kept &= np.asarray(pc.equal(self.column(name), word), dtype=bool)
        return self if kept.all() else SampleTable(self.table.filter(pa.array(kept)))

    def kept(self, kept_N: Sequence[bool]) -> SampleTable:
        """The rows that are true."""
        return SampleTable(self.table.filter(pa.array(kept_N, type=pa.bool_())))

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "_by_key": self._by_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.table, self._by_key, self._columns = state["table"], state["_by_key"], {}


def _empty(name: str) -> pa.Array:
    return pa.array([], type=_SCHEMA.field(name).type)


def _sample(row: dict[str, Any]) -> Sample:
    try:
        members = {m["name"]: Member(m["offset"], m["length"], m["crc32"]) for m in row["members"]}
        labels = json.loads(row["labels"])
        if not isinstance(labels, dict):
            raise TypeError("labels")
    except (ValueError, TypeError, KeyError) as err:
        raise DatasetError(f"study {row['key']}: its row of the index is damaged; make the index again") from err
    return Sample(**{**row, "members": members, "labels": labels})
