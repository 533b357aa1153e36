#!/usr/bin/env bash
# `jax.random.categorical` with logits in bfloat16 does not draw from their softmax. Its Gumbel noise is of the logits'
# dtype and comes from 128 different uniform numbers: it ends at 4.9, so that classes far below the best are drawn too
# rarely, and it has ties, of which the first class wins. In float16 there are fewer ties, but it is from -2.3 to 6.9
# only. `mode="high"` helps against both.
#
# 2026-11-30, jax 0.10.2, jaxlib 0.10.2 (CPU), numpy 2.4.6. How often what is named is drawn, relative to the softmax of
# the same logits in float32 (so the rounding of logits does not count). Seen:
#     1% uniform of 32 classes, all but the best: bfloat16 0.41, float16 0.15, float32 1.00, bfloat16, mode="high" 1.07
#     32 equal classes, the first: bfloat16 1.11, float16 1.02, float32 1.01, bfloat16, mode="high" 1.00
#     32 equal classes, the last: bfloat16 0.88, float16 0.99, float32 1.00, bfloat16, mode="high" 1.00
#     256 equal classes, the first: bfloat16 2.32, float16 1.13, float32 1.00, bfloat16, mode="high" 0.98
#     256 equal classes, the last half: bfloat16 0.53, float16 0.94, float32 1.00, bfloat16, mode="high" 0.99
# ("1% uniform" is that of DreamerV3: 0.99 of one class of 32 and 0.01 of all. The docstring says that "in float32 sampling
# will be biased for events with probability less than about 1E-7", and nothing of other dtypes.)
#
# Why it matters: under mixed precision the logits of a head are bfloat16. The uniform part, which is there so that no
# class dies out, is less than half as large in the samples as in the KL and in the log-probabilities of the policy
# gradient, and lower class numbers are preferred; exploration is less than the entropy that is logged. The same agent in
# float32, or in PyTorch, whose `multinomial` has neither, samples another distribution.
# Expected before: the softmax, up to the rounding of logits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import jax
import jax.numpy as jnp
import numpy as np


def ratio(logits, dtype, chosen, draws, mode=None):
    """How often a class of `chosen` is drawn, relative to the softmax of the logits, once they are rounded to dtype."""
    logits = jnp.asarray(logits, dtype)
    expected = np.asarray(jax.nn.softmax(logits.astype(jnp.float32)))[chosen].sum()
    drawn = np.asarray(jax.random.categorical(jax.random.key(0), logits, shape=(draws,), mode=mode))
    return np.isin(drawn, np.arange(len(logits))[chosen]).mean() / expected


unimix = np.log(np.where(np.arange(32) == 31, 0.99, 0) + 0.01 / 32)
cases = {
    "1% uniform of 32 classes, all but the best": (unimix, slice(0, 31), 1000000),
    "32 equal classes, the first": (np.zeros(32), slice(0, 1), 300000),
    "32 equal classes, the last": (np.zeros(32), slice(31, 32), 300000),
    "256 equal classes, the first": (np.zeros(256), slice(0, 1), 100000),
    "256 equal classes, the last half": (np.zeros(256), slice(128, 256), 100000),
}
kinds = {"bfloat16": (jnp.bfloat16, None), "float16": (jnp.float16, None), "float32": (jnp.float32, None),
         'bfloat16, mode="high"': (jnp.bfloat16, "high")}
seen = {}
for name, (logits, chosen, draws) in cases.items():
    seen[name] = [ratio(logits, dtype, chosen, draws, mode) for dtype, mode in kinds.values()]
    print(f"{name}: " + ", ".join(f"{kind} {value:.2f}" for kind, value in zip(kinds, seen[name])))
half, _, single, high = np.array(list(seen.values())).T
good = half[0] < 0.6 and half[1] > 1.07 and half[2] < 0.95 and half[3] > 1.7 and half[4] < 0.7
sys.exit(0 if good and np.abs(single - 1).max() < 0.15 and np.abs(high - 1).max() < 0.15 else 1)
PYTHON
