"""Settings for all tests."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; the machine's cores are for the tests' own processes

from hypothesis import HealthCheck, settings

# A background job of a shell ignores Ctrl-C, and so would every process that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

# No time limits for examples, and the same examples in every run
settings.register_profile(
    "hrssm", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hrssm")
