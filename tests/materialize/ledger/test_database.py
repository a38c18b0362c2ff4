"""The ledger: numbers, states and what a stopped job finds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.records import Generation, Tick
from feast_embeddings.materialize.ledger.schema import SCHEMA_VERSION
from feast_embeddings.models.errors import LedgerError, SpaceError

VIEW, ENCODER = "user_embedding", "main"
DAY = 86_400_000_000


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def _tick(ledger: Ledger, end: int = DAY, view: str = VIEW, targets: tuple[str, ...] = ("f",)) -> Tick:
    return ledger.record_tick(view, start_us=end - DAY, end_us=end, created_from_us=None, targets=targets)


def _refresh(ledger: Ledger, space: str = "a" * 16, view: str = VIEW, end: int = DAY) -> Tick:
    return ledger.record_refresh(view, ENCODER, space, start_us=None, end_us=end, created_from_us=None)


def _ready(ledger: Ledger, tick: Tick) -> str:
    ledger.update_fill(tick.fills[0], state="ready", rows=3)
    ledger.update_tick(tick, state="written", rows=3)
    return tick.fills[0]


def _cut_over(ledger: Ledger, fills: dict[str, str], states: dict[str, str], us: int) -> Generation:
    generation = ledger.record_generation(ENCODER, fills)
    ledger.finish_cutover(generation, us, states)
    return ledger.generations(ENCODER)[-1]


# ── ticks ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ticks_count_up_per_view(ledger: Ledger) -> None:
    numbers = [_tick(ledger).number, _refresh(ledger).number, _tick(ledger, view="other").number, _tick(ledger).number]
    assert numbers == [1, 2, 1, 3]


def test_a_tick_keeps_what_was_recorded(ledger: Ledger) -> None:
    with simulated(5 * DAY):
        tick = ledger.record_tick(VIEW, start_us=1, end_us=DAY, created_from_us=2, targets=["f", "g"])
    assert (tick.start_us, tick.end_us, tick.created_from_us, tick.created_until_us) == (1, DAY, 2, 5 * DAY)
    assert (tick.kind, tick.state, tick.fills) == ("incremental", "recorded", ("f", "g"))
    assert ledger.tick(VIEW, tick.number) == tick


def test_the_open_tick_is_the_one_that_is_only_recorded(ledger: Ledger) -> None:
    assert ledger.open_tick(VIEW) is None
    tick = _tick(ledger)
    assert ledger.open_tick(VIEW) == tick
    ledger.update_tick(tick, state="published")
    assert ledger.open_tick(VIEW) is None


def test_the_last_tick_is_one_whose_rows_reached_the_store(ledger: Ledger) -> None:
    first = ledger.update_tick(_refresh(ledger), state="written")
    second = ledger.update_tick(_tick(ledger, 2 * DAY), state="published")
    _tick(ledger, 3 * DAY)
    assert ledger.last_tick(VIEW) == second
    assert ledger.last_tick(VIEW, "full") == first
    assert ledger.last_tick("other") is None


def test_published_ticks_are_those_that_end_after_a_time(ledger: Ledger) -> None:
    for end in (1, 2, 3):
        ledger.update_tick(_tick(ledger, end * DAY), state="published")
    _tick(ledger, 4 * DAY)
    assert [tick.number for tick in ledger.published_ticks(VIEW, end_after_us=DAY)] == [2, 3]


def test_an_abandoned_tick_keeps_its_number_and_nothing_else_counts(ledger: Ledger) -> None:
    kept = ledger.update_tick(_tick(ledger), state="published")
    ledger.set_members(kept, 5, "digest", {"read": 6, "applied": 5, "deduplicated": 1})
    tick = _refresh(ledger, end=2 * DAY)
    ledger.set_members(tick, 7, "digest", {"read": 7, "applied": 7, "deduplicated": 0})
    ledger.abandon(tick)
    assert ledger.open_tick(VIEW) is None
    assert ledger.last_tick(VIEW) == ledger.tick(VIEW, kept.number)
    assert _tick(ledger).number == tick.number + 1
    assert ledger.counts(VIEW) == {"read": 6, "applied": 5, "deduplicated": 1}
    assert ledger.fill(tick.fills[0]).state == "retired"


def test_members_set_again_replace_what_was_counted(ledger: Ledger) -> None:
    tick = _tick(ledger)
    ledger.set_members(tick, 2, "x", {"read": 3, "applied": 2, "quarantined: item missing": 1})
    again = ledger.set_members(tick, 1, "y", {"read": 1, "applied": 1})
    assert (again.members, again.digest) == (1, "y")
    assert ledger.counts(VIEW, tick.number) == {"read": 1, "applied": 1}


# ── spaces, fills, generations ───────────────────────────────────────────────────────────────────────────────


def test_a_space_belongs_to_one_encoder(ledger: Ledger) -> None:
    ledger.register_space("s", ENCODER, 8, "cpu/float32")
    ledger.register_space("s", ENCODER, 8, "cpu/float32")
    with pytest.raises(SpaceError, match=r"Space s already belongs to encoder 'main'.*give both views"):
        ledger.register_space("s", "other", 8, "cpu/float32")


def test_a_refresh_makes_a_fill_that_is_building(ledger: Ledger) -> None:
    tick = _refresh(ledger)
    (fill,) = ledger.fills(view=VIEW)
    assert (fill.fill, fill.state, fill.space, fill.tick, fill.encoder) == (
        tick.fills[0],
        "building",
        "a" * 16,
        tick.number,
        ENCODER,
    )
    assert ledger.fills(view=VIEW, states=("live",)) == []
    assert ledger.fills(encoder="other") == []


def test_a_cutover_is_pending_until_it_is_finished(ledger: Ledger) -> None:
    tick = _refresh(ledger)
    fill = _ready(ledger, tick)
    generation = ledger.record_generation(ENCODER, {VIEW: fill})
    assert (generation.generation, generation.cutover_us) == (1, None)
    assert ledger.live_generation(ENCODER) is None
    assert ledger.record_generation(ENCODER, {VIEW: fill}) == generation, "a pending one is taken up again"
    ledger.finish_cutover(generation, 77, {fill: "live"})
    live = ledger.live_generation(ENCODER)
    assert live is not None
    assert (live.generation, live.cutover_us, dict(live.fills)) == (1, 77, {VIEW: fill})
    assert ledger.fill(fill).state == "live"
    assert (ledger.tick(VIEW, tick.number).state, ledger.tick(VIEW, tick.number).published_us) == ("published", 77)


def test_a_cutover_publishes_no_tick_that_was_published_before(ledger: Ledger) -> None:
    first = _ready(ledger, _refresh(ledger))
    _cut_over(ledger, {VIEW: first}, {first: "live"}, 10)
    second = _ready(ledger, _refresh(ledger, "b" * 16))
    _cut_over(ledger, {VIEW: second}, {second: "live", first: "retained"}, 20)
    _cut_over(ledger, {VIEW: first}, {first: "live", second: "retained"}, 30)
    assert [tick.published_us for tick in ledger.published_ticks(VIEW)] == [10, 20]


def test_serving_says_which_fill_reads_returned_since_when(ledger: Ledger) -> None:
    first, second = _ready(ledger, _refresh(ledger)), _ready(ledger, _refresh(ledger, "b" * 16))
    _cut_over(ledger, {VIEW: first}, {first: "live"}, 10)
    _cut_over(ledger, {VIEW: second}, {second: "live", first: "retained"}, 20)
    ledger.record_generation(ENCODER, {VIEW: first}, rollback=True)
    found = [(step.from_us, step.fill, step.space) for step in ledger.serving(VIEW, ENCODER)]
    assert found == [(10, first, "a" * 16), (20, second, "b" * 16)]
    assert ledger.serving("other", ENCODER) == []


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_one_ledger_wrote_another_one_reads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    tick = _tick(Ledger(url))
    assert Ledger(url).tick(VIEW, tick.number) == tick


def test_a_ledger_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO feast_embeddings_schema VALUES (?)", (SCHEMA_VERSION + 1,))
    with pytest.raises(LedgerError, match=rf"schema version {SCHEMA_VERSION + 1}.*upgrade the package"):
        Ledger(f"sqlite:///{path}")


def _read_only(tmp_path: Path) -> str:
    path = tmp_path / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return f"sqlite:///file:{path}?mode=ro&uri=true"


def _not_a_database(tmp_path: Path) -> str:
    path = tmp_path / "ledger.db"
    path.write_text("no database " * 100)
    return f"sqlite:///{path}"


@pytest.mark.parametrize(
    "url",
    [
        _read_only,
        _not_a_database,
        lambda tmp_path: f"sqlite:///{tmp_path / 'missing' / 'ledger.db'}",
        lambda _: "nosuchdb://somewhere/ledger",
        lambda _: "no url at all",
    ],
    ids=["read-only", "not a database", "missing folder", "unknown kind", "no url"],
)
def test_a_ledger_that_cannot_be_used_says_so(url, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="Check"):
        _tick(Ledger(url(tmp_path)))


def test_messages_show_no_password(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger("nosuchdb://user:secret@somewhere/ledger")
    assert "secret" not in str(caught.value)


def test_names_of_fills_fit_however_long_the_views_are_and_stay_apart(ledger: Ledger) -> None:
    views = ["short", "v" * 46, "v" * 47, "v" * 61, "v" * 100, "v" * 99 + "w"]
    refreshes = [
        ledger.record_refresh(view, "main", "0123456789abcdef", start_us=None, end_us=DAY, created_from_us=None)
        for view in views
    ]
    names = [name for refresh in refreshes for name in refresh.fills]
    assert len(set(names)) == len(views)
    assert max(map(len, names)) <= 64
    assert names[0] == "short-1-01234567"
