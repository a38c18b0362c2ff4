"""What can be tried: a year of real purchases, a generated shop, and any file of declarations on data that fits it."""

from feast_embeddings.materialize.demo.example import ids_of, run_example, write_example
from feast_embeddings.materialize.demo.journey import write_journey
from feast_embeddings.materialize.demo.replay import feast_apply, make_repo
from feast_embeddings.materialize.demo.run import run_demo, training_config
from feast_embeddings.materialize.demo.scaffold import write_repo
from feast_embeddings.materialize.demo.shop import write_shop

__all__ = [
    "feast_apply",
    "ids_of",
    "make_repo",
    "run_demo",
    "run_example",
    "training_config",
    "write_example",
    "write_journey",
    "write_repo",
    "write_shop",
]
