"""Artifacts are whole or refused, and replaced as a whole."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from feast_embeddings.models import (
    EncoderState,
    ItemIndex,
    SequenceConfig,
    SequenceEncoder,
    load_encoder,
    read_manifest,
    register_encoder,
    save_encoder,
    space_of,
)
from feast_embeddings.models.encoder.artifact import ENCODER_KINDS, FORMAT_VERSION
from feast_embeddings.models.errors import ArtifactError


def small_encoder(seed: int = 0) -> SequenceEncoder:
    torch.manual_seed(seed)
    config = SequenceConfig(dim=16, context=8, blocks=1, heads=1, hidden=16)
    return SequenceEncoder(config, ("view",), ItemIndex(np.arange(20))).eval()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    save_encoder(small_encoder(), tmp_path / "encoder")
    return tmp_path / "encoder"


def weights_file(artifact: Path) -> Path:
    (file,) = artifact.glob("*.weights.safetensors")
    return file


def edit_manifest(artifact: Path, **fields: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_manifest_tells_the_encoder(artifact):
    manifest = read_manifest(artifact)
    assert (manifest.kind, manifest.dim, manifest.context, manifest.items) == ("sequence", 16, 8, 20)
    assert manifest.behavior_types == ("view",)
    assert manifest.space == small_encoder().space
    assert len(manifest.space) == 16
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.created_by.startswith("feast-embeddings ")


def test_the_manifest_needs_no_weights(artifact):
    weights_file(artifact).unlink()
    assert read_manifest(artifact).dim == 16


def test_saving_again_changes_nothing(artifact):
    before = {file.name: file.read_bytes() for file in artifact.iterdir()}
    save_encoder(small_encoder(), artifact)
    assert {file.name: file.read_bytes() for file in artifact.iterdir()} == before


def test_another_encoder_replaces_the_old_one_and_its_files(artifact):
    space = save_encoder(small_encoder(seed=1), artifact)
    assert load_encoder(artifact).space == space == small_encoder(seed=1).space
    assert len(list(artifact.iterdir())) == 2


def test_a_reader_never_sees_half_an_artifact(artifact):
    """Given one thread that replaces the artifact for ever, when another loads it, then it is one or the other."""
    encoders = [small_encoder(seed=seed) for seed in range(2)]
    spaces, stop = {encoder.space for encoder in encoders}, threading.Event()

    def replace_for_ever() -> None:
        while not stop.is_set():
            for encoder in encoders:
                save_encoder(encoder, artifact)

    writer = threading.Thread(target=replace_for_ever)
    writer.start()
    try:
        assert {load_encoder(artifact).space for _ in range(40)} <= spaces
    finally:
        stop.set()
        writer.join()


def test_a_space_is_made_of_weights_items_types_and_preprocessing():
    state = small_encoder().state()
    weights = {**state.tensors, "norm.bias": state.tensors["norm.bias"] + 1}
    others = [
        replace(state, tensors=weights),
        replace(state, item_ids=state.item_ids + 1),
        replace(state, item_ids=state.item_ids.astype(str).astype(object)),
        replace(state, behavior_types=("buy",)),
        replace(state, config={**state.config, "normalizer": {"kind": "zscore", "mean": 0.0, "scale": 1.0}}),
        replace(state, kind="other"),
    ]
    assert len({space_of(state), *map(space_of, others)}) == 7
    assert space_of(replace(state, tensors=dict(reversed(state.tensors.items())))) == space_of(state)


def test_a_changed_weight_changes_the_space():
    encoder = small_encoder()
    before = encoder.space
    with torch.no_grad():
        encoder.norm.bias += 1
    assert encoder.space != before


@pytest.mark.parametrize("read", [read_manifest, load_encoder])
def test_a_missing_artifact_is_named_with_its_remedy(read, tmp_path):
    with pytest.raises(ArtifactError, match=rf"No encoder artifact at {tmp_path / 'none'}.*Check the path, or train"):
        read(tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', ""])
def test_a_damaged_manifest_is_named(text, artifact):
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"encoder.*(damaged|lacks fields|format version).*save"):
        load_encoder(artifact)


def test_another_format_version_is_refused(artifact):
    edit_manifest(artifact, format_version=99)
    with pytest.raises(ArtifactError, match=r"has format version 99, this package reads 1: use the package version"):
        load_encoder(artifact)


def test_an_unknown_kind_is_refused(artifact):
    edit_manifest(artifact, kind="mystery")
    with pytest.raises(ArtifactError, match=r"kind 'mystery', known are .*sequence.*register_encoder before loading"):
        load_encoder(artifact)


def test_a_truncated_file_is_refused(artifact):
    file = weights_file(artifact)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=rf"{file.name} is truncated.*Save or copy"):
        load_encoder(artifact)


def test_an_altered_file_is_refused(artifact):
    file = weights_file(artifact)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=rf"{file.name} was altered.*Save or copy"):
        load_encoder(artifact)


def test_a_missing_file_is_refused(artifact):
    weights_file(artifact).unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file .*weights.safetensors.*Save or copy"):
        load_encoder(artifact)


def test_an_altered_manifest_is_refused(artifact):
    edit_manifest(artifact, behavior_types=["buy"])
    with pytest.raises(ArtifactError, match=r"does not have the space .*the manifest was altered"):
        load_encoder(artifact)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"file.*cannot be written.*choose a writable folder"):
        save_encoder(small_encoder(), tmp_path / "file")


def test_a_class_of_the_user_plugs_in(tmp_path):
    """Given an encoder of the user's own, when its class is registered, then it is saved and loaded as ours are."""

    @register_encoder("mine")
    class Mine(SequenceEncoder):
        def state(self) -> EncoderState:
            return replace(super().state(), kind="mine")

    try:
        torch.manual_seed(0)
        mine = Mine(SequenceConfig(dim=16, context=8, heads=1), ("view",), ItemIndex(np.arange(3)))
        save_encoder(mine, tmp_path)
        loaded = load_encoder(tmp_path)
        assert type(loaded) is Mine
        assert loaded.space == mine.space != SequenceEncoder.from_state(mine.state()).space
    finally:
        del ENCODER_KINDS["mine"]
