"""Vectors as served: scenarios made by hand, then any scenario against a naive reading of the rule."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.materialize.declare import EmbeddingSpec, Incremental
from feast_embeddings.materialize.files import EmbeddingLog, LogStamp
from feast_embeddings.materialize.ledger import Fill, Ledger
from feast_embeddings.materialize.retrieval.served import served_space, served_vectors
from feast_embeddings.models.errors import LedgerError, SpaceError

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
SPEC = EmbeddingSpec(
    view="user_embedding",
    join_key="user_id",
    string_ids=False,
    tower="user",
    encoder="shop",
    artifact="data/encoders/shop",
    behaviors="behaviors",
    history="history",
    dim=2,
    policy=Incremental(),
    declared_space=None,
    log="log/user_embedding",
    ttl_us=0,
)
Row = tuple[int | str, float]


@dataclass
class World:
    """A real ledger and a real log, filled as jobs fill them; times are small numbers of microseconds."""

    folder: Path
    spec: EmbeddingSpec = SPEC
    states: dict[str, str] = field(default_factory=dict)
    written: list[tuple[str, int, int, int, int | str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(f"sqlite:///{self.folder / 'ledger.db'}")
        self.log = EmbeddingLog(self.folder / "log", self.spec.join_key, string_ids=self.spec.string_ids)
        self.log.create()

    def fill(self, space: str) -> Fill:
        """A new fill, its rows still to come."""
        tick = self.ledger.record_refresh(
            self.spec.view, self.spec.encoder, space, start_us=None, end_us=1, created_from_us=None
        )
        self.ledger.update_tick(tick, state="written")
        return self.ledger.fill(tick.fills[0])

    def cut_over(self, fill: Fill, at: int, rows: list[Row], written: int | None = None) -> Fill:
        """The first cutover to a fill, with the rows it was made with."""
        self._log(fill, fill.tick, at, at if written is None else written, rows)
        return self.switch(fill, at)

    def switch(self, fill: Fill, at: int) -> Fill:
        """A cutover to a fill whose rows are logged: a rollback, for one."""
        generation = self.ledger.record_generation(self.spec.encoder, {self.spec.view: fill.fill})
        self.states = {name: "retained" if state == "live" else "retired" for name, state in self.states.items()}
        self.states[fill.fill] = "live"
        self.ledger.finish_cutover(generation, at, self.states)
        return fill

    def tick(self, fill: Fill, at: int, rows: list[Row], *, live: bool = True, replayed: bool = False) -> None:
        """An incremental tick into one fill, readable from ``at`` on."""
        tick = self.ledger.record_tick(self.spec.view, start_us=1, end_us=2, created_from_us=None, targets=[fill.fill])
        self._log(fill, tick.number, at, at, rows, live=live, replayed=replayed)
        self.ledger.update_tick(tick, state="published", published_us=at)

    def read(self, *asked: tuple[int | str | None, int], pin: str | None = None) -> list[float | None]:
        """First numbers of the vectors read."""
        space = served_space(self.ledger, self.spec, pin)
        ids = pa.array([entity for entity, _ in asked], pa.string() if self.spec.string_ids else pa.int64())
        times = np.array([at for _, at in asked], np.int64)
        vectors = served_vectors(self.ledger, self.log, self.spec, space, ids, times)
        assert vectors.type == pa.list_(pa.float32())
        return [None if vector is None else vector[0] for vector in vectors.to_pylist()]

    def _log(
        self,
        fill: Fill,
        number: int,
        at: int,
        written: int,
        rows: list[Row],
        *,
        live: bool = True,
        replayed: bool = False,
    ) -> None:
        kind = object if self.spec.string_ids else np.int64
        vectors = np.array([[value, -value] for _, value in rows], np.float32).reshape(len(rows), 2)
        self.log.stage(fill.fill, number, np.array([entity for entity, _ in rows], kind), vectors)
        self.log.publish(LogStamp(fill.fill, fill.space, number, 2, written, at, replayed), live=live)
        self.written += [(fill.fill, number, at, written, entity, value) for entity, value in rows]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_nothing_is_read_before_the_first_cutover(world):
    assert world.read((1, 5)) == [None]

    world.cut_over(world.fill(A), 10, [(1, 1.0)])

    assert world.read((1, 9), (1, 10), (1, 10**15)) == [None, 1.0, 1.0]


def test_an_unknown_entity_and_a_null_one_have_no_vector(world):
    world.cut_over(world.fill(A), 10, [(1, 1.0)])

    assert world.read((2, 20), (None, 20), (1, 20)) == [None, None, 1.0]


def test_a_tick_is_read_from_its_own_time_on(world):
    fill = world.cut_over(world.fill(A), 10, [(1, 1.0), (2, 2.0)])
    world.tick(fill, 20, [(1, 1.5)])

    assert world.read((1, 19), (1, 20), (2, 25)) == [1.0, 1.5, 2.0]


def test_a_second_fill_of_the_space_takes_over_at_its_cutover(world):
    first = world.cut_over(world.fill(A), 10, [(1, 1.0), (2, 2.0)])
    second = world.fill(A)
    world.tick(first, 20, [(1, 1.5)])
    world.cut_over(second, 30, [(1, 3.0)])

    # entity 2 is not in the second fill: an online read finds nothing either
    assert world.read((1, 29), (1, 30), (2, 29), (2, 30)) == [1.5, 3.0, 2.0, None]


def test_ticks_that_catch_a_fill_up_stand_over_the_rows_it_was_made_with(world):
    world.cut_over(world.fill(A), 10, [(1, 1.0)])
    second = world.fill(A)
    world.tick(second, 20, [(1, 4.0)], live=False)
    world.cut_over(second, 30, [(1, 3.0), (2, 5.0)])

    assert world.read((1, 25), (1, 30), (2, 30)) == [1.0, 4.0, 5.0]


def test_two_spaces_are_never_mixed(world):
    old = world.cut_over(world.fill(A), 10, [(1, 1.0)])
    new = world.cut_over(world.fill(B), 30, [(1, 9.0)])
    world.tick(old, 40, [(1, 1.5)], live=False)
    world.tick(new, 40, [(1, 9.5)])

    # the live space was not served before its cutover
    assert world.read((1, 20), (1, 30), (1, 40)) == [None, 9.0, 9.5]
    # the retained one goes on receiving ticks
    assert world.read((1, 20), (1, 30), (1, 40), pin=A) == [1.0, 1.0, 1.5]
    assert world.read((1, 20), (1, 30), (1, 40), pin=B) == [None, 9.0, 9.5]


def test_a_rollback_returns_to_the_earlier_fill_and_its_ticks(world):
    first = world.cut_over(world.fill(A), 10, [(1, 1.0)])
    second = world.cut_over(world.fill(A), 30, [(1, 3.0)])
    world.tick(first, 35, [(1, 1.5)], live=False)
    world.tick(second, 35, [(1, 3.5)])
    world.switch(first, 40)

    assert world.read((1, 20), (1, 30), (1, 36), (1, 40)) == [1.0, 3.0, 3.5, 1.5]


def test_a_pin_on_a_space_that_is_not_served_is_refused_by_name(world):
    for at, space in ((10, A), (20, B), (30, B)):
        world.cut_over(world.fill(space), at, [(1, 1.0)])

    with pytest.raises(SpaceError, match=rf"'user_embedding'.*'{A}'.*Served spaces: {B}\."):
        world.read((1, 15), pin=A)
    with pytest.raises(SpaceError, match="'nowhere'"):
        world.read((1, 15), pin="nowhere")


def test_a_vector_is_served_up_to_its_ttl_and_not_longer(tmp_path):
    world = World(tmp_path, replace(SPEC, ttl_us=100))
    fill = world.cut_over(world.fill(A), 50, [(1, 1.0), (2, 2.0)], written=40)
    world.tick(fill, 120, [(1, 1.5)])

    # the ttl counts from the online write, and ends with the same comparison as online: age > ttl is too old
    assert world.read((2, 140), (2, 141), (1, 141), (1, 220), (1, 221)) == [2.0, None, 1.5, 1.5, None]


def test_replayed_rows_answer_only_before_the_space_was_served(world):
    fill = world.fill(A)
    world.tick(fill, 3, [(1, 0.5)], replayed=True)
    world.tick(fill, 6, [(1, 0.75)], replayed=True)
    world.cut_over(fill, 10, [(2, 2.0)])

    assert world.read((1, 2), (1, 3), (1, 9), (1, 10), (2, 10)) == [None, 0.5, 0.75, None, 2.0]


def test_string_ids_are_told_apart_as_text(tmp_path):
    world = World(tmp_path, replace(SPEC, string_ids=True))
    world.cut_over(world.fill(A), 10, [("7", 1.0), ("07", 2.0), ("ключ", 3.0)])

    assert world.read(("07", 10), ("7", 10), ("ключ", 10), ("x", 10)) == [2.0, 1.0, 3.0, None]


def test_bits_of_a_vector_are_kept(world):
    fill = world.fill(A)
    vector = np.array([[np.float32(-0.0), np.float32(1e-42)]], np.float32)
    world.log.stage(fill.fill, fill.tick, np.array([1]), vector)
    world.log.publish(LogStamp(fill.fill, A, fill.tick, 2, 10, 10), live=True)
    world.switch(fill, 10)

    read = served_vectors(world.ledger, world.log, SPEC, A, pa.array([1]), np.array([10]))

    assert np.array(read[0].as_py(), np.float32).tobytes() == vector.tobytes()


def test_a_compacted_log_answers_as_before(world):
    fill = world.cut_over(world.fill(A), 10, [(1, 1.0), (2, 2.0)])
    world.cut_over(world.fill(B), 20, [(1, 9.0)])
    world.tick(fill, 30, [(1, 1.5)], live=False)
    asked = [(1, 15), (1, 30), (2, 30)]
    before = world.read(*asked, pin=A)

    files = world.log.files()
    together = pa.concat_tables([pq.read_table(file) for file in files])
    for file in files:
        file.unlink()
    pq.write_table(together, world.log.folder / "live" / "0000000001-compacted.parquet")

    assert world.read(*asked, pin=A) == before == [1.0, 1.5, 2.0]


def test_a_damaged_file_is_an_error_that_names_the_log(world):
    world.cut_over(world.fill(A), 10, [(1, 1.0)])
    world.log.files()[-1].write_bytes(b"PAR1 is how it begins")

    with pytest.raises(LedgerError, match=r"embedding log .*log cannot be read"):
        world.read((1, 20))


# ── any scenario ─────────────────────────────────────────────────────────────────────────────────────────────

ENTITIES = st.integers(0, 3)
EVENT = st.one_of(
    st.tuples(st.just("cutover"), st.sampled_from([A, B]), st.sets(ENTITIES)),
    st.tuples(st.just("tick"), st.integers(0, 5), st.sets(ENTITIES)),
    st.tuples(st.just("rollback"), st.none(), st.none()),
)


@settings(max_examples=25)
@given(
    script=st.lists(st.tuples(st.integers(1, 3), EVENT), min_size=1, max_size=12),
    asked=st.lists(st.tuples(ENTITIES, st.integers(0, 40)), min_size=1, max_size=20),
    ttl_us=st.sampled_from([0, 5]),
)
def test_any_scenario_is_read_as_the_rule_says(tmp_path_factory, script, asked, ttl_us):
    world = World(tmp_path_factory.mktemp("world"), replace(SPEC, ttl_us=ttl_us))
    serving: list[tuple[int, Fill]] = []
    now = 0
    for value, (wait, (kind, what, entities)) in enumerate(script):
        now += wait
        rows = [(entity, float(value)) for entity in sorted(entities or ())]
        fills = list({fill.fill: fill for _, fill in serving}.values())
        if kind == "cutover":
            serving.append((now, world.cut_over(world.fill(what), now, rows)))
        elif kind == "tick" and fills:
            world.tick(fills[what % len(fills)], now, rows, live=False)
        elif kind == "rollback":
            retained = [fill for fill in fills if world.states[fill.fill] == "retained"]
            if retained:
                serving.append((now, world.switch(retained[0], now)))

    spaces = [None, *sorted({fill.space for _, fill in serving if world.states[fill.fill] != "retired"})]
    for pin in spaces:
        expected = [naive(world, serving, pin, entity, at) for entity, at in asked]
        assert world.read(*asked, pin=pin) == expected


def naive(world: World, serving: list[tuple[int, Fill]], pin: str | None, entity: int, at: int) -> float | None:
    """The rule, one query at a time: the fill served then, and its newest row then."""
    if not serving:
        return None
    space = pin or serving[-1][1].space
    then = [fill for from_us, fill in serving if fill.space == space and from_us <= at]
    if not then:
        return None
    rows = [
        (-1 if number == then[-1].tick else event, written, value)
        for fill, number, event, written, whose, value in world.written
        if fill == then[-1].fill and whose == entity and (number == then[-1].tick or event <= at)
    ]
    if not rows:
        return None
    _, written, value = max(rows)
    return None if 0 < world.spec.ttl_us < at - written else value
