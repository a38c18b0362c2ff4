"""What an encoder keeps of a history, so that one more behavior costs one step of attention and no new encode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.encoder import HistoryBatch, Landing, Tokens, latest, width_chunks
from feast_embeddings.models.errors import BehaviorSourceError, SpaceError
from feast_embeddings.models.sequence.attention import KeysValues
from feast_embeddings.models.sequence.transformer import Transformer
from feast_embeddings.models.types import Float32s, Int64s

# Cached and new behaviors per chunk, as in `row_blocks`: fixed shapes, so that no row depends on its neighbors.
_CHUNK_TOKENS = {"cpu": 8192, "mps": 65536, "cuda": 262144}


@dataclass(frozen=True, slots=True)
class CachedState:
    """Attention's keys and values of U users' last behaviors; never changed, `extended` makes a new one.

    The last behavior of each waits outside: how long it was until the next one is not known yet, and is part of
    what the encoder sees of it.

    Attributes:
        space: Of the encoder that made it.
        numeric_path: That made it.
        keys: [U, blocks, heads, S, dim / heads], flush right, S = span - 1; float32, or bfloat16 of a bf16 encoder.
        values: Same shape and dtype.
        kept: int64 [U], how many of the S are real.
        last: At most one behavior per user, as of when its vector was last computed.
    """

    space: str
    numeric_path: str
    keys: torch.Tensor
    values: torch.Tensor
    kept: Int64s
    last: HistoryBatch

    def __len__(self) -> int:
        """Number of users, U."""
        return len(self.kept)

    @property
    def bytes_per_user(self) -> int:
        """Bytes of keys and values per user, whatever the length of the history."""
        return 2 * self.keys[:1].numel() * self.keys.element_size() if len(self) else 0

    def take(self, rows: Int64s) -> CachedState:
        """The state of users ``rows`` (int64 [R]), in that order."""
        at = torch.from_numpy(rows).to(self.keys.device)
        return CachedState(
            self.space, self.numeric_path, self.keys[at], self.values[at], self.kept[rows], self.last.take(rows)
        )


def empty_state(encoder: Transformer, like: HistoryBatch) -> CachedState:
    """The state of as many users as ``like`` has, none of whom did anything yet."""
    config = encoder.config
    shape = (len(like), config.blocks, config.heads, config.span - 1, config.dim // config.heads)
    dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
    keys, values = (torch.zeros(shape, dtype=dtype, device=encoder.device) for _ in range(2))
    nothing = HistoryBatch.empty(like.items, like.as_of)
    return CachedState(encoder.space, encoder.numeric_path, keys, values, np.zeros(len(like), np.int64), nothing)


def extended(encoder: Transformer, state: CachedState, new: HistoryBatch) -> tuple[Float32s, CachedState]:
    """Vectors float32 [U, dim] and the state after each user's ``new`` behaviors, as of ``new.as_of``.

    Raises:
        SpaceError: The state is of another encoder or numeric path.
        BehaviorSourceError: A new behavior is older than what the state holds, or users differ in number.
    """
    _check(encoder, state, new)
    joined = state.last.followed_by(new)
    kept = np.where(joined.lengths > encoder.context, 0, state.kept)  # beyond it, what was cached is out of reach
    joined = latest(joined, encoder.context)
    vectors = np.zeros((len(joined), encoder.dim), np.float32)
    made = KeysValues(torch.zeros_like(state.keys), torch.zeros_like(state.values))
    with encoder.evaluating():
        _fill(encoder, KeysValues(state.keys, state.values), kept, joined, vectors, made)
    kept = np.minimum(kept + np.maximum(joined.lengths - 1, 0), encoder.config.span - 1)
    last = latest(joined, 1)
    return vectors, CachedState(state.space, state.numeric_path, made.keys, made.values, kept, last)


def _fill(
    encoder: Transformer, past: KeysValues, kept: Int64s, joined: HistoryBatch, vectors: Float32s, made: KeysValues
) -> None:
    """Vectors of ``joined`` behaviors after the ``kept`` ones of the ``past``, and the past that they make."""
    tokens = Tokens.of(joined, encoder.items, encoder.normalizer, len(encoder.behavior_types))
    landing, device, room = Landing(vectors, encoder.device), encoder.device, past.keys.shape[3]
    widths = _widths(encoder.context)
    for rows, width in width_chunks(joined.lengths, widths, lambda width: _chunk_rows(width, room, device)):
        size = _chunk_rows(width, room, device)
        starts, lengths, real = np.zeros((3, size), np.int64)  # rows beyond the chunk's are padding
        starts[: len(rows)], lengths[: len(rows)], real[: len(rows)] = (
            joined.offsets[rows],
            joined.lengths[rows],
            kept[rows],
        )
        padded = tokens.padded(torch.from_numpy(starts), torch.from_numpy(lengths), width).to(device)
        of = torch.from_numpy(np.concatenate([rows, np.repeat(rows[:1], size - len(rows))])).to(device)
        before = KeysValues(past.keys[of], past.values[of])
        last = torch.from_numpy(np.maximum(lengths - 1, 0)).to(device)
        states, after = _continued(encoder, padded, before, torch.from_numpy(real).to(device), last)
        made.keys[of[: len(rows)]] = after.keys[: len(rows)]
        made.values[of[: len(rows)]] = after.values[: len(rows)]
        landing.put(rows, states)
    landing.finish()


def _continued(
    encoder: Transformer, tokens: Tokens, past: KeysValues, kept: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, KeysValues]:
    """Final states (R, D) at columns ``last`` (R,), and the past [R, blocks, H, S, D / H] without that behavior."""
    x = encoder.embedded(tokens)  # (R, L, D)
    room, width = past.keys.shape[3], x.shape[1]
    at = torch.arange(room + width, device=x.device)
    distance = torch.arange(width, device=x.device)[:, None] + room - at  # (L, S + L)
    unreal = (at < room - kept[:, None])[:, None, None]  # (R, 1, 1, S + L)
    slots = (last[:, None] + at[:room])[:, None, :, None].expand(-1, past.keys.shape[2], -1, past.keys.shape[4])
    made: list[KeysValues] = []
    for number, block in enumerate(encoder.layers):
        bias = block.bias_of(distance).masked_fill(unreal, float("-inf"))  # (R, H, L, S + L)
        x, every = block.following(x, KeysValues(past.keys[:, number], past.values[:, number]), bias)
        made.append(KeysValues(every.keys.gather(2, slots), every.values.gather(2, slots)))
    states = encoder.norm(x[torch.arange(len(x), device=x.device), last])
    after = KeysValues(torch.stack([kv.keys for kv in made], 1), torch.stack([kv.values for kv in made], 1))
    return states, after


def _chunk_rows(width: int, room: int, device: torch.device) -> int:
    return max(-(-64 // width), _CHUNK_TOKENS[device.type] // (width + room))


def _widths(context: int) -> Int64s:
    """1, 2, 4 … below ``context``, and ``context``: most users did little since."""
    return np.array([*(1 << power for power in range(context.bit_length()) if 1 << power < context), context])


def _check(encoder: Transformer, state: CachedState, new: HistoryBatch) -> None:
    made_by, asked = (state.space, state.numeric_path), (encoder.space, encoder.numeric_path)
    if made_by != asked:
        raise SpaceError(
            f"The cached state is of space {made_by[0]} on {made_by[1]}, the encoder of {asked[0]} on {asked[1]}: "
            "encode the whole histories again with encode_with_state."
        )
    if len(state) != len(new):
        raise BehaviorSourceError(
            f"The cached state holds {len(state)} users, the new behaviors are of {len(new)}: give one history per "
            "user of the state, empty where nothing happened; state.take chooses users."
        )
    both = (state.last.lengths > 0) & (new.lengths > 0)
    if (new.times[new.offsets[:-1][both]] < state.last.times[state.last.offsets[:-1][both]]).any():
        raise BehaviorSourceError(
            "A new behavior is older than the last one of its user's cached state: "
            "encode that user's whole history again with encode_with_state."
        )
