"""The same agent, faster: `install(agent, backend)`, called once on the finished agent, is the only seam.

Nothing here defines what is computed. The method's files are plain PyTorch and know nothing of this package, which
replaces layers, functions and steps of an agent by twins that compute the same:

- layers.py: layers that compute in bfloat16, or in C++ on a CPU;
- functions.py: small functions that become one kernel each;
- steps.py: the steps of a rollout, compiled whole, with one weight gradient for all steps of a rollout;
- graphs.py: a whole update as one CUDA graph;
- native/: layers in C++;
- check.py: a twin whose equation somebody has changed is left out.

What has no twin runs as it is. tests/test_accel.py compares values and gradients, at the inputs and at every parameter,
with those of the plain agent, for every backend.
"""

from .backend import Backend, choose_backend
from .install import install

__all__ = ["Backend", "choose_backend", "install"]
