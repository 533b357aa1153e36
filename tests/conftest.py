"""Settings for all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; the machine's cores are for the tests' own processes

from hypothesis import HealthCheck, settings

# No time limits for examples, and the same examples at every run
settings.register_profile(
    "hrssm", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hrssm")
