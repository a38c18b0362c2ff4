"""Training that can be taken up again: tensors in safetensors, the rest in JSON, replaced as one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from feast_embeddings.models.encoder import write_atomically
from feast_embeddings.models.errors import ArtifactError

_PROGRESS = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A point in a training run, at the end of an epoch.

    Attributes:
        run: Identity of the run: its configuration and data.
        progress: JSON values.
        tensors: Weights and optimizer state by name.
    """

    run: str
    progress: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def save(self, directory: Path) -> None:
        """Replaces the checkpoint in ``directory``; a crash leaves the old one or the new one, whole."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"checkpoint-{self.progress['epoch']}.safetensors"
        write_atomically(directory / name, save({key: value.contiguous() for key, value in self.tensors.items()}))
        facts = {"run": self.run, "tensors": name, "progress": self.progress}
        write_atomically(directory / _PROGRESS, json.dumps(facts).encode())
        for file in directory.glob("checkpoint-*.safetensors"):
            if file.name != name:
                file.unlink(missing_ok=True)

    @classmethod
    def load(cls, directory: Path) -> Checkpoint | None:
        """The checkpoint in ``directory``, or None where there is none.

        Raises:
            ArtifactError: It is damaged.
        """
        if not (directory / _PROGRESS).exists():
            return None
        try:
            facts = json.loads((directory / _PROGRESS).read_bytes())
            return cls(facts["run"], facts["progress"], load_file(directory / facts["tensors"]))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ArtifactError(f"Training checkpoint {directory} is damaged ({error}).") from error
