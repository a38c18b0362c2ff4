"""The autoencoder tells bags from codes, learns what popularity cannot, repeats itself, and says what it cannot do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feast_embeddings.models import (
    AutoEncoder,
    AutoEncoderConfig,
    AutoEncoderTraining,
    HistoryBatch,
    ItemIndex,
    draw_reconstruction,
    evaluate_ranking,
    inner_products,
    load_encoder,
    popularity,
    reconstruction_errors,
    reconstructions,
    save_encoder,
    train_autoencoder,
)
from feast_embeddings.models.autoencoder.trainer import split_behaviors
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError
from feast_embeddings.models.evaluation import distinct_items

TYPES = ("view", "cart", "buy")
VARIANTS = ("article", "denoising", "likelihood", "variational")


def tastes(users: int = 300, seed: int = 0, length: int = 8) -> HistoryBatch:
    """A world of four tastes of ten items each; every user buys distinct items of one taste."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, 4, users)
    items = taste[:, None] * 10 + np.argsort(rng.random((users, 10)), axis=1)[:, :length]
    total = users * length
    return HistoryBatch(
        offsets=np.arange(0, total + 1, length),
        items=items.reshape(-1).astype(np.int64) + 500,
        behavior_types=np.zeros(total, np.int32),
        times=np.tile(np.arange(length) * 1_000_000, users),
        values=np.full(total, np.nan, np.float32),
        as_of=np.full(users, length * 1_000_000),
    )


def small(variant: str = "article", **changes) -> AutoEncoderTraining:
    found = AutoEncoderTraining.of(variant, batch_entities=32, learning_rate=1e-2, max_epochs=12, average_decay=0.9)
    hidden = (16,) if found.encoder.hidden else ()
    return replace(found, encoder=replace(found.encoder, dim=9, context=20, hidden=hidden), **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_finds_what_was_held_out(variant):
    """Given a fifth of what users bought held out, when all items are ranked, then tastes are told; counts cannot."""
    kept, held_out = split_behaviors(tastes(), 0.2, seed=1)
    encoder = train_autoencoder(small(variant), kept, behavior_types=["buy"], held_out=held_out).encoder
    targets, seen = distinct_items(held_out, encoder.items), distinct_items(kept, encoder.items)
    items = encoder.encode_items(encoder.item_ids())[0]
    scorers = {"learned": inner_products(encoder.encode(kept), items), "popular": popularity(kept, encoder.items)}
    found = {name: evaluate_ranking(scorer, 40, targets, seen, ks=(5,)) for name, scorer in scorers.items()}
    assert found["learned"].recall[5] > 0.9
    assert found["popular"].recall[5] < 0.4


@pytest.mark.parametrize("stacked", [False, True])
def test_an_inner_product_is_what_the_reconstruction_says(stacked, make_histories):
    """Given types of different weights, when vectors meet, then their product is the item's weighted reconstruction."""
    torch.manual_seed(0)
    weights = (0.25, 0.5, 1.0)
    encoder = AutoEncoder(AutoEncoderConfig(dim=9, stacked=stacked), TYPES, ItemIndex(np.arange(60)), weights).eval()
    histories = make_histories([3, 40, 7])
    _, told = reconstructions(encoder, histories)
    expected = (told.reshape(3, 3, 60) * np.array(weights)[:, None]).sum(axis=1) if stacked else told
    products = encoder.encode(histories) @ encoder.encode_items(np.arange(60))[0].T
    assert products == pytest.approx(expected, abs=1e-5)


def test_the_same_input_gives_the_same_weights():
    torch.manual_seed(99)
    before = torch.get_rng_state()
    config = small("denoising", max_epochs=2)
    one, two = (train_autoencoder(config, tastes(60), behavior_types=["buy"]).encoder for _ in range(2))
    other = train_autoencoder(replace(config, seed=1), tastes(60), behavior_types=["buy"]).encoder
    assert one.space == two.space != other.space
    assert torch.equal(torch.get_rng_state(), before)


def test_the_penalty_shortens_codes():
    free, held = (
        train_autoencoder(small(penalty=penalty), tastes(), behavior_types=["buy"]).encoder.encode(tastes())[:, :-1]
        for penalty in (0.0, 1.0)
    )
    assert np.square(held).sum() < 0.7 * np.square(free).sum()


def test_a_purchase_outweighs_views_and_weightless_types_leave_no_trace(make_histories):
    torch.manual_seed(0)
    index, histories = ItemIndex(np.arange(60)), make_histories([30, 30])
    encoder = AutoEncoder(AutoEncoderConfig(dim=5), TYPES, index, (0.0, 0.5, 1.0))
    bags = encoder.bags(histories)
    for row, start in enumerate(bags.offsets[:-1]):
        mine = slice(histories.offsets[row], histories.offsets[row + 1])
        weights: dict[int, float] = {}
        for item, kind in zip(histories.items[mine], histories.behavior_types[mine], strict=True):
            if item < 60 and kind > 0:
                weights[int(item)] = max(weights.get(int(item), 0.0), (0.0, 0.5, 1.0)[kind])
        stop = bags.offsets[row + 1]
        assert dict(zip(bags.columns[start:stop].tolist(), bags.weights[start:stop].tolist(), strict=True)) == weights


def test_weights_halve_with_age():
    encoder = AutoEncoder(AutoEncoderConfig(dim=3, half_life_days=2.0), ("buy",), ItemIndex(np.arange(3)))
    day = 86_400_000_000
    batch = HistoryBatch(
        offsets=np.array([0, 3]),
        items=np.array([0, 1, 2]),
        behavior_types=np.zeros(3, np.int32),
        times=np.array([0, 4, 6]) * day,
        values=np.full(3, np.nan, np.float32),
        as_of=np.array([6 * day]),
    )
    assert encoder.bags(batch).weights.tolist() == [0.125, 0.5, 1.0]


def test_errors_are_told_per_type_and_fall_with_training(make_histories):
    """Given stacked types, when trained, then what is there of each type is told better, and the whole is their sum."""
    histories = make_histories([12] * 200)
    config = small(max_epochs=40, patience=40, validation_entities=0)
    config = replace(config, encoder=replace(config.encoder, dim=33, stacked=True))
    result = train_autoencoder(config, histories, behavior_types=TYPES)
    untrained = AutoEncoder(config.encoder, TYPES, result.encoder.items).eval()
    before, after = (reconstruction_errors(encoder, histories) for encoder in (untrained, result.encoder))
    assert set(after) == {*TYPES, "all"}
    assert all(after[name].present < 0.9 * before[name].present for name in after)
    assert after["all"].squared == pytest.approx(sum(after[name].squared for name in TYPES))
    assert after["all"].cells == sum(after[name].cells for name in TYPES)


def test_errors_of_types_that_share_columns_are_those_of_their_items(make_histories):
    histories = make_histories([20] * 10)
    encoder = AutoEncoder(AutoEncoderConfig(dim=4), TYPES, ItemIndex(np.arange(60)), (0.2, 0.4, 1.0)).eval()
    errors = reconstruction_errors(encoder, histories)
    assert all(np.isnan(errors[name].absent) for name in TYPES)
    assert sum(errors[name].cells for name in TYPES) >= errors["all"].cells


@pytest.mark.parametrize("stacked", [False, True])
def test_the_original_is_drawn_beside_the_reconstruction(stacked, make_histories, tmp_path):
    encoder = AutoEncoder(AutoEncoderConfig(dim=4, stacked=stacked), TYPES, ItemIndex(np.arange(60))).eval()
    draw_reconstruction(encoder, make_histories([20] * 10), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_encoder_is_stored_with_its_preprocessing(make_histories, tmp_path):
    histories = make_histories([9] * 50, strings=True)
    result = train_autoencoder(small(max_epochs=1), histories, behavior_types=TYPES, type_weights=(0.2, 0.0, 1.0))
    save_encoder(result.encoder, tmp_path)
    loaded = load_encoder(tmp_path, device="cpu")
    assert np.array_equal(loaded.encode(histories), result.encoder.encode(histories))


def test_patience_and_time_end_training(make_histories):
    noise = make_histories([8] * 120)
    stalled = train_autoencoder(small(max_epochs=90, patience=2), noise, behavior_types=TYPES)
    assert stalled.stopped_by == "patience"
    assert stalled.epochs[-1].epoch == stalled.best_epoch + 2
    hurried = train_autoencoder(small(max_minutes=1e-9), noise, behavior_types=TYPES)
    assert hurried.stopped_by == "max_minutes"
    assert np.isfinite(hurried.encoder.encode(noise)).all()


def test_a_large_catalogue_is_never_dense():
    """Given 20,000 users of 20,000 items, 1.6 GB if dense, when they are encoded, then memory hardly grows."""
    resource = pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    histories = HistoryBatch(
        offsets=np.arange(0, 100_001, 5),
        items=rng.integers(0, 20_000, 100_000),
        behavior_types=np.zeros(100_000, np.int32),
        times=np.zeros(100_000, np.int64),
        values=np.full(100_000, np.nan, np.float32),
        as_of=np.ones(20_000, np.int64),
    )
    encoder = AutoEncoder(AutoEncoderConfig(dim=16), ("buy",), ItemIndex(np.arange(20_000))).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder.encode(histories)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize(
    "build",
    [
        lambda: AutoEncoderConfig(dim=1),
        lambda: AutoEncoderConfig(hidden=(0,)),
        lambda: AutoEncoderConfig(activation="tanh"),
        lambda: AutoEncoderTraining(corruption=1.0),
        lambda: AutoEncoderTraining(batch_entities=0),
        lambda: AutoEncoderTraining.of("magic"),
        lambda: AutoEncoder(AutoEncoderConfig(), TYPES, ItemIndex(np.arange(3)), (1.0,)),
        lambda: AutoEncoder(AutoEncoderConfig(), ("buy",), ItemIndex(np.arange(3)), (-1.0,)),
        lambda: AutoEncoder(AutoEncoderConfig(half_life_days=0.0), ("buy",), ItemIndex(np.arange(3))),
        lambda: train_autoencoder(small(), tastes(5), behavior_types=["buy"], type_weights=[1.0, 2.0]),
    ],
)
def test_what_cannot_be_built_is_refused(build):
    with pytest.raises(DeclarationError):
        build()


def test_what_cannot_be_learned_from_is_refused(make_histories):
    with pytest.raises(BehaviorSourceError, match="hold no behavior to learn from: give at least one"):
        train_autoencoder(small(), make_histories([0, 0]), behavior_types=TYPES)
    with pytest.raises(BehaviorSourceError, match="lower min_item_count, or weigh other types"):
        train_autoencoder(small(min_item_count=99), make_histories([5, 5]), behavior_types=TYPES)
    with pytest.raises(BehaviorSourceError, match="2 histories and 1 held-out ones do not pair up"):
        train_autoencoder(small(), make_histories([5, 5]), behavior_types=TYPES, held_out=make_histories([5]))
