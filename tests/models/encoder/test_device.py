"""Where encoders run is chosen by argument, then by environment, then by what there is."""

import pytest
import torch

from feast_embeddings.models.encoder import device as devices
from feast_embeddings.models.encoder.device import DEVICE_VARIABLE, choose_device, choose_precision, numeric_path
from feast_embeddings.models.errors import DeclarationError


def test_the_argument_beats_the_environment(monkeypatch):
    monkeypatch.setenv(DEVICE_VARIABLE, "nonsense")
    assert choose_device("cpu") == torch.device("cpu")


def test_the_environment_decides_without_an_argument(monkeypatch):
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    monkeypatch.setattr(devices, "_best_device", lambda: "nonsense")
    assert choose_device() == torch.device("cpu")


def test_without_either_there_is_always_a_device(monkeypatch):
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    assert choose_device().type in {"cuda", "mps", "cpu"}


@pytest.mark.parametrize("name", ["cuda:97", "abacus"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeclarationError, match=rf"Device '{name}' cannot be used here.*pass device='cpu'"):
        choose_device(name)


def test_precision_is_float32_unless_asked():
    assert choose_precision(None) == choose_precision("float32") == "float32"
    assert choose_precision("bf16") == "bf16"
    with pytest.raises(DeclarationError, match="'fp8' is unknown: choose 'float32' or 'bf16'"):
        choose_precision("fp8")


def test_the_numeric_path_names_device_and_dtype():
    assert numeric_path(torch.device("cuda:1"), "bf16") == "cuda/bfloat16"
    assert numeric_path(torch.device("cpu"), "float32") == "cpu/float32"
