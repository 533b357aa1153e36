"""The representation losses of the methods that HRSSM is compared with, one module each.

All of them share the encoder, RSSM, heads, actor-critic, replay and loop of HRSSM: a method is its loss and what that
loss needs. The setting `baseline` picks one; the named config of the same name also switches off HRSSM's own parts.
"""

from .base import Baseline
from .dreamerpro import DreamerPro
from .infonce import InfoNCE
from .r2dreamer import R2Dreamer
from .repo import RePo

METHODS: dict[str, type[Baseline]] = {
    "repo": RePo,
    "r2dreamer": R2Dreamer,
    "infonce": InfoNCE,
    "dreamerpro": DreamerPro,
}
