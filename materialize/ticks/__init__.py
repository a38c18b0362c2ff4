"""The unit of work: membership, one way through its steps, refreshes and what they catch up with, cutovers."""

from feast_embeddings.materialize.ticks.activity import check_end, write_plain
from feast_embeddings.materialize.ticks.beside import held_back, hold_resource
from feast_embeddings.materialize.ticks.compute import UserVectors
from feast_embeddings.materialize.ticks.cutover import Cutovers, manifest_of
from feast_embeddings.materialize.ticks.milestones import CUTOVER, RETIREMENT, TICK, listening, progress, reached
from feast_embeddings.materialize.ticks.pipeline import Pipeline
from feast_embeddings.materialize.ticks.runner import Outcome, Runner
from feast_embeddings.materialize.ticks.view_work import ViewWork

__all__ = [
    "CUTOVER",
    "RETIREMENT",
    "TICK",
    "Cutovers",
    "Outcome",
    "Pipeline",
    "Runner",
    "UserVectors",
    "ViewWork",
    "check_end",
    "held_back",
    "hold_resource",
    "listening",
    "manifest_of",
    "progress",
    "reached",
    "write_plain",
]
