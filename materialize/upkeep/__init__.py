"""What keeps a repo right: erasure, recovery, quarantine, and the removal of what is retired."""

from feast_embeddings.materialize.upkeep.erase import Receipt, forget
from feast_embeddings.materialize.upkeep.handing_back import hand_back, refused
from feast_embeddings.materialize.upkeep.living_rows import LivingRows
from feast_embeddings.materialize.upkeep.restore import restore
from feast_embeddings.materialize.upkeep.retire import retire

__all__ = ["LivingRows", "Receipt", "forget", "hand_back", "refused", "restore", "retire"]
