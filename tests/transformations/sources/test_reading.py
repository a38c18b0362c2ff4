"""Reading behavior tables: what is asked for comes back, and what cannot be read is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules, prepare, read_behaviors
from feast_embeddings.transformations.sources import Files

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
STAMP = pa.timestamp("us", tz="UTC")


def contract(**changes: Any) -> BehaviorContract:
    declared: dict[str, Any] = {
        "join_key": "user_id",
        "entity": "uid",
        "item": "sku",
        "event_time": "at",
        "behavior_type": "kind",
        "types": (BehaviorType("view"), BehaviorType("buy")),
    }
    return BehaviorContract(**(declared | changes))


def rows(times: list[int | None], stamp: pa.DataType = STAMP, **columns: pa.Array) -> pa.Table:
    count = len(times)
    us = pa.array([None if time is None else START + time * SECOND for time in times], pa.timestamp("us"))
    plain = us.cast(pa.timestamp(stamp.unit), safe=False)
    stamps = plain.cast(pa.int64()).cast(stamp) if stamp.tz else plain
    standard = {
        "uid": pa.array(range(count), pa.int64()),
        "sku": pa.array(range(count), pa.int64()),
        "kind": pa.array(["view"] * count),
        "at": stamps,
        "unrelated": pa.array(range(count)),
    }
    return pa.table(standard | columns)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    def store(table: pa.Table, name: str = "behaviors.parquet", **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return path

    return store


def test_only_the_contract_s_columns_are_read(stored: Callable[..., Path]) -> None:
    assert read_behaviors(stored(rows([0, 1])), contract()).column_names == ["uid", "sku", "kind", "at"]


def test_a_file_a_folder_and_a_glob_read_the_same_rows(stored: Callable[..., Path], tmp_path: Path) -> None:
    one, two = stored(rows([0, 1]), "log/a.parquet"), stored(rows([2]), "log/deep/b.parquet")
    (tmp_path / "log" / "notes.txt").write_text("not a table")
    (tmp_path / "log" / "_temporary.parquet").write_bytes(b"half a file")
    assert read_behaviors(one, contract()).num_rows == 2
    assert read_behaviors(tmp_path / "log", contract()).num_rows == 3
    assert read_behaviors(f"{tmp_path}/log/**/*[ab].parquet", contract()).num_rows == 3
    assert read_behaviors(two.parent, contract()).num_rows == 1


def test_hive_partitions_are_columns(stored: Callable[..., Path], tmp_path: Path) -> None:
    for kind in ("view", "buy"):
        stored(rows([0]).drop_columns("kind"), f"log/kind={kind}/part.parquet")
    assert sorted(read_behaviors(tmp_path / "log", contract())["kind"].to_pylist()) == ["buy", "view"]


def test_files_may_differ_in_width_and_unit(stored: Callable[..., Path], tmp_path: Path) -> None:
    stored(rows([0], uid=pa.array([1], pa.int32())), "log/a.parquet")
    stored(rows([1], pa.timestamp("ms", tz="UTC"), kind=pa.array(["buy"]).dictionary_encode()), "log/b.parquet")
    table = read_behaviors(tmp_path / "log", contract(), event_us=(None, START + SECOND))
    assert table["kind"].to_pylist() == ["view"]


BOUNDS = st.one_of(st.none(), st.integers(-3, 13).map(lambda half: START + half * SECOND // 2))


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize(("zone", "declared"), [("UTC", None), ("Asia/Tokyo", None), (None, "UTC")])
def test_bounds_hold_in_every_unit_and_zone(
    stored: Callable[..., Path], unit: str, zone: str | None, declared: str | None
) -> None:
    path = stored(rows([0, 1, 2, 3, None], pa.timestamp(unit, tz=zone)))
    table = read_behaviors(
        path,
        contract(naive_time_zone=declared),
        event_us=(START + 1 - SECOND // 2, START + 2 * SECOND),
    )
    assert table["uid"].to_pylist() == [0, 1, 4]


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York"])
def test_bounds_hold_for_wall_times_across_changes_of_clocks(stored: Callable[..., Path], zone: str) -> None:
    # Every hour of a year, as wall times of the zone; the bounds fall on every hour around both changes.
    hours = np.arange(24 * 365, dtype=np.int64) * 3_600 * SECOND + START
    wall = pa.array(hours).cast(pa.timestamp("us"))
    path = stored(rows([0] * len(hours), at=wall), row_group_size=500)
    declared = contract(naive_time_zone=zone)
    everything = prepare(read_behaviors(path, declared), declared, CleaningRules(), 2 * START).behaviors
    for bound in range(START, START + 365 * 86_400 * SECOND, 37 * 86_400 * SECOND):
        part = read_behaviors(path, declared, event_us=(bound, bound + 86_400 * SECOND))
        assert part.num_rows == len(everything.between(bound, bound + 86_400 * SECOND))


@given(
    times=st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 5))] * 2), min_size=1, max_size=12),
    bounds=st.tuples(BOUNDS, BOUNDS, BOUNDS, BOUNDS),
    undated=st.booleans(),
)
def test_bounds_select_what_they_say(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[tuple[int | None, int | None]],
    bounds: tuple[int | None, int | None, int | None, int | None],
    undated: bool,
) -> None:
    written = rows([created for _, created in times])["at"]
    path = tmp_path_factory.mktemp("source") / "behaviors.parquet"
    pq.write_table(rows([at for at, _ in times], written=written), path)

    def inside(seconds: int | None, start: int | None, end: int | None) -> bool:
        if seconds is None:
            return undated
        us = START + seconds * SECOND
        return (start is None or us >= start) and (end is None or us < end)

    wanted = [
        row
        for row, (at, created) in enumerate(times)
        if inside(at, *bounds[:2]) and inside(at if created is None else created, *bounds[2:])
    ]
    table = read_behaviors(
        path,
        contract(created_time="written"),
        event_us=bounds[:2],
        created_us=bounds[2:],
        undated=undated,
    )
    assert table["uid"].to_pylist() == wanted


def test_naive_times_without_a_declared_zone_are_undated(stored: Callable[..., Path]) -> None:
    path = stored(rows([0, 1], pa.timestamp("us")))
    assert read_behaviors(path, contract(), event_us=(None, 0)).num_rows == 2
    assert read_behaviors(path, contract(), event_us=(None, 0), undated=False).num_rows == 0


@pytest.mark.parametrize(
    ("stored_ids", "asked"),
    [
        (pa.array([5, 6, 7], pa.int32()), np.array([6, 2**40])),
        (pa.array([5, 6, 2**64 - 1], pa.uint64()), np.array([6, -1])),
        (pa.array(["5", "6", "7"]), np.array([6])),
        (pa.array([5.0, 6.0, None]), np.array([6])),
        (pa.array(["5", "6", "7"]).dictionary_encode(), np.array(["6"], dtype=object)),
        (pa.array([5, 6, 7]), np.array(["6"], dtype=object)),
    ],
)
def test_entities_narrow_the_read(stored: Callable[..., Path], stored_ids: pa.Array, asked: Any) -> None:
    kind = "string" if asked.dtype == object else "int64"
    path = stored(rows([0, 1, 2], uid=stored_ids))
    table = read_behaviors(path, contract(entity_dtype=kind), entities=asked)
    assert table["sku"].to_pylist() == [1]


def test_files_put_together_between_their_listing_and_their_reading_are_read_as_one(tmp_path: Path) -> None:
    # given two small files, which a stream's compaction puts into one just when a reader has listed them
    small = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for number, path in enumerate(small):
        pq.write_table(rows([number, number + 10]), path)
    wanted = sorted(read_behaviors(tmp_path, contract())["at"].to_pylist())

    def compacting(path: Path) -> bool:
        if path == small[-1] and path.exists():
            pq.write_table(pa.concat_tables(map(pq.read_table, small)), tmp_path / "1-2.parquet")
            for each in small:
                each.unlink()
        return False

    # then the reader finds every row, once
    assert sorted(read_behaviors(Files(str(tmp_path), compacting), contract())["at"].to_pylist()) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["1-2.parquet"]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(BehaviorSourceError, match=r"nowhere\.parquet does not exist \(looked from"):
        read_behaviors(tmp_path / "nowhere.parquet", contract())


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(BehaviorSourceError, match=r"holds no \.parquet file"):
        read_behaviors(tmp_path, contract())


def test_a_table_without_rows_is_an_error_but_a_window_without_rows_is_not(stored: Callable[..., Path]) -> None:
    with pytest.raises(BehaviorSourceError, match="has no rows"):
        read_behaviors(stored(rows([])), contract())
    assert read_behaviors(stored(rows([0])), contract(), event_us=(None, START)).num_rows == 0


def test_a_truncated_file_is_named(stored: Callable[..., Path]) -> None:
    path = stored(rows(list(range(100))))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BehaviorSourceError, match=r"behaviors\.parquet is not a whole parquet file"):
        read_behaviors(path, contract())


@pytest.mark.parametrize("content", [b"", b"uid,sku\n1,2\n"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "behaviors.parquet"
    path.write_bytes(content)
    with pytest.raises(BehaviorSourceError, match="is not a whole parquet file"):
        read_behaviors(path, contract())


def test_a_damaged_page_is_an_error(stored: Callable[..., Path]) -> None:
    path = stored(rows(list(range(5_000))), compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:2_000] = b"\xff" * 1_996
    path.write_bytes(bytes(content))
    with pytest.raises(BehaviorSourceError, match="cannot be read to its end"):
        read_behaviors(path, contract())


def test_a_missing_column_is_named_with_what_there_is_and_the_line_to_change(
    stored: Callable[..., Path],
) -> None:
    path = stored(rows([0]))
    with pytest.raises(BehaviorSourceError) as raised:
        read_behaviors(path, contract(item="skus"))
    assert str(raised.value) == (
        f"Column 'skus', the contract's item, is not in {path}, which has: uid, sku, kind, at, unrelated. "
        "Name one of these in the contract: BehaviorContract(…, item='sku')."
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"at": pa.array(["2024-01-01"])}, "Column 'at' .* is string, .* event_time"),
        ({"at": pa.array([0], pa.date32())}, "Column 'at' .* is date32"),
        ({"uid": pa.array([{"id": 1}])}, "Column 'uid' .* is struct"),
        ({"sku": pa.array([[1]])}, "Column 'sku' .* is list"),
    ],
)
def test_a_mistyped_column_is_named(stored: Callable[..., Path], columns: dict[str, pa.Array], message: str) -> None:
    with pytest.raises(BehaviorSourceError, match=message):
        read_behaviors(stored(rows([0], **columns)), contract())


def test_files_whose_types_do_not_go_together_are_named(stored: Callable[..., Path], tmp_path: Path) -> None:
    stored(rows([0]), "log/a.parquet")
    stored(rows([0], pa.timestamp("us")), "log/b.parquet")
    with pytest.raises(BehaviorSourceError, match="types that do not go together"):
        read_behaviors(tmp_path / "log", contract())


def test_a_column_name_that_occurs_twice_is_named(stored: Callable[..., Path]) -> None:
    table = rows([0]).append_column("sku", pa.array([1]))
    with pytest.raises(BehaviorSourceError, match="has 2 columns named 'sku'"):
        read_behaviors(stored(table), contract())


def test_a_dotted_column_name_is_one_name(stored: Callable[..., Path]) -> None:
    path = stored(rows([0]).append_column("user.id", pa.array([7])))
    table = read_behaviors(path, contract(entity="user.id"), entities=np.array([7]))
    assert table["user.id"].to_pylist() == [7]
