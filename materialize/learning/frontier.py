"""Quality against cost of replayed policies: the frontier, what it recommends, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feast_embeddings.materialize.declare import describe
from feast_embeddings.materialize.learning.candidates import Replayed
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation import Estimate, Evaluation

COLUMNS: Final = ("policy", "quality", "of best", "cost", "behaviors", "encode s", "state B", "behind")
"""Of :meth:`Frontier.rows`."""


@dataclass(frozen=True, slots=True)
class Point:
    """One policy: what its vectors were worth, and what they cost.

    Attributes:
        name: Of the candidate.
        declaration: The policy as it is declared; None where no policy alone declares it.
        quality: Mean and interval.
        share: ``quality`` as a share of the reference's.
        difference: ``quality`` less the reference's, with the interval of paired differences.
        behaviors: Behaviors that went through the encoder.
        cost: ``behaviors`` as a share of the reference's.
        histories: Histories encoded.
        seconds: Of encoding, on this machine.
        state_bytes: Per entity: the vector, and what the next tick reads.
        behind: Behaviors, in the mean, that a vector did not know when it was read.
    """

    name: str
    declaration: str | None
    quality: Estimate
    share: float
    difference: Estimate
    behaviors: int
    cost: float
    histories: int
    seconds: float
    state_bytes: float
    behind: float


@dataclass(frozen=True, slots=True)
class Frontier:
    """Policies by cost.

    Attributes:
        measure: What quality is, such as ``ndcg@10``.
        reference: Name of the point that quality and cost are shares of.
        points: Cheapest first.
    """

    measure: str
    reference: str
    points: tuple[Point, ...]

    @classmethod
    def of(cls, replayed: Sequence[Replayed], found: Evaluation, reference: str, measure: str = "ndcg@10") -> Frontier:
        """The points of replays that ``found`` evaluated under the candidates' names."""
        exact = next(each for each in replayed if each.candidate.name == reference)
        best = found.methods[reference].estimates["all"][measure].value
        points = [_point(each, exact, found, best, measure) for each in replayed]
        return cls(measure, reference, tuple(sorted(points, key=lambda point: (point.behaviors, -point.share))))

    def best(self) -> list[Point]:
        """The points that no other one beats in quality at the same or a lower cost, cheapest first."""
        kept: list[Point] = []
        for point in self.points:
            if not kept or point.quality.value > kept[-1].quality.value:
                kept.append(point)
        return kept

    def recommended(self, *, max_cost: float | None = None, min_quality: float | None = None) -> Point:
        """The best policy within a cost, or the cheapest with a quality; both are shares of the reference's.

        With both, the cheapest of that quality, if its cost is within. Only what a view can declare is recommended.

        Raises:
            EvaluationError: No policy meets the bounds.
        """
        points = [point for point in self.points if point.declaration is not None]
        within = [point for point in points if max_cost is None or point.cost <= max_cost]
        fine = [point for point in within if min_quality is None or point.share >= min_quality]
        if not fine:
            nearest = max(within or points, key=lambda point: (point.share, -point.cost))
            raise EvaluationError(
                f"No policy meets a cost of at most {max_cost} and a quality of at least {min_quality} of the "
                f"reference's; the nearest is {nearest.declaration} at cost {nearest.cost:.3f}, quality "
                f"{nearest.share:.3f}: loosen a bound, or replay other policies."
            )
        if min_quality is None:
            return max(fine, key=lambda point: (point.share, -point.cost))
        return min(fine, key=lambda point: (point.cost, point.state_bytes, -point.share))

    def rows(self) -> list[tuple[str, ...]]:
        """For people, a row per point under :data:`COLUMNS`: cheapest first; what lies on the frontier is marked."""
        best = {point.name for point in self.best()}
        return [
            (
                f"{'▸' if point.name in best else ' '} {point.name}",
                f"{point.quality.value:.4f} ±{(point.quality.high - point.quality.low) / 2:.4f}",
                f"{point.share:.1%}",
                f"{point.cost:.3f}",
                f"{point.behaviors:,}",
                f"{point.seconds:.1f}",
                f"{point.state_bytes:,.0f}",
                f"{point.behind:.2f}",
            )
            for point in self.points
        ]


def _point(each: Replayed, exact: Replayed, found: Evaluation, best: float, measure: str) -> Point:
    name = each.candidate.name
    quality = found.methods[name].estimates["all"][measure]
    return Point(
        name,
        describe(each.candidate.policy) if each.candidate.declarable else None,
        quality,
        quality.value / best if best else 0.0,
        found.difference(name, exact.candidate.name, measure),
        each.spent.behaviors,
        each.spent.behaviors / max(exact.spent.behaviors, 1),
        each.spent.histories,
        each.spent.seconds,
        each.state_bytes,
        float(each.behind.mean()) if len(each.behind) else 0.0,
    )


def draw(path: Path, frontier: Frontier, title: str) -> None:
    """Draw quality and state bytes against encode cost; needs matplotlib, of the extra ``demo``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    best = frontier.best()
    sizes = [20 + point.state_bytes / 20 for point in frontier.points]
    colors = ["tab:blue" if point.declaration else "tab:orange" for point in frontier.points]
    costs = [max(point.cost, 1e-4) for point in frontier.points]
    axes.scatter(costs, [point.share for point in frontier.points], sizes, colors, alpha=0.6, zorder=3)
    axes.plot([max(point.cost, 1e-4) for point in best], [point.share for point in best], color="0.5", linewidth=1)
    shown = {point.name for point in best} | {frontier.reference}
    for place, point in enumerate(each for each in frontier.points if each.name in shown):
        shift = (6, -13) if place % 2 else (-6, 9)
        align = "left" if place % 2 else "right"
        at = (max(point.cost, 1e-4), point.share)
        axes.annotate(point.name, at, xytext=shift, textcoords="offset points", fontsize=8, ha=align)
    axes.set_xscale("log")
    axes.axhline(1.0, color="0.8", linewidth=1, zorder=1)
    axes.margins(x=0.2, y=0.12)
    axes.set_xlabel("behaviors encoded, as a share of the reference's (log scale); area: state bytes per user")
    axes.set_ylabel(f"{frontier.measure}, as a share of the reference's")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
