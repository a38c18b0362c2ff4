"""What makes every run of the tests the same run."""

import os

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
