"""Activity: how often each behavior type occurred in recent windows, and how long ago the last one was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations.behaviors import BehaviorContract, Behaviors, bisect_segments, duration_us
from feast_embeddings.transformations.histories.histories import pair_times, segments_before

RECENCY = "recency_seconds"


@dataclass(frozen=True, slots=True)
class ActivitySpec:
    """Which activity features there are.

    Attributes:
        windows: Lengths such as "30m", "12h", "7d", "4w"; each gives one count per behavior type.

    Raises:
        DeclarationError: There is no window, one is not a length, or one occurs twice.
    """

    windows: tuple[str, ...] = ("1d", "7d", "28d")

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        if not self.windows:
            raise DeclarationError("The activity has no windows; give some, such as windows=('1d', '7d').")
        for window in self.windows:
            duration_us(window, "ActivitySpec(windows=…)")
        if len(set(self.windows)) < len(self.windows):
            raise DeclarationError(f"An activity window occurs twice in {self.windows}; list each once.")

    @property
    def windows_us(self) -> tuple[int, ...]:
        """Lengths of the windows in microseconds."""
        return tuple(duration_us(window) for window in self.windows)

    def names(self, contract: BehaviorContract) -> tuple[str, ...]:
        """Names of the counts: ``{type}_{window}``, by type, then window."""
        return tuple(f"{name}_{window}" for name in contract.type_names for window in self.windows)

    def to_json(self) -> str:
        """The spec as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ActivitySpec:
        """The spec that ``to_json`` wrote.

        Raises:
            DeclarationError: The text is not that of an activity spec.
        """
        try:
            return cls(**json.loads(text))
        except DeclarationError:
            raise
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"The JSON is not that of an activity spec: {error}; use to_json().") from error


def activity(
    behaviors: Behaviors, contract: BehaviorContract, spec: ActivitySpec, entities: Ids, as_of_us: int | Int64s
) -> pa.Table:
    """Activity of entities as of any times, from behaviors strictly before each time.

    Args:
        behaviors: Everything that may count.
        contract: Names the behavior types.
        spec: Names the windows.
        entities: Ids [B], repeated and unknown ones allowed.
        as_of_us: One time for all or int64 [B], microseconds since the epoch, UTC.

    Returns:
        B rows: an int64 count per type and window, of event times in ``[t − window, t)``, and
        ``recency_seconds`` float64, the time since the last behavior of any type, null if there is none.
    """
    times = pair_times(entities, as_of_us)
    start, end = segments_before(behaviors, entities, times)
    opening = {
        window: bisect_segments(behaviors.times_us, start, end, times - length)
        for window, length in zip(spec.windows, spec.windows_us, strict=True)
    }
    columns: dict[str, pa.Array] = {}
    for code, name in enumerate(contract.type_names):
        before = np.concatenate([[0], np.cumsum(behaviors.behavior_types == code, dtype=np.int64)])
        for window in spec.windows:
            columns[f"{name}_{window}"] = pa.array(before[end] - before[opening[window]], pa.int64())
    columns[RECENCY] = _recency(behaviors, times, start, end)
    return pa.table(columns)


def _recency(behaviors: Behaviors, times: Int64s, start: Int64s, end: Int64s) -> pa.Array:
    if not len(behaviors):
        return pa.nulls(len(times), pa.float64())
    seconds = (times - behaviors.times_us[np.maximum(end - 1, 0)]) / 1e6
    return pa.array(seconds, pa.float64(), mask=end == start)
