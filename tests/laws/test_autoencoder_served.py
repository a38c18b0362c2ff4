"""An autoencoder's vectors come and go through the same jobs, policies and stores as any encoder's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from repo_fixture import ITEMS, USERS, MakeRepo, at, day, moment, shop
from typer.testing import CliRunner

from feast_embeddings.materialize import nearest
from feast_embeddings.materialize.cli import app, main
from feast_embeddings.models import AutoEncoder, load_encoder

RUN = CliRunner()


@pytest.mark.parametrize("policy", ["Incremental(alpha=0.0)", 'Hybrid(every="1d", alpha=0.0, full_every="28d")'])
def test_its_vectors_are_served_as_encoded_and_found_again_in_history(policy: str, make_repo: MakeRepo) -> None:
    """Given an autoencoder trained by the command line, when jobs run, then reads are its codes, now and in history."""
    repo = make_repo(policy=policy)
    repo.deliver(shop(8), "shop")
    repo.apply()
    options = ["--kind", "autoencoder", "--variant", "denoising", "--epochs", "2", "--context", "10"]
    done = RUN.invoke(app, ["train", "-C", str(repo.folder), *options, "--until", "2024-03-05"])
    assert done.exit_code == 0, done.output
    encoder = load_encoder(repo.folder / "data" / "encoders" / "main")
    assert isinstance(encoder, AutoEncoder)
    assert (encoder.dim, encoder.context) == (repo.dim, 10)
    repo.apply()
    with at(day(4)):
        repo.materialize(day(4))
    with at(day(6)):
        repo.incremental(day(6))
        served, items = repo.vectors(), repo.vectors("item_embedding")
    assert served.space == items.space == encoder.space
    expected = encoder.encode(repo.histories(day(6)))
    np.testing.assert_array_equal(served.values[served.found], expected[served.found])
    np.testing.assert_array_equal(items.values[items.found], encoder.encode_items(ITEMS)[0][items.found])
    asked = pd.DataFrame({"user_id": USERS, "event_timestamp": [moment(day(6.5))] * len(USERS)})
    history = repo.store.get_historical_features(asked, ["user_embedding:embedding"]).to_df().sort_values("user_id")
    for row, found in zip(history["embedding"], np.flatnonzero(served.found), strict=False):
        np.testing.assert_array_equal(np.asarray(row, np.float32), served.values[found])


def test_the_nearest_items_are_those_that_the_reconstruction_weighs_most(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.deliver(shop(6), "shop")
    repo.apply()
    done = RUN.invoke(app, ["train", "-C", str(repo.folder), "--kind", "autoencoder", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    repo.apply()
    with at(day(6)):
        repo.materialize(day(6))
        found = nearest(repo.store, "item_embedding:embedding", repo.vectors(), 3)
    encoder = load_encoder(repo.folder / "data" / "encoders" / "main")
    scores = encoder.encode(repo.histories(day(6))) @ encoder.encode_items(encoder.item_ids())[0].T
    best = encoder.item_ids()[np.argsort(-scores, axis=1)[:, :3]]
    assert found.ids.tolist() == best.tolist()


def test_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["feast-embeddings", "train", "--kind", "magic"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert "Encoder kind 'magic' cannot be trained: choose sequence, autoencoder or adversarial" in shown
