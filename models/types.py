"""Arrays by what they hold, as signatures name them; shapes and units stand in the docstrings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64] | npt.NDArray[np.object_]
"""Raw entity or item ids: int64, or Python strings in an object array."""
