"""Encoders: trained on a repo's own log, evaluated, weighed against what they cost, explained."""

from feast_embeddings.materialize.learning.backtest import Backtest
from feast_embeddings.materialize.learning.candidates import Candidate, Questions
from feast_embeddings.materialize.learning.evaluate import (
    HELD_AGAINST,
    Question,
    asked,
    evaluate_encoder,
    evaluate_policies,
    verdict,
)
from feast_embeddings.materialize.learning.explain import EntityExplanation, explain_entity
from feast_embeddings.materialize.learning.frontier import COLUMNS, Frontier, Point, draw
from feast_embeddings.materialize.learning.train import Training, train_declared, training_config

__all__ = [
    "COLUMNS",
    "HELD_AGAINST",
    "Backtest",
    "Candidate",
    "EntityExplanation",
    "Frontier",
    "Point",
    "Question",
    "Questions",
    "Training",
    "asked",
    "draw",
    "evaluate_encoder",
    "evaluate_policies",
    "explain_entity",
    "train_declared",
    "training_config",
    "verdict",
]
