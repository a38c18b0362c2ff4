"""Where an encoder runs and in which precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from feast_embeddings.models.errors import DeclarationError

Device = str | torch.device | None
"""A device by name, such as cuda, cuda:1, mps or cpu; None: one is chosen, see `choose_device`."""

DEVICE_VARIABLE = "FEAST_EMBEDDINGS_DEVICE"
"""Environment variable that names the device where no argument does: cuda, cuda:1, mps or cpu."""

Precision = Literal["float32", "bf16"]

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: Device = None) -> torch.device:
    """The device to run on: the argument, else `DEVICE_VARIABLE`, else the first of cuda, mps and cpu.

    Raises:
        DeclarationError: The named device does not exist on this machine.
    """
    asked = name or os.environ.get(DEVICE_VARIABLE) or _best_device()
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeclarationError(
            f"Device {str(asked)!r} cannot be used here ({str(error).splitlines()[0]}): "
            f"pass device='cpu', or set {DEVICE_VARIABLE} to a device that this machine has."
        ) from error
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(precision: str | None) -> Precision:
    """The precision of ``encode``: float32 unless bf16 is asked for by name.

    Raises:
        DeclarationError: Neither float32 nor bf16.
    """
    if precision not in (None, "float32", "bf16"):
        raise DeclarationError(f"Precision {precision!r} is unknown: choose 'float32' or 'bf16'.")
    return "bf16" if precision == "bf16" else "float32"


def training_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it natively (AMX, AVX512-BF16, Ampere and later), else float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        return "bf16" if _cpu_multiplies_bf16() else "float32"
    return "float32"


def _cpu_multiplies_bf16() -> bool:
    # torch names these checks privately and renames them between versions: a missing one means no
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products run in ``precision``; nothing changes for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def numeric_path(device: torch.device, precision: Precision) -> str:
    """How vectors are computed, for example ``cpu/float32`` or ``cuda/bfloat16``."""
    return f"{device.type}/{str(_DTYPES[precision]).removeprefix('torch.')}"


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Meanwhile torch draws by ``seed``, on the CPU and on ``device``; afterwards it goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to ``device``, for cuda through pinned memory and without waiting for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
