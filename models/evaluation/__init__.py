"""Whether vectors rank well: tasks, baselines to beat, measures and their intervals."""

from feast_embeddings.models.evaluation.baselines import markov_table, popularity, repeat_purchase
from feast_embeddings.models.evaluation.bootstrap import Estimate, bootstrap
from feast_embeddings.models.evaluation.ease import ease
from feast_embeddings.models.evaluation.evaluate import BASELINES, Evaluation, MethodScores, evaluate
from feast_embeddings.models.evaluation.ranking import (
    Ragged,
    RankingScores,
    Scorer,
    evaluate_ranking,
    inner_products,
    measures,
    target_ranks,
)
from feast_embeddings.models.evaluation.splits import (
    RankingTask,
    cut,
    distinct_items,
    items_of,
    leave_one_out,
    time_split,
)

__all__ = [
    "BASELINES",
    "Estimate",
    "Evaluation",
    "MethodScores",
    "Ragged",
    "RankingScores",
    "RankingTask",
    "Scorer",
    "bootstrap",
    "cut",
    "distinct_items",
    "ease",
    "evaluate",
    "evaluate_ranking",
    "inner_products",
    "items_of",
    "leave_one_out",
    "markov_table",
    "measures",
    "popularity",
    "repeat_purchase",
    "target_ranks",
    "time_split",
]
