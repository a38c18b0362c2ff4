"""Reads a team's behavior table: a parquet file, a folder of them, or a glob."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from glob import glob
from operator import and_
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Bools, Ids, Int64s
from feast_embeddings.transformations.behaviors import (
    DAY_US,
    BehaviorContract,
    check_columns,
    check_names,
    read_times,
    ticks_at_or_after,
)

_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a behavior table, some of them left out.

    Attributes:
        path: A parquet file, a folder (with its subfolders and hive partitions), or a glob.
        without: Whether a file is left out, given its path; asked whenever the table is read.
    """

    path: str
    without: Callable[[Path], bool] = lambda _: False

    def __str__(self) -> str:
        """The path, as messages name the table."""
        return self.path


Place = str | Path | Files


Bounds = tuple[int | None, int | None]
"""``from <= time < until`` in microseconds since the epoch, UTC; None is open."""

_OPEN: Bounds = (None, None)
listed_again: Final = retry(retry=retry_if_exception_type(FileNotFoundError), stop=stop_after_attempt(5), reraise=True)
"""Lists files anew where some went, put together into one, between their listing and their reading."""


@listed_again
def read_behaviors(
    path: Place,
    contract: BehaviorContract,
    *,
    event_us: Bounds = _OPEN,
    created_us: Bounds = _OPEN,
    entities: Ids | None = None,
    undated: bool = True,
) -> pa.Table:
    """The contract's raw columns of the rows within the bounds; the bounds reach the parquet statistics.

    A row without a created time counts as created at its event time. No row is judged here: that is ``prepare``'s work.

    Args:
        path: A parquet file, a folder (with its subfolders and hive partitions), or a glob.
        contract: Which columns to read.
        event_us: Bounds of the event time.
        created_us: Bounds of the created time.
        entities: Only behaviors of these: int64 or str [B].
        undated: Whether to return rows whose event time is null, or has no zone while the contract declares
            none. No bound on event time can place them, and ``prepare`` quarantines them. A job that reads
            window after window asks for them once.

    Raises:
        BehaviorSourceError: The path is missing, holds no parquet file or no row, a file is truncated or not
            parquet, or a column is missing or of an impossible type.
    """
    dataset, plain = _open(path, contract)
    wanted = _all_of(
        _superset(plain, contract, contract.event_time, event_us),
        _superset(plain, contract, contract.created_time, created_us),
        _belongs(dataset.schema.field(contract.entity), entities),
    )
    table = _scan(dataset, contract, wanted, path)
    if event_us == created_us == _OPEN and undated:
        return table
    return table.filter(pa.array(_inside(table, contract, event_us, created_us, undated=undated)))


def scan_behaviors(
    path: Place, contract: BehaviorContract, *, event_until_us: int, created_until_us: int | None = None
) -> Iterator[pa.Table]:
    """What ``read_behaviors`` returns for these bounds, undated rows included, a part in memory at a time.

    Raises:
        BehaviorSourceError: As ``read_behaviors``.
    """
    dataset, plain = _open(path, contract)
    event, created = (None, event_until_us), (None, created_until_us)
    wanted = _all_of(
        _superset(plain, contract, contract.event_time, event),
        _superset(plain, contract, contract.created_time, created),
    )
    columns = list(contract.columns.values())
    for batch in _batches(dataset, columns, wanted, path):
        table = pa.Table.from_batches([batch])
        yield table.filter(pa.array(_inside(table, contract, event, created, undated=True)))


def scan_entities(path: Place, contract: BehaviorContract, *, event_until_us: int) -> Iterator[pa.Array]:
    """The entity column of about the behaviors before a time, in parts: a day more or less.

    Raises:
        BehaviorSourceError: As ``read_behaviors``.
    """
    dataset, plain = _open(path, contract)
    wanted = _superset(plain, contract, contract.event_time, (None, event_until_us))
    for batch in _batches(dataset, [contract.entity], wanted, path):
        yield batch.column(0)


def _all_of(*filters: ds.Expression | None) -> ds.Expression | None:
    given = [part for part in filters if part is not None]
    return reduce(and_, given) if given else None


def _batches(
    dataset: ds.Dataset, columns: list[str], wanted: ds.Expression | None, path: Place
) -> Iterator[pa.RecordBatch]:
    try:
        # few batches ahead: all of them at once would be the table that is not to be held
        yield from dataset.to_batches(
            columns=columns, filter=wanted, batch_size=1 << 17, batch_readahead=2, fragment_readahead=1
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _open(path: Place, contract: BehaviorContract) -> tuple[ds.Dataset, pa.Schema]:
    """The table, and those of its columns whose bounds may go into a scan.

    Arrow compares a file's statistics in the file's own type, and has no kernel for two zones.
    """
    table = path if isinstance(path, Files) else Files(str(path))
    files = [file for file in _files(table.path) if not table.without(Path(file))]
    folder = table.path if Path(table.path).is_dir() else None
    path = table.path
    rows, schemas = 0, []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                rows += parquet.metadata.num_rows
                check_names(parquet.schema_arrow, file)
            schemas.append(_dataset([file], folder).schema)
        except FileNotFoundError:
            raise
        except (pa.ArrowInvalid, OSError) as error:
            raise BehaviorSourceError(
                f"{file} is not a whole parquet file ({_first_line(error)}). Write it again, to a temporary name "
                "that is renamed when it is complete, or take it out of the behavior source."
            ) from error
        check_columns(schemas[-1], contract, file)
    if not rows:
        raise BehaviorSourceError(
            f"The behavior source {path} has no rows (files: {len(files)}). Point the FileSource at the "
            "table that "
            "is being written, or wait for its first rows."
        )
    common = _common_schema(schemas, contract, path)
    even = [field for field in common if all(_zone(each.field(field.name)) == _zone(field) for each in schemas)]
    return _dataset(files, folder, common), pa.schema(even)


def _dataset(files: list[str], folder: str | None, schema: pa.Schema | None = None) -> ds.Dataset:
    return ds.dataset(files, schema, format="parquet", partitioning="hive", partition_base_dir=folder)


def _files(path: str) -> list[str]:
    place = Path(path)
    if place.is_file():
        return [path]
    if place.is_dir():
        found = [
            str(file)
            for file in sorted(place.rglob("*"))
            if file.suffix in _SUFFIXES and not _hidden(file.relative_to(place))
        ]
        if not found:
            raise BehaviorSourceError(f"The folder {path} holds no .parquet file; point the behavior source at one.")
        return found
    matches = glob(path, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(file for file in matches if Path(file).is_file())
    if not found:
        raise BehaviorSourceError(
            f"The behavior source {path} does not exist (looked from {Path.cwd()}). "
            "Set the path of the FileSource to a parquet file, a folder of them, or a glob."
        )
    return found


def _hidden(file: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in file.parts)


def _common_schema(schemas: list[pa.Schema], contract: BehaviorContract, path: Place) -> pa.Schema:
    """One schema of the contract's columns that all files can be cast to."""
    wanted = list(contract.columns.values())
    plain = [pa.schema([_plain(schema.field(name)) for name in wanted]) for schema in schemas]
    try:
        return pa.unify_schemas(plain, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise BehaviorSourceError(
            f"The files of {path} store a column in types that do not go together ({_first_line(error)}). "
            "Write them all with one type."
        ) from error


def _plain(field: pa.Field) -> pa.Field:
    """The field without a dictionary, and in UTC if it has a zone: under any zone, equal instants are stored alike."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        kind = pa.timestamp(kind.unit, tz="UTC")
    return pa.field(field.name, kind)


def _zone(field: pa.Field) -> str | None:
    return field.type.tz if pa.types.is_timestamp(field.type) else None


def _scan(dataset: ds.Dataset, contract: BehaviorContract, wanted: ds.Expression | None, path: Place) -> pa.Table:
    try:
        return dataset.to_table(columns=list(contract.columns.values()), filter=wanted)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Place, error: BaseException) -> BehaviorSourceError:
    return BehaviorSourceError(
        f"The behavior source {path} cannot be read to its end ({_first_line(error)}). A file is damaged: "
        "write it again."
    )


def _usable(kind: pa.DataType, contract: BehaviorContract) -> bool:
    """Whether the column's times are instants: timestamps with a zone, their own or the declared one."""
    return bool(pa.types.is_timestamp(kind)) and (kind.tz is not None or contract.naive_time_zone is not None)


def _superset(
    schema: pa.Schema, contract: BehaviorContract, column: str | None, bounds: Bounds
) -> ds.Expression | None:
    """A filter that keeps every row the bounds may hold, and the rows without a time; None keeps all."""
    if column is None or bounds == _OPEN or column not in schema.names:
        return None
    if not _usable(schema.field(column).type, contract):
        return None
    kind = schema.field(column).type
    # Wall times are at most 14 hours off UTC: a day of slack here, exact bounds after the read.
    slack = DAY_US if kind.tz is None and contract.naive_time_zone != "UTC" else 0
    times = ds.field(column)
    inside = times.is_valid()
    start, end = bounds
    if start is not None:
        inside &= times >= _scalar(start - slack, kind)
    if end is not None:
        inside &= times < _scalar(end + slack, kind)
    return inside | times.is_null()


def _scalar(us: int, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(ticks_at_or_after(us, kind.unit), pa.int64()).cast(kind)


def _belongs(field: pa.Field, entities: Ids | None) -> ds.Expression | None:
    if entities is None:
        return None
    column = ds.field(field.name)
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return column.isin(pa.array([str(entity) for entity in entities], field.type))
    if entities.dtype != object and pa.types.is_uint64(field.type):  # values past int64 are nobody's, and no error
        return column.isin(pa.array(entities[entities >= 0].astype(np.uint64)))
    if entities.dtype != object:
        return column.cast(pa.int64(), safe=False).isin(pa.array(entities, pa.int64()))
    return column.cast(pa.string()).isin(pa.array(entities, pa.string()))


def _inside(table: pa.Table, contract: BehaviorContract, event: Bounds, created: Bounds, *, undated: bool) -> Bools:
    happened = read_times(table[contract.event_time], contract.naive_time_zone)
    dated = ~happened.missing & happened.zoned
    kept = np.where(dated, _within(event, happened.us), undated)
    written_us, known = happened.us, dated
    if contract.created_time is not None:
        written = read_times(table[contract.created_time], contract.naive_time_zone)
        has_created = ~written.missing & written.zoned
        written_us, known = np.where(has_created, written.us, happened.us), dated | has_created
    return np.asarray(kept & np.where(known, _within(created, written_us), undated), dtype=np.bool_)


def _within(bounds: Bounds, us: Int64s) -> Bools:
    start, end = bounds
    inside = np.ones(len(us), dtype=np.bool_) if start is None else us >= start
    return inside if end is None else inside & (us < end)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", maxsplit=1)[0]
