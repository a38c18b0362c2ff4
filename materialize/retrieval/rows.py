"""One historical retrieval: the rows asked for, and a job that answers them in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView
from feast.errors import EntityTimestampInferenceException
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.saved_dataset import SavedDatasetStorage
from feast.types import String
from pandas.api.types import infer_dtype

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Int64s

ROW = "__feast_embeddings_row"
_UTC_US = pa.timestamp("us", tz="UTC")
_EPOCH, _IMPLAUSIBLE = pd.Timestamp(0, tz="UTC"), pd.Timedelta(days=31)
_NUMBERS = ("integer", "floating", "mixed-integer", "mixed-integer-float", "decimal", "boolean")
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class EntityRows:
    """The rows of an ``entity_df``, as the caller ordered them.

    Attributes:
        frame: A copy, event timestamps in UTC.
        table: The same as Arrow.
        timestamp: Name of the event timestamp column.
        times_us: int64 [n], microseconds since the epoch, UTC; the smallest int64 where there is none.
    """

    frame: pd.DataFrame
    table: pa.Table
    timestamp: str
    times_us: Int64s

    @classmethod
    def of(cls, entity_df: object) -> EntityRows:
        """Reads an ``entity_df``: timestamps without a zone are UTC, as everywhere in Feast.

        Raises:
            DeclarationError: It is no data frame, has no event timestamp or implausible ones, or a column of mixed
                types.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise DeclarationError(
                f"get_historical_features got entity_df of type {type(entity_df).__name__}, and this offline store "
                "answers a pandas DataFrame: give one with the join keys and an event_timestamp per row."
            )
        timestamp = _timestamp_of(entity_df)
        times = _times_of(entity_df[timestamp])
        frame = entity_df.assign(**{timestamp: times}).reset_index(drop=True)
        try:
            table = pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DeclarationError(
                f"entity_df cannot be read ({error}): give each column values of one type."
            ) from error
        column = table[timestamp].cast(_UTC_US, safe=False)
        table = table.set_column(table.column_names.index(timestamp), timestamp, column)
        return cls(frame, table, timestamp, column.cast(pa.int64()).fill_null(_NO_TIME).to_numpy())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def timed(self) -> npt.NDArray[np.bool_]:
        """Rows that have an event timestamp, bool [n]."""
        return np.asarray(self.times_us != _NO_TIME, np.bool_)

    def ids(self, view: FeatureView) -> pa.Array:
        """The entities of ``view``: int64 or string [n], as its join key is declared.

        Raises:
            DeclarationError: The column is missing, or holds ids of another type.
        """
        key = view.entity_columns[0]
        name = (view.projection.join_key_map or {}).get(key.name, key.name)
        if name not in self.table.column_names:
            raise DeclarationError(
                f"entity_df has no column {name!r}, the join key of view {view.name!r} (columns: "
                f"{', '.join(map(str, self.frame.columns))}): add it."
            )
        values = self.table[name].combine_chunks()
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.dictionary_decode(), kind.value_type
        target = pa.string() if key.dtype == String else pa.int64()
        accepted = _is_text if key.dtype == String else _is_number
        try:
            if accepted(kind) or pa.types.is_null(kind):
                return values.cast(target)
        except pa.ArrowInvalid:
            pass
        raise DeclarationError(
            f"Column {name!r} of entity_df is {kind}, and the join key of view {view.name!r} is {target}: "
            f"convert it, such as entity_df[{name!r}].astype({'str' if key.dtype == String else 'int'!r})."
        )


@dataclass(frozen=True)
class Asked:
    """The features asked of one view.

    Attributes:
        view: The view, or a projection of it.
        columns: Feature → column of the result.
    """

    view: FeatureView
    columns: dict[str, str]

    @classmethod
    def of(cls, view: FeatureView, feature_refs: Sequence[str], full_feature_names: bool) -> Asked:
        """Picks a view's features from ``view:feature`` references, and names them as stock Feast does."""
        projection: Any = view.projection
        prefix = f"{projection.name_to_use()}:"
        name = view.projection.name_alias or view.name
        found = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
        # a stream view that comes back from the registry lists its join key among its features
        keys = {column.name for column in view.entity_columns}
        features = [feature for feature in found if feature not in keys]
        return cls(view, {feature: f"{name}__{feature}" if full_feature_names else feature for feature in features})


class ServedRetrievalJob(RetrievalJob):
    """Answers when asked to: entity rows in their order, then a column per feature.

    Args:
        rows: The entity rows.
        asked: What is asked of every view, in the order of the result's columns.
        compute: The features as columns [n].
        on_demand: On-demand views, computed by Feast from the result.
        full_feature_names: Whether columns carry their view's name.
        features: The feature references of the request.
        write: Writes a table to a saved dataset's storage.
    """

    def __init__(
        self,
        rows: EntityRows,
        asked: Sequence[Asked],
        compute: Callable[[], dict[str, pa.ChunkedArray]],
        *,
        on_demand: list[OnDemandFeatureView],
        full_feature_names: bool,
        features: list[str],
        write: Callable[[pa.Table, SavedDatasetStorage, bool], None],
    ) -> None:
        super().__init__()
        self._rows = rows
        self._names = [name for each in asked for name in each.columns.values()]
        self._compute = compute
        self._on_demand = on_demand
        self._full_feature_names = full_feature_names
        self._features = features
        self._write = write

    @property
    def full_feature_names(self) -> bool:
        """Whether columns carry their view's name."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """On-demand views that Feast computes from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        """The features, the join keys and other columns, and the range of times asked for."""
        times = self._rows.frame[self._rows.timestamp].dropna()
        return RetrievalMetadata(
            features=self._features,
            keys=[column for column in self._rows.frame.columns if column != self._rows.timestamp],
            min_event_timestamp=_datetime(times.min()) if len(times) else None,
            max_event_timestamp=_datetime(times.max()) if len(times) else None,
        )

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Writes the result, on-demand features included, to a saved dataset's storage."""
        self._write(self.to_arrow(timeout=timeout), storage, allow_overwrite)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        computed = self._compute()
        table = self._rows.table
        for name in [*self._names, *(name for name in computed if name not in self._names)]:
            table = table.append_column(name, computed[name])
        return table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame


def check_names(rows: EntityRows, asked: Sequence[Asked]) -> None:
    """Every column of the result has one meaning.

    Raises:
        DeclarationError: Two features, or a feature and a column of ``entity_df``, have one name.
    """
    seen = set(rows.table.column_names)
    for each in asked:
        for name in each.columns.values():
            if name in seen:
                raise DeclarationError(
                    f"Column {name!r} of the result would stand for feature view {each.view.name!r} and for "
                    "something else: ask with full_feature_names=True, or rename the column of entity_df."
                )
            seen.add(name)


def _times_of(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column as times of whole microseconds in UTC: floored, as every store keeps them.

    Numbers, which pandas takes for nanoseconds, are refused; and times so near 1970 that they were numbers of another
    unit before.
    """
    if infer_dtype(column, skipna=True) in _NUMBERS:
        raise DeclarationError(
            f"Column {column.name!r} of entity_df holds numbers, and which unit of time they count cannot be told: "
            f"convert them, such as pd.to_datetime(entity_df[{column.name!r}], unit='ms', utc=True)."
        )
    try:
        times = pd.to_datetime(column, utc=True, format="ISO8601").dt.floor("us")
    except (ValueError, TypeError, OverflowError) as error:
        raise DeclarationError(
            f"Column {column.name!r} of entity_df does not hold times ({error}): give datetimes or ISO 8601 text."
        ) from error
    if ((times >= _EPOCH) & (times < _EPOCH + _IMPLAUSIBLE)).any():
        raise DeclarationError(
            f"Column {column.name!r} of entity_df has times of January 1970, as numbers of seconds, milliseconds or "
            "microseconds give when they are read as nanoseconds: convert them with their unit, such as "
            "pd.to_datetime(numbers, unit='ms', utc=True)."
        )
    return times


def _timestamp_of(frame: pd.DataFrame) -> str:
    try:
        return str(infer_event_timestamp_from_entity_df(dict(zip(frame.columns, frame.dtypes, strict=True))))
    except EntityTimestampInferenceException as error:
        raise DeclarationError(
            "entity_df has no column event_timestamp, and not exactly one column of datetimes to take for it: "
            "name the time of each row event_timestamp."
        ) from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _datetime(time: pd.Timestamp) -> datetime:
    return time.to_pydatetime(warn=False)
