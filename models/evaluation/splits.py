"""What is to be found, and what may be known: the last behavior of each user, or everything after a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from feast_embeddings.models.encoder import HistoryBatch, ItemIndex, segments
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation.ranking import Ragged
from feast_embeddings.models.types import Bools, Int64s


@dataclass(frozen=True, slots=True)
class RankingTask:
    """Q questions: which items of a catalogue of V come next, given a history?

    Attributes:
        training: What a method may learn from; one history per user.
        histories: What is known when a question is asked, [Q]; it stands at its ``as_of``.
        targets: The items to be found, as catalogue columns, [Q].
        catalogue: The items that are ranked.
        known: bool [V], the items that occur in ``training``: the others are the unseen ones.
        users: int64 [Q], who asks: questions of one user are resampled together.
        filtered: Items taken out of a user's ranking, [Q], or None where nothing is.
    """

    training: HistoryBatch
    histories: HistoryBatch
    targets: Ragged
    catalogue: ItemIndex
    known: Bools
    users: Int64s
    filtered: Ragged | None = None

    def __len__(self) -> int:
        """Number of questions, Q."""
        return len(self.histories)

    def take(self, questions: Int64s) -> RankingTask:
        """The task of ``questions`` (int64 [R]), in that order."""
        return replace(
            self,
            histories=self.histories.take(questions),
            targets=self.targets.take(questions),
            users=self.users[questions],
            filtered=None if self.filtered is None else self.filtered.take(questions),
        )


def leave_one_out(histories: HistoryBatch, catalogue: ItemIndex | None = None, *, filter_seen: bool) -> RankingTask:
    """Each user's last behavior is to be found, given the ones before it.

    Users of fewer than two behaviors are only learned from.

    Args:
        histories: Whole histories, one per user.
        catalogue: The items that are ranked. Default: all items of ``histories``.
        filter_seen: Whether a user's earlier items are taken out of the ranking: right where nobody repeats.

    Raises:
        EvaluationError: No user has two behaviors.
    """
    catalogue = ItemIndex.of(histories.items) if catalogue is None else catalogue
    asked = np.flatnonzero(histories.lengths > 1)
    if not len(asked):
        raise EvaluationError("No user has two behaviors, so there is no last one to find: give longer histories.")
    last = histories.offsets[1:] - 1
    stop = np.where(histories.lengths > 1, last, last + 1)
    training = cut(
        histories, histories.offsets[:-1], stop, np.where(stop == last, histories.times[last], histories.as_of)
    )
    targets = Ragged.single(catalogue.rows(histories.items[last[asked]]) - 1)
    return _task(training, training.take(asked), targets, catalogue, asked, filter_seen)


def time_split(
    histories: HistoryBatch,
    at_us: int,
    *,
    until_us: int | None = None,
    catalogue: ItemIndex | None = None,
    follow: bool = False,
    sample: int | None = None,
    filter_seen: bool,
) -> RankingTask:
    """What happens after a time is to be found, and everything before it may be learned from.

    Each user is asked once, at ``at_us``: every distinct item up to ``until_us`` is a target. With ``follow``, one
    question stands before each later behavior instead, whose item is the target, given all behaviors with an earlier
    event time, those after ``at_us`` among them: the tables stay as of the split, the histories go on.

    Args:
        histories: Whole histories, one per user, oldest behavior first.
        at_us: The split, microseconds.
        until_us: Behaviors from then on are left out. Default: none are.
        catalogue: The items that are ranked. Default: all items of ``histories``.
        follow: Whether to ask before each later behavior.
        sample: At most so many questions, drawn at random, the same ones each time.
        filter_seen: Whether a user's earlier items are taken out of the ranking.

    Raises:
        EvaluationError: Nothing happened before, or nothing after, the split.
    """
    catalogue = ItemIndex.of(histories.items) if catalogue is None else catalogue
    until_us = np.iinfo(np.int64).max if until_us is None else until_us
    owner = histories.owner
    past = np.bincount(owner, histories.times < at_us, len(histories)).astype(np.int64)
    middle = histories.offsets[:-1] + past
    training = cut(histories, histories.offsets[:-1], middle, np.full(len(histories), at_us))
    later = np.flatnonzero((histories.times >= at_us) & (histories.times < until_us))
    later = later[catalogue.rows(histories.items[later]) > 0]
    if not len(later) or not len(training.items):
        raise EvaluationError(
            f"The split at {at_us} µs leaves {len(training.items)} behaviors to learn from and {len(later)} to find: "
            "choose a time inside the log."
        )
    if follow:
        asked = _sampled(later, sample)
        start = histories.offsets[:-1][owner[asked]]
        first = _first_of_its_time(histories, owner)[asked]  # what happens at the same time is not known yet
        known = cut(histories, start, first, histories.times[asked])
        targets = Ragged.single(catalogue.rows(histories.items[asked]) - 1)
        return _task(training, known, targets, catalogue, owner[asked], filter_seen)
    asked = _sampled(np.unique(owner[later]), sample)
    later = later[np.isin(owner[later], asked)]
    bounds = np.append(np.searchsorted(owner[later], asked), len(later))
    targets = Ragged(bounds, catalogue.rows(histories.items[later]) - 1).distinct(len(catalogue))
    return _task(training, training.take(asked), targets, catalogue, asked, filter_seen)


def cut(histories: HistoryBatch, start: Int64s, stop: Int64s, as_of: Int64s) -> HistoryBatch:
    """Histories of rows ``start[q]:stop[q]`` of the flat behaviors, as of ``as_of[q]``: int64 [Q] each."""
    return histories.gathered(*segments(start, stop - start), np.asarray(as_of, np.int64))


def _task(
    training: HistoryBatch, histories: HistoryBatch, targets: Ragged, catalogue: ItemIndex, users: Int64s, seen: bool
) -> RankingTask:
    known = np.zeros(len(catalogue) + 1, np.bool_)
    known[catalogue.rows(training.items)] = True
    filtered = items_of(histories, catalogue) if seen else None
    return RankingTask(training, histories, targets, catalogue, known[1:], users.astype(np.int64), filtered)


def items_of(histories: HistoryBatch, catalogue: ItemIndex) -> Ragged:
    """The catalogue columns of each history's items; items outside the catalogue are left out."""
    rows = catalogue.rows(histories.items)
    return Ragged(histories.offsets, rows - 1).where(rows > 0)


def distinct_items(histories: HistoryBatch, catalogue: ItemIndex) -> Ragged:
    """The catalogue columns of each history's items, each once, ascending."""
    return items_of(histories, catalogue).distinct(len(catalogue))


def _sampled(rows: Int64s, size: int | None) -> Int64s:
    if size is None or size >= len(rows):
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, size, replace=False))


def _first_of_its_time(histories: HistoryBatch, owner: Int64s) -> Int64s:
    """For each behavior, the row of the first one of the same user and time: int64 [N]."""
    new = np.ones(len(owner), np.bool_)
    new[1:] = (owner[1:] != owner[:-1]) | (histories.times[1:] != histories.times[:-1])
    return np.maximum.accumulate(np.where(new, np.arange(len(owner)), 0))
