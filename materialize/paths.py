"""Where one feature repo keeps things, by Feast's own config; nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from feast import RepoConfig

from feast_embeddings.models.errors import DeclarationError


@dataclass(frozen=True)
class RepoPaths:
    """Paths of one feature repo. Relative paths of its declarations start at its root.

    Attributes:
        root: The feature repo's folder.
        state: Its state folder: ledger, encoders by space, quarantine.
        ledger_url: SQLAlchemy URL of the ledger.
    """

    root: Path
    state: Path
    ledger_url: str

    @classmethod
    def of(cls, config: RepoConfig) -> RepoPaths:
        """The paths of a feature repo; raises DeclarationError where it does not use our engine."""
        engine = config.batch_engine
        if not hasattr(engine, "state"):
            raise DeclarationError(
                f"Project {config.project!r}: batch_engine is {getattr(engine, 'type', engine)!r}: write "
                "`batch_engine: {type: feast_embeddings.materialize.engine.EmbeddingEngine}` in feature_store.yaml."
            )
        root = Path(config.repo_path or ".")
        state = root / engine.state
        return cls(root, state, engine.ledger or f"sqlite:///{state / 'ledger.db'}")

    @property
    def quarantine(self) -> Path:
        """Bad behaviors, per view and tick."""
        return self.state / "quarantine"

    def encoder(self, space: str) -> Path:
        """The copy of a space's encoder that is kept aside."""
        return self.state / "encoders" / space
