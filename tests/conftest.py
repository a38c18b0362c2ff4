"""What makes every run of the tests the same run."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two workers on two cores: more threads per worker only wait for each other, and one thread always
# adds numbers in the same order. Set before anything imports torch or NumPy.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# The same examples on every run, so that a red test stays red until it is mended. A wider search, by hand:
# HYPOTHESIS_PROFILE=search pytest tests/...
settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

pytest_plugins = ["servers_plugin"]

REDIS_SERVER = os.environ.get("REDIS_SERVER_BIN") or shutil.which("redis-server")


def pytest_configure(config: pytest.Config) -> None:
    """With CI_REQUIRE_REDIS=1, a machine without redis-server fails the run instead of testing less."""
    if os.environ.get("CI_REQUIRE_REDIS") == "1" and not (REDIS_SERVER and shutil.which(REDIS_SERVER)):
        raise pytest.UsageError(
            f"CI_REQUIRE_REDIS=1, and there is no redis-server ({REDIS_SERVER or 'none on PATH'}): "
            "install it, or name it in REDIS_SERVER_BIN."
        )


# Those that products of 8 bits go by: a figure that only one machine has, mostly follows from one of them.
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Which servers the tests of the online store run on, and what the processor multiplies integers with."""
    server = REDIS_SERVER or "no redis-server (none on PATH or in REDIS_SERVER_BIN)"
    return [f"online stores: embedded Valkey, {server}", f"processor: {_instructions()}"]


def _instructions() -> str:
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return "unknown (no /proc/cpuinfo)"
    flags = set(about.read_text().split())
    return ", ".join(name if name in flags else f"no {name}" for name in INSTRUCTIONS)
