"""Settings for all tests."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; the machine's cores are for the tests' own processes

from hypothesis import HealthCheck, settings

# A background job of a shell ignores Ctrl-C, under nohup also the end of its terminal, and so would every process that
# the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No time limits for examples, and the same examples in every run
settings.register_profile(
    "hrssm", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hrssm")

# Files that take a minute or more, the longest first: so no core waits long for the last one
LONGEST = (
    "test_campaign", "test_accel", "test_dreamer", "test_sweep", "test_failures", "test_distributed", "test_evaluation",
    "test_baselines", "test_gym_env", "test_slurm", "test_env_errors", "test_setup",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
