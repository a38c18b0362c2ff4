"""Messages that hold no behavior at all, kept with their bytes: one parquet file per view and tick that had some."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.materialize.files.appended import OFFSET, PARTITION

POISON: Final = pa.schema(
    [(PARTITION, pa.int32()), (OFFSET, pa.int64()), ("payload", pa.binary()), ("reason", pa.string())]
)


class PoisonMessages:
    """The poison of all streams under one folder; a tick that is run again replaces its own file (effectively once)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, view: str, tick: int, messages: pa.Table) -> None:
        """Keep the poison of a tick: partition, offset, payload, reason."""
        path = self._folder(view) / f"{tick:012d}.parquet"
        if not len(messages):
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        pq.write_table(messages, temporary, compression="zstd")
        temporary.replace(path)

    def read(self, view: str) -> pa.Table:
        """All poison of a view, in the order of ticks."""
        files = sorted(self._folder(view).glob("*.parquet"))
        return pa.concat_tables([POISON.empty_table(), *(pq.read_table(file, partitioning=None) for file in files)])

    def views(self) -> list[str]:
        """Views that have some."""
        return sorted(unquote(folder.name) for folder in self.folder.glob("*"))

    def erase(self, view: str, entity_id: int | str) -> int:
        """Remove every message whose bytes contain the id: nobody can tell what else they mean. How many."""
        gone = 0
        for file in sorted(self._folder(view).glob("*.parquet")):
            messages = pq.read_table(file, partitioning=None)
            left = messages.filter(pc.invert(pc.match_substring(messages["payload"], str(entity_id))))
            gone += len(messages) - len(left)
            if len(left) < len(messages):
                self.write(view, int(file.stem), left)
        return gone

    def _folder(self, view: str) -> Path:
        return self.folder / quote(view, safe="")
