"""How far a training is: a bar where somebody looks, a line per epoch where a log is kept."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID

from feast_embeddings.models.sequence.averaged import EpochReport


class TrainingProgress:
    """Shows a training on stderr while the ``with`` block runs: a bar on a terminal, lines elsewhere.

    Args:
        total: Epochs, at most.
        shown: False shows nothing.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(console=self._console, disable=not (shown and self._console.is_terminal))
        self._task: TaskID = self._bar.add_task("training", total=total)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        """Begins to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the bar, if there is one."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """One line, whoever looks."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, epochs: float) -> None:
        """So many epochs are done; only a bar shows parts of them."""
        self._bar.update(self._task, completed=epochs)

    def epoch(self, report: EpochReport) -> None:
        """An epoch is over."""
        score = (
            ""
            if report.hr10 is None or report.ndcg10 is None
            else f", validation HR@10 {report.hr10:.4f}, NDCG@10 {report.ndcg10:.4f}"
        )
        line = f"epoch {report.epoch}, loss {report.loss:.3f}{score}"
        self._bar.update(self._task, description=line)
        if not self._console.is_terminal:
            self.say(f"{line}; {report.seconds:.1f} s, {time.monotonic() - self._started:.1f} s in all")
