"""Distributions of the agent: straight-through one-hot, two-hot over symlog, Bernoulli, Normal and variants.

Every class is built from a network's raw output and has `mode()`, `log_prob(x)` and, where the agent needs them,
`sample()`, `entropy()` and `kl(other)`. Log-probabilities and entropies are sums over the event dimensions that each
class names.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS = 255  # bins of the two-hot heads
BUCKET_RANGE = 20.0  # symlog units


def symlog(x: Tensor) -> Tensor:
    """sign(x)·log(1 + |x|), elementwise (DreamerV3, equation 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def mix(logits: Tensor, unimix: float) -> Tensor:
    """Softmax over the last dimension, with a share `unimix` of the uniform distribution."""
    probs = torch.softmax(logits, -1)
    return probs * (1 - unimix) + unimix / probs.shape[-1] if unimix else probs


def draw_one_hot(probs: Tensor) -> Tensor:
    """Draws from categorical distributions, by inverting the cumulative probabilities.

    Args:
        probs: (..., K) probabilities that sum to 1.

    Returns:
        (..., K). One uniform number is drawn for each distribution, from the global generator.
    """
    return pick(probs, torch.rand(probs.shape[:-1], device=probs.device, dtype=probs.dtype))


def pick(probs: Tensor, u: Tensor) -> Tensor:
    """The one-hot class whose share of (0, 1) holds u: (..., K), (...) → (..., K)."""
    below = (cumulate(probs) <= u.unsqueeze(-1)).sum(-1)
    return one_hot(below.clamp(max=probs.shape[-1] - 1), probs.shape[-1])


def cumulate(probs: Tensor) -> Tensor:
    """Cumulative sum over the last dimension; on a GPU as a product, since `cumsum` is not deterministic there."""
    classes = probs.shape[-1]
    return probs @ probs.new_ones(classes, classes).triu() if probs.is_cuda else probs.cumsum(-1)


def one_hot(index: Tensor, classes: int) -> Tensor:
    """(...) class indices → (..., K)."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).float()


def draw_normal(like: Tensor) -> Tensor:
    """Standard normal noise in the shape of `like`, from the global generator."""
    return torch.randn_like(like)


def draw_uniform(like: Tensor) -> Tensor:
    """Uniform noise on (0, 1) in the shape of `like`, from the global generator."""
    return torch.rand_like(like).clamp_(1e-6, 1 - 1e-6)


class _StraightThrough(torch.autograd.Function):
    """`hard` in the forward pass, the gradient of `soft` in the backward pass."""

    @staticmethod
    def forward(ctx, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def categorical_kl(probs: Tensor, log_probs: Tensor, other_log_probs: Tensor, event: tuple[int, ...]) -> Tensor:
    """KL of categorical distributions (..., K), summed over the dimensions of an event."""
    return (probs * (log_probs - other_log_probs)).sum(event)


class OneHot:
    """Independent one-hot variables with a uniform share in their probabilities.

    Args:
        logits: (..., K).
        unimix: share of the uniform distribution, in sampling, entropy, KL and log-probability alike.
        event_dims: number of dimensions before K that belong to the event (1 for an S×K latent, 0 for an action).
    """

    def __init__(self, logits: Tensor, unimix: float = 0.01, event_dims: int = 1):
        self.logits, self.unimix = logits, unimix
        self.probs = mix(logits, unimix)
        self.event = tuple(range(-1 - event_dims, 0))

    @functools.cached_property
    def log_probs(self) -> Tensor:
        # a probability can be 0 in float32 without a uniform share
        return torch.log(self.probs) if self.unimix else torch.log_softmax(self.logits, -1)

    def sample(self) -> Tensor:
        """(..., K) one-hot; its gradient is that of the probabilities."""
        return _StraightThrough.apply(draw_one_hot(self.probs.detach()), self.probs)

    def mode(self) -> Tensor:
        """(..., K) one-hot of the most probable class; its gradient is that of the log-probabilities."""
        hard = one_hot(self.probs.detach().argmax(-1), self.probs.shape[-1])
        return _StraightThrough.apply(hard, self.log_probs)

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum(self.event)

    def log_prob(self, x: Tensor) -> Tensor:
        return (x * self.log_probs).sum(self.event)

    def kl(self, other: "OneHot") -> Tensor:
        """KL(self ‖ other), summed over the event."""
        return categorical_kl(self.probs, self.log_probs, other.log_probs, self.event)

    def detach(self) -> "OneHot":
        out = object.__new__(OneHot)
        out.probs, out.log_probs, out.event = self.probs.detach(), self.log_probs.detach(), self.event
        return out


class Normal:
    """Independent normal variables; the last dimension is the event.

    Args:
        mean, std: (..., A).
    """

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    def sample(self) -> Tensor:
        """(..., A), reparameterized: gradients reach mean and std."""
        return self.mean + self.std * draw_normal(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def entropy(self) -> Tensor:
        return (0.5 * math.log(2 * math.pi * math.e) + torch.log(self.std)).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return (-0.5 * z * z - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Normal") -> Tensor:
        """KL(self ‖ other), summed over the last dimension."""
        ratio = (self.std / other.std) ** 2
        shift = ((self.mean - other.mean) / other.std) ** 2
        return 0.5 * (ratio + shift - 1 - torch.log(ratio)).sum(-1)

    def detach(self) -> "Normal":
        return Normal(self.mean.detach(), self.std.detach())


class TruncNormal(Normal):
    """Normal truncated to [-1, 1], sampled by inverting its cumulative distribution."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__(mean, std)
        self._a = (-1 - self.mean) / self.std
        self._b = (1 - self.mean) / self.std
        self._cdf_a = torch.special.ndtr(self._a)
        self._mass = (torch.special.ndtr(self._b) - self._cdf_a).clamp_min(1e-6)

    def sample(self) -> Tensor:
        """(..., A), reparameterized."""
        p = (self._cdf_a + draw_uniform(self.mean) * self._mass).clamp(1e-6, 1 - 1e-6)
        return (self.mean + self.std * torch.special.ndtri(p)).clamp(-1, 1)

    def mode(self) -> Tensor:
        return self.mean.clamp(-1, 1)

    def entropy(self) -> Tensor:
        def density(z):
            return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

        tails = (self._a * density(self._a) - self._b * density(self._b)) / (2 * self._mass)
        return (0.5 * math.log(2 * math.pi * math.e) + torch.log(self.std * self._mass) + tails).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) - torch.log(self._mass).sum(-1)


class TanhNormal(Normal):
    """tanh of a Normal. Its entropy has no closed form: it is estimated from one sample."""

    def sample(self) -> Tensor:
        """(..., A) in (-1, 1), reparameterized."""
        return torch.tanh(super().sample())

    def mode(self) -> Tensor:
        return torch.tanh(self.mean)

    def entropy(self) -> Tensor:
        return -self.log_prob(self.sample())

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.clamp(-1 + 1e-6, 1 - 1e-6)
        return super().log_prob(torch.atanh(x)) - torch.log1p(-x * x).sum(-1)


class Uniform:
    """Independent uniform variables on [-1, 1]."""

    def __init__(self, shape: tuple[int, ...], device=None):
        self.shape, self.device = shape, device

    def sample(self) -> Tensor:
        return torch.rand(self.shape, device=self.device) * 2 - 1

    def mode(self) -> Tensor:
        return torch.zeros(self.shape, device=self.device)


class UnitNormal(Normal):
    """Normal with std 1 around a head's output, for `normal` reward and value heads; event (..., 1)."""

    def __init__(self, mean: Tensor):
        super().__init__(mean, torch.ones_like(mean))

    def __getitem__(self, index) -> "UnitNormal":
        return UnitNormal(self.mean[index])


def bucket_values(device: torch.device) -> Tensor:
    """(255) in symlog space."""
    return torch.linspace(-BUCKET_RANGE, BUCKET_RANGE, BUCKETS, device=device)


class TwoHotSymlog:
    """A scalar as 255 buckets, evenly spaced in symlog space (DreamerV3, section "Critic learning").

    Args:
        logits: (..., 255).
    """

    def __init__(self, logits: Tensor):
        self.logits = logits

    def __getitem__(self, index) -> "TwoHotSymlog":
        return TwoHotSymlog(self.logits[index])

    def mode(self) -> Tensor:
        """(..., 1): symexp of the expected bucket."""
        return two_hot_mean(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of x (..., 1) → (...). Its mass is shared by the two buckets next to symlog(x)."""
        return two_hot_log_prob(self.logits, x)


def two_hot_mean(logits: Tensor) -> Tensor:
    """symexp of the expected bucket: (..., 255) → (..., 1)."""
    return symexp((torch.softmax(logits, -1) * bucket_values(logits.device)).sum(-1, keepdim=True))


def two_hot_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-likelihood of x (..., 1) under logits (..., 255) → (...)."""
    buckets = bucket_values(logits.device)
    x = symlog(x).clamp(-BUCKET_RANGE, BUCKET_RANGE)
    # (..., 1) index of the bucket at or below x, except the last bucket
    below = (torch.bucketize(x.detach(), buckets, right=True) - 1).clamp(0, BUCKETS - 2)
    left, right = buckets.take(below), buckets.take(below + 1)
    share = (x - left) / (right - left)
    # (..., 255): a product with a two-hot vector, as the gradient of a gather is not repeatable on a GPU
    index = torch.arange(BUCKETS, device=x.device)
    target = torch.where(index == below, 1 - share, torch.where(index == below + 1, share, 0.0))
    return (target * logits).sum(-1) - torch.logsumexp(logits, -1)


class Bernoulli:
    """A binary variable of (..., 1); the last dimension is the event."""

    def __init__(self, logits: Tensor):
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def mode(self) -> Tensor:
        return (self.logits > 0).float()

    def log_prob(self, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(self.logits, x, reduction="none").sum(-1)
