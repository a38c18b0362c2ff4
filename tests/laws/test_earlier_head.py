"""What an earlier head of this package wrote, this one opens, reads and goes on with, to the same bits."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from earlier_head import DATA, EARLIER, ITEMS, USERS, VIEWS, Answers, Earlier, at, counted, differing, run, shown
from feast import Entity, FeatureService, FeatureStore, FeatureView
from redis_commands import Command
from servers_fixture import BINARIES, running

from feast_embeddings.materialize import read_vectors

pytestmark = pytest.mark.filterwarnings("ignore:.*its keywords one by one end:DeprecationWarning")  # what it declared
STREAMED = [each for each in EARLIER if each.stream]


def name_of(value: Any) -> str:
    return str(getattr(value, "name", value))


@pytest.fixture(scope="session", params=BINARIES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of these tests alone; each fills it anew."""
    with running(BINARIES[request.param], tmp_path_factory.mktemp("earlier")) as server:
        yield server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process is, and the repo will be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(folder: Path, name: str) -> Answers:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as answers:
        return dict(answers)


def goes_on_alike(earlier: Earlier, folder: Path) -> dict[str, int]:
    """It goes on, and ends as the earlier head did: exactly, but where another machine computed other last bits.

    Returns what the stream's worker counted, if there is one.
    """
    counts = counted(earlier.go_on())
    found, wanted = earlier.after(), saved(folder, "after")
    loose = {name for name in wanted if f" {earlier.inexact} " in name and name.endswith("numbers")}
    assert bool(loose) == (earlier.inexact != "none")
    assert differing(found, {name: array for name, array in wanted.items() if name not in loose}) == []
    for name in loose:
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5, err_msg=name)
    return counts


@pytest.mark.parametrize("earlier", EARLIER, ids=name_of)
def test_reads_and_status_are_what_they_were(earlier: Earlier, url: str, folder: Path) -> None:
    earlier.open(folder, url)
    assert differing(earlier.before(), saved(folder, "before")) == []
    with at(earlier.saved):
        now, then = shown(run("status")), shown((folder / "status.txt").read_text())
    assert set(then) == {"Encoders", "Spaces", "Fills", "Ticks", "Behaviors"}
    # of a stream, the earlier head showed there what batch jobs had done, and no more
    for title in ("Encoders", "Spaces", "Fills", *(() if earlier.stream else ("Ticks", "Behaviors"))):
        for row in then[title]:
            # the one names the tick's kind, the other was written otherwise than it is declared
            kept = {header: cell for header, cell in row.items() if header not in ("last tick", "policy")}
            assert any(kept.items() <= other.items() for other in now[title]), (title, kept, now[title])


@pytest.mark.parametrize("earlier", EARLIER, ids=name_of)
def test_what_was_left_open_is_finished_and_what_comes_next_ends_alike(
    earlier: Earlier, url: str, folder: Path
) -> None:
    earlier.open(folder, url)
    goes_on_alike(earlier, folder)
    before = saved(folder, "before")
    past = {name: array for name, array in before.items() if name.startswith("historical")}
    assert past
    assert differing(earlier.past(), past) == []


@pytest.mark.parametrize("earlier", STREAMED, ids=name_of)
def test_the_stream_is_replayed_bit_for_bit(earlier: Earlier, url: str, folder: Path) -> None:
    earlier.open(folder, url)
    wanted = (folder / "replay.txt").read_text().splitlines()
    assert len(wanted) == 2
    open_still = run("replay").splitlines()
    assert len(open_still) == 2
    assert all(line.endswith("bit-equal to what is served") for line in (*open_still, *wanted))
    assert open_still != wanted
    earlier.go_on()
    assert run("replay").splitlines() == wanted


@pytest.mark.parametrize("earlier", STREAMED, ids=name_of)
def test_what_its_stream_delivers_again_is_not_even_counted(earlier: Earlier, url: str, folder: Path) -> None:
    earlier.open(folder, url)
    with redis.Redis.from_url(url) as client:
        streams = [key for key in client.scan_iter(count=1000) if client.type(key) == b"stream"]
        assert len(streams) == 4
        for key in streams:
            client.xgroup_setid(key, "user_embedding", "0")
    assert goes_on_alike(earlier, folder) == counted((folder / "said.txt").read_text())


@pytest.mark.parametrize("earlier", EARLIER, ids=name_of)
def test_its_declarations_are_applied_again(earlier: Earlier, url: str, folder: Path) -> None:
    earlier.open(folder, url)
    found, kinds = runpy.run_path("definitions.py"), (Entity, FeatureView, FeatureService)
    FeatureStore(".").apply([value for value in found.values() if isinstance(value, kinds)])
    assert differing(earlier.before(), saved(folder, "before")) == []


@pytest.mark.parametrize("earlier", EARLIER, ids=name_of)
def test_a_redis_that_was_lost_is_filled_from_its_logs_and_it_goes_on_alike(
    earlier: Earlier, url: str, folder: Path
) -> None:
    earlier.open(folder, url, kept=_of_the_source)
    assert not read_vectors(FeatureStore("."), "user_embedding:embedding", USERS).found.any()
    with at(earlier.saved):
        run("restore")
    assert read_vectors(FeatureStore("."), "user_embedding:embedding", USERS).found.any()
    goes_on_alike(earlier, folder)


def test_its_retained_generation_can_be_gone_back_to(url: str, folder: Path) -> None:
    (earlier,) = (each for each in EARLIER if each.name == "batch")
    earlier.open(folder, url)
    pinned = _pinned(FeatureStore("."))
    with at(earlier.saved):
        run("rollback", "main")
        store = FeatureStore(".")
        for view, ids in zip(VIEWS, (USERS, ITEMS), strict=True):
            vectors = read_vectors(store, f"{view}:embedding", ids)
            assert vectors.generation == 3
            assert vectors.values.tobytes() == pinned[view].values.tobytes()


def test_the_data_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*")) < 1_000_000


def _of_the_source(command: Command) -> bool:
    """Whether a command fills the streams of behaviors, which are not the store's to restore."""
    return any(b"{stream:behaviors}" in argument for argument in command[1:3])


def _pinned(store: FeatureStore) -> dict[str, Any]:
    """Vectors of the space that a service pins."""
    (service,) = store.list_feature_services()
    names = [projection.name_to_use() for projection in service.feature_view_projections]
    ids = dict(zip(VIEWS, (USERS, ITEMS), strict=True))
    return {
        name.partition("@")[0]: read_vectors(store, f"{name}:embedding", ids[name.partition("@")[0]]) for name in names
    }
