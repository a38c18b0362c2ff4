"""Items by what they are: text, labels, numbers and vectors beside behaviors."""

from feast_embeddings.models.content.fusion import FusionEncoder, fusing
from feast_embeddings.models.content.item_features import ItemFeatures
from feast_embeddings.models.content.text import TextEncoder, TextMap
from feast_embeddings.models.content.text_model import TextModel

__all__ = ["FusionEncoder", "ItemFeatures", "TextEncoder", "TextMap", "TextModel", "fusing"]
