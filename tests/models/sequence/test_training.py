"""Training learns, repeats itself, takes itself up again, and says why it cannot start."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feast_embeddings.models import Ragged, SequenceConfig, TrainingConfig, evaluate_ranking, train
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError
from feast_embeddings.models.evaluation import inner_products, popularity


def weights(result) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in result.encoder.state_dict().items()}


def same_weights(one, other) -> bool:
    first, second = weights(one), weights(other)
    return all(np.array_equal(first[name], second[name]) for name in first)


def next_item_scores(encoder, scorer, histories):
    """HR@5 of the item that most often follows a history's last one."""
    last = histories.items[histories.offsets[1:] - 1]
    targets = encoder.items.rows((last - 1000 + 1) % 40 + 1000) - 1
    return evaluate_ranking(scorer, len(encoder.items), Ragged.single(targets), ks=(5,)).hr[5]


def test_it_learns_what_popularity_cannot(trained, make_markov):
    """Given histories it never saw, when it names the next item, then it is nearly always right."""
    encoder, fresh = trained.encoder, make_markov(users=300, seed=7)
    items, known = encoder.encode_items(encoder.item_ids())
    assert known.all()
    learned = next_item_scores(encoder, inner_products(encoder.encode(fresh), items), fresh)
    popular = next_item_scores(encoder, popularity(fresh, encoder.items), fresh)
    assert learned > 0.95
    assert popular < 0.4


def test_it_reports_every_epoch_and_keeps_the_best(trained):
    scores = [report.ndcg10 for report in trained.epochs]
    assert [report.epoch for report in trained.epochs] == [1, 2, 3, 4, 5, 6]
    assert trained.best_epoch == int(np.argmax(scores)) + 1
    assert trained.epochs[-1].loss < trained.epochs[0].loss
    assert not trained.encoder.training
    assert trained.stopped_by == "max_epochs"


def test_the_same_input_gives_the_same_weights(trained, small_config, make_markov):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = train(small_config, make_markov(), behavior_types=["view"], device="cpu")
    assert again.encoder.space == trained.encoder.space
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_space(trained, small_config, make_markov):
    config = replace(small_config, seed=1, max_epochs=1)
    assert train(config, make_markov(), behavior_types=["view"]).encoder.space != trained.encoder.space


@pytest.mark.parametrize(("dropout", "decay_epochs"), [(0.0, None), (0.2, 4)])
def test_a_resumed_run_ends_in_the_weights_of_an_undisturbed_one(
    dropout, decay_epochs, small_config, make_markov, tmp_path
):
    encoder = replace(small_config.encoder, dropout=dropout, item_dropout=0.1)
    config = replace(small_config, encoder=encoder, max_epochs=4, decay_epochs=decay_epochs)
    undisturbed = train(config, make_markov(200), behavior_types=["view"])
    kept = replace(config, checkpoint_dir=tmp_path)
    train(replace(kept, max_epochs=2), make_markov(200), behavior_types=["view"])
    resumed = train(kept, make_markov(200), behavior_types=["view"])
    assert len(resumed.epochs) == 4
    assert same_weights(resumed, undisturbed)


def test_a_decaying_rate_ends_training(small_config, make_markov):
    """Given a rate that falls to 0 in two epochs, when twenty are allowed, then two are trained."""
    config = replace(small_config, decay_epochs=2, max_epochs=20)
    result = train(config, make_markov(100), behavior_types=["view"])
    assert (len(result.epochs), result.stopped_by) == (2, "decay_epochs")


def test_steps_become_smaller_as_the_rate_decays(small_config, make_markov):
    """Given weights that are not averaged, when the rate decays, then the last epoch moves them least."""
    settled = replace(small_config, average_decay=0.0, validation_users=0, warmup_steps=0, decay_epochs=4)
    runs = [
        train(replace(settled, max_epochs=epochs), make_markov(200), behavior_types=["view"]) for epochs in (1, 3, 4)
    ]
    first, third, fourth = (run.encoder.item_table.weight.detach() for run in runs)
    assert (fourth - third).norm() < 0.3 * (third - first).norm()


def test_a_finished_run_is_not_trained_again(small_config, make_markov, tmp_path):
    config = replace(small_config, max_epochs=1, checkpoint_dir=tmp_path)
    first = train(config, make_markov(50), behavior_types=["view"])
    second = train(config, make_markov(50), behavior_types=["view"])
    assert second.epochs == first.epochs
    assert same_weights(first, second)


@pytest.mark.parametrize("changes", [{}, {"seed": 3}, {"max_epochs": 1}])
def test_a_checkpoint_of_another_run_is_no_obstacle(changes, small_config, make_markov, tmp_path, capsys):
    config = replace(small_config, max_epochs=2, checkpoint_dir=tmp_path)
    train(config, make_markov(50, seed=1 if not changes else 0), behavior_types=["view"])
    other = replace(config, **changes)
    over = train(other, make_markov(50), behavior_types=["view"], progress=True)
    assert same_weights(over, train(replace(other, checkpoint_dir=None), make_markov(50), behavior_types=["view"]))
    assert "another configuration or other behaviors: this one begins anew" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_replaced(small_config, make_markov, tmp_path, capsys):
    config = replace(small_config, max_epochs=1, checkpoint_dir=tmp_path)
    first = train(config, make_markov(50), behavior_types=["view"])
    (tensors,) = tmp_path.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    assert same_weights(first, train(config, make_markov(50), behavior_types=["view"], progress=True))
    assert "is damaged" in capsys.readouterr().err


def test_patience_ends_training(small_config, make_histories):
    """Given noise, from which nothing can be learned, when scores stop rising, then training stops."""
    config = replace(small_config, max_epochs=60, patience=2)
    result = train(config, make_histories([8] * 120), behavior_types=["view", "cart", "buy"])
    assert result.stopped_by == "patience"
    assert len(result.epochs) == result.best_epoch + 2


def test_a_time_limit_ends_training_with_usable_weights(small_config, make_markov):
    config = replace(small_config, max_minutes=1e-6, max_epochs=50)
    result = train(config, make_markov(), behavior_types=["view"])
    assert result.stopped_by == "max_minutes"
    assert len(result.epochs) == 1
    assert np.isfinite(result.encoder.encode(make_markov(5))).all()


def test_long_histories_are_trained_in_windows(small_config, make_markov):
    """Given histories five times the context, when trained with overlap, then the whole of them is learned from."""
    config = replace(small_config, window_overlap=4, max_epochs=8)
    result = train(config, make_markov(users=80, length=40), behavior_types=["view"])
    assert result.epochs[-1].hr10 > 0.75


def test_validation_can_leave_out_what_was_seen(small_config, make_markov):
    """Given a world that seldom repeats an item, when seen items are left out, then the score can only rise."""
    config = replace(small_config, max_epochs=1)
    whole = train(config, make_markov(), behavior_types=["view"]).epochs[0]
    unseen = train(replace(config, filter_seen=True), make_markov(), behavior_types=["view"]).epochs[0]
    assert unseen.loss == whole.loss
    assert unseen.ndcg10 > whole.ndcg10


def test_a_sampled_loss_learns_too(small_config, make_markov):
    config = replace(small_config, full_softmax_items=10, negatives=20, max_epochs=8)
    result = train(config, make_markov(), behavior_types=["view"])
    assert result.epochs[-1].hr10 > 0.75


def test_rare_items_become_the_unknown_item(small_config, make_markov):
    histories = make_markov(100)
    histories.items[5] = 5
    result = train(replace(small_config, min_item_count=2, max_epochs=1), histories, behavior_types=["view"])
    assert 5 not in result.encoder.item_ids()
    assert len(result.encoder.item_ids()) == 40


def test_types_of_weight_zero_are_no_targets(small_config, make_markov):
    """Given every third behavior a removal of one item, when it weighs nothing, then it is never predicted."""
    histories = make_markov(300)
    types = np.zeros(len(histories.items), np.int32)
    types[2::3] = 1
    histories.items[2::3] = 7
    config = replace(small_config, validation_users=0)
    result = train(
        config, replace(histories, behavior_types=types), behavior_types=["view", "remove"], type_weights=[1, -1]
    )
    encoder = result.encoder
    vectors = encoder.encode(replace(histories, behavior_types=types))
    scores = vectors @ encoder.encode_items(encoder.item_ids())[0].T
    removed = encoder.item_ids().tolist().index(7)
    assert (scores.argmax(axis=1) != removed).all()
    assert all(report.ndcg10 is None for report in result.epochs)
    assert result.best_epoch == len(result.epochs)


def test_values_are_normalized_as_they_were_in_training(small_config, make_histories):
    encoder = replace(small_config.encoder, value_normalizer="log1p-zscore")
    histories = make_histories([8] * 60)
    result = train(replace(small_config, encoder=encoder, max_epochs=1), histories, behavior_types=["a", "b", "c"])
    normalizer = result.encoder.normalizer
    assert normalizer is not None
    assert abs(float(np.nanmean(normalizer.transform(histories.values)))) < 0.1
    cheap = replace(histories, values=np.full_like(histories.values, 0.01))
    assert not np.array_equal(result.encoder.encode(cheap), result.encoder.encode(histories))


def test_string_items_train_as_integers_do(small_config, make_markov):
    histories = make_markov(200)
    named = replace(histories, items=np.array([str(item) for item in histories.items], dtype=object))
    one = train(replace(small_config, max_epochs=2), histories, behavior_types=["view"])
    other = train(replace(small_config, max_epochs=2), named, behavior_types=["view"])
    assert same_weights(one, other)
    assert one.encoder.space != other.encoder.space


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"behavior_types": ["view"], "type_weights": [1, 2]}, r"1 behavior types have the weights \[1.0, 2.0\]"),
        ({}, {"behavior_types": ["view"], "type_weights": [0]}, "one of them above 0"),
        ({"decay_epochs": 0}, {"behavior_types": ["view"]}, "decay_epochs is 0: choose 1 or more"),
        ({"window_overlap": 8}, {"behavior_types": ["view"]}, "window_overlap is 8: choose 0 up to less than"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, arguments, message, small_config, make_markov):
    with pytest.raises(DeclarationError, match=message):
        train(replace(small_config, **changes), make_markov(5), **arguments)


def test_codes_without_a_name_are_refused(small_config, make_histories):
    with pytest.raises(DeclarationError, match="beyond the 1 types given"):
        train(small_config, make_histories([4, 4]), behavior_types=["view"])


@pytest.mark.parametrize("lengths", [[], [1, 1, 0]])
def test_histories_without_a_next_item_are_refused(lengths, small_config, make_histories):
    with pytest.raises(BehaviorSourceError, match="No history has two behaviors"):
        train(small_config, make_histories(lengths), behavior_types=["a", "b", "c"])


@pytest.mark.parametrize(
    ("changes", "type_weights"), [({"min_item_count": 99}, [1, 1, 1]), ({"validation_users": 0}, [0, 0, 1])]
)
def test_histories_without_a_target_are_refused(changes, type_weights, small_config, make_histories):
    histories = make_histories([9, 9])
    histories.behavior_types[:] = 0
    with pytest.raises(BehaviorSourceError, match=r"nothing to predict: lower min_item_count, or weigh other types"):
        train(replace(small_config, **changes), histories, behavior_types=["a", "b", "c"], type_weights=type_weights)


def test_sizes_that_cannot_be_built_are_refused():
    with pytest.raises(DeclarationError, match="dim a multiple of heads"):
        TrainingConfig(encoder=SequenceConfig(dim=10, heads=3))
