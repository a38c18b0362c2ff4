"""Every error this package raises on purpose, as one small tree.

::

    FeastEmbeddingsError
    ├── DeclarationError      a declaration in the feature repo cannot be right
    ├── BehaviorSourceError   a behavior table is missing, empty, or lacks what the contract needs
    ├── ArtifactError         an encoder artifact is missing, truncated, foreign or altered
    ├── SpaceError            vectors of two spaces would meet, or a space is not served
    ├── LedgerError           the ledger is unreadable, newer than this package, or disagrees with a file
    │   └── OvertakenError    another job recorded a tick first
    ├── LeaseError            another job holds the view, or took it over
    ├── EvaluationError       a ranking cannot be judged: nothing to find, or scores that are no numbers
    ├── TickError             a unit of work cannot be run as asked (end before start, in the future, …)
    ├── OnlineStoreError      Redis cannot be reached, or refused a command
    └── StreamError           a source of behaviors cannot be reached, or lost what was recorded

Each message names the object, says what is wrong with it, and what to do about it.
"""


class FeastEmbeddingsError(Exception):
    """Root of the tree; catch it to catch all the others."""


class DeclarationError(FeastEmbeddingsError, ValueError):
    """A declaration in the feature repo cannot be right."""


class BehaviorSourceError(FeastEmbeddingsError, ValueError):
    """A behavior table is missing, empty, or lacks what the contract needs."""


class ArtifactError(FeastEmbeddingsError):
    """An encoder artifact is missing, truncated, of another format, or altered."""


class SpaceError(FeastEmbeddingsError):
    """Vectors of two spaces would meet, or a space is not served."""


class LedgerError(FeastEmbeddingsError):
    """The ledger is unreadable, newer than this package, or disagrees with a file."""


class OvertakenError(LedgerError):
    """Another job recorded a tick between the look at what is due and its recording."""


class HeldError(LedgerError):
    """Micro-batches are held back for a moment, while a refresh joins in what came last."""


class LeaseError(FeastEmbeddingsError):
    """Another job holds the view, or took it over."""


class EvaluationError(FeastEmbeddingsError, ValueError):
    """A ranking cannot be judged: nothing is to be found, or scores are no numbers."""


class TickError(FeastEmbeddingsError, ValueError):
    """A unit of work cannot be run as asked."""


class OnlineStoreError(FeastEmbeddingsError):
    """Redis cannot be reached, or refused a command."""


class StreamError(FeastEmbeddingsError):
    """A source of behaviors cannot be reached, or lost what was recorded."""
