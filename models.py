"""The world model of HRSSM with its two branches, the actor-critic in imagination, and their losses.

The losses are plain functions of tensors. Letters in shape comments as in networks.py; H is the imagination horizon.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import baselines
import distributions as dists
import networks
import tools
from baselines.augmentations import augment
from baselines.r2dreamer import barlow_twins_loss
from run import distributed

Metrics = dict[str, Tensor]  # scalars on the device


# Inputs


def preprocess(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replay rows or observations as inputs of the networks.

    uint8 images become floats in [-0.5, 0.5] and `cont` = 1 - is_terminal is added. Flags stay bool.
    """
    data = {k: center(v) if v.dtype == torch.uint8 and v.ndim > 3 else v for k, v in batch.items()}
    if "is_terminal" in data:
        data["cont"] = 1 - data["is_terminal"].float()
    return data


def center(image: Tensor) -> Tensor:
    """uint8 images → float in [-0.5, 0.5]."""
    return image.float() / 255 - 0.5


def mask_pixels(image: Tensor, mask: Tensor) -> Tensor:
    """Sets the pixels of images (B, T, H, W, C) that a mask (T, H, W) hides to 0, which is mid-gray."""
    return image * (mask == 0)[..., None]


def cube_mask(
    length: int, height: int, width: int, ratio: float = 0.5, patch_size: int = 10, block_size: int = 4, device=None
) -> Tensor:
    """Draws a cube mask (section 3.1 of the paper): patches that stay hidden for `block_size` steps.

    Returns:
        (T, H, W) bool, True is hidden: at each step exactly ⌊ratio·patches⌋ of a grid of (H // patch_size)² patches.

    Raises:
        ValueError: `length` is not a multiple of `block_size`.
    """
    if length % block_size:
        raise ValueError(f"a sequence of {length} steps (batch_length) is not a multiple of block_size {block_size}")
    grid = max(height // patch_size, 1)
    # (T / block, patches): the patches with the lowest scores are hidden
    order = torch.rand(length // block_size, grid * grid, device=device).argsort(-1).argsort(-1)
    hidden = (order < int(ratio * grid * grid)).unflatten(-1, (grid, grid))
    rows = torch.arange(height, device=device) * grid // height
    columns = torch.arange(width, device=device) * grid // width
    hidden = hidden.index_select(1, rows).index_select(2, columns)
    return hidden.unsqueeze(1).expand(-1, block_size, -1, -1).flatten(0, 1)


# Losses


def kl_losses(post, prior, free: float) -> tuple[Tensor, Tensor, Tensor]:
    """The two sides of the KL balance, with free nats on each element (DreamerV3, equation 5).

    Args:
        post, prior: distributions over (...), each with the whole latent as event.
        free: nats per element.

    Returns:
        `dyn`, which trains the prior, `rep`, which trains the posterior, and the KL without gradient, each (...).
    """
    dyn = post.detach().kl(prior)
    rep = post.kl(prior.detach())
    return dyn.clamp_min(free), rep.clamp_min(free), rep.detach()


def reconstruction_loss(predicted: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
    """Squared error of a decoder, summed over each observation (DreamerV3's `mse` and `symlog_mse`) → (B, T).

    Args:
        predicted: images, and vectors as their symlog, (B, T, ...).
        data: a preprocessed batch.
    """
    errors = []
    for key, value in predicted.items():
        target = data[key] if data[key].ndim > 3 else dists.symlog(data[key])
        errors.append(((value - target) ** 2).flatten(2).sum(-1) if value.ndim > 2 else (value - target) ** 2)
    return sum(errors)


def latent_reconstruction_loss(online: Tensor, target: Tensor) -> Tensor:
    """Squared distance of unit vectors (`mbr`, section 3.2 of the paper): (..., P), (..., P) → (...)."""
    online, target = F.normalize(online, dim=-1, eps=1e-3), F.normalize(target.detach(), dim=-1, eps=1e-3)
    return ((online - target) ** 2).sum(-1)


def bisimulation_loss(
    online: Tensor, target: Tensor, next_online: Tensor, next_target: Tensor, reward: Tensor, discount: float
) -> Tensor:
    """SimSR over all pairs of N states (section 3.3 of the paper): distances follow rewards and next states.

    Args:
        online, target: (N, F) features of the masked and the target posterior at steps 0..T-2.
        next_online, next_target: (N, F) of the masked and the target prior at steps 1..T-1; no gradient.
        reward: (N,) at steps 0..T-2, meant to lie in [0, 2].

    Returns:
        A scalar, the Huber loss averaged over N×N pairs; a rank pairs its online states with the target states of all
        ranks, so that the mean over ranks is the loss of the whole batch.
    """
    # M = ranks·N columns
    target, next_target, target_reward = map(distributed.all_gather_rows, (target, next_target, reward))
    # (N, M)
    distance = 1 - F.normalize(online, dim=-1) @ F.normalize(target, dim=-1).T
    with torch.no_grad():
        next_distance = 1 - F.normalize(next_online, dim=-1) @ F.normalize(next_target, dim=-1).T
        bound = (reward[:, None] - target_reward[None, :]).abs() + discount * next_distance
    return F.smooth_l1_loss(distance, bound)


def reward_to_simsr(reward_range: tuple[float, float] | None, action_repeat: int) -> float:
    """The factor, at most 1, that makes rewards of agent steps differ by 2 or less, as `bisimulation_loss` expects.

    reward_range: minimum and maximum of an environment step; None if they are not known, for a factor of 1.
    """
    if reward_range is None:
        return 1.0
    low, high = reward_range
    return min(1.0, 2 / ((high - low) * action_repeat))


def lambda_return(reward: Tensor, value: Tensor, discount: Tensor, bootstrap: Tensor, lambda_: float) -> Tensor:
    """TD(λ) returns, (H, N, 1) like `reward`, `value` and `discount`; `bootstrap` (N, 1) is the value after the last.

    Return i is reward[i] + discount[i]·((1 - λ)·value[i + 1] + λ·return[i + 1]).
    """
    following = torch.cat([value[1:], bootstrap[None]])
    base = reward + discount * following * (1 - lambda_)
    returns, last = [], bootstrap
    for i in reversed(range(reward.shape[0])):
        last = base[i] + discount[i] * lambda_ * last
        returns.append(last)
    return torch.stack(returns[::-1])


def pick_starts(start: networks.State, count: int) -> networks.State:
    """`count` of the states (N, ...), drawn without replacement; all of them if `count` is 0 or at least N."""
    n = len(start["deter"])
    if not 0 < count < n:
        return start
    index = torch.rand(n, device=start["deter"].device).argsort()[:count]
    return {k: v.index_select(0, index) for k, v in start.items()}


class WorldModel(nn.Module):
    """HRSSM's world model: encoder, dynamics, heads, and the EMA copies of the target branch.

    Args:
        shapes: shape of each observation, by name.
        actions: number of action dims.
        reward_to_simsr: factor that brings a task's rewards into [0, 2] for the bisimulation loss.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], actions: int, config, reward_to_simsr: float = 1.0):
        super().__init__()
        c = self.config = config
        self.reward_to_simsr = reward_to_simsr
        self.encoder = networks.Encoder(shapes, c.encoder)
        blocks = {"blocks": c.dyn_blocks} if c.dyn_cell == "block_gru" else {}
        cell = networks.CELLS[c.dyn_cell](c.dyn_hidden, c.dyn_deter, **blocks)
        self.dynamics = networks.RSSM(
            self.encoder.outputs, actions, cell, stoch=c.dyn_stoch, discrete=c.dyn_discrete, deter=c.dyn_deter,
            hidden=c.dyn_hidden, projection=c.dyn_cont_stoch_size, unimix=c.unimix_ratio, initial=c.initial,
            mean_act=c.dyn_mean_act, std_act=c.dyn_std_act, min_std=c.dyn_min_std,
        )  # fmt: skip
        feat = self.dynamics.feat_size
        reward = networks.Head(feat, c.units, c.reward_layers, c.reward_head)
        cont = networks.Head(feat, c.units, c.cont_layers, "binary")
        self.heads = nn.ModuleDict({"reward": reward, "cont": cont})
        trained = dict(self.named_parameters())
        adam = {"lr": c.model_lr, "eps": c.opt_eps, "clip": c.grad_clip, "weight_decay": c.weight_decay}
        self.decoder = self.probe_opt = self.baseline = None
        decodes = "decoder" in c.grad_heads
        if decodes or c.probe_decoder:
            with torch.random.fork_rng([]):  # it does not change the initialization of other networks
                self.decoder = networks.Decoder(feat, self.encoder, shapes, c.encoder)
        if decodes:
            trained |= self.decoder.named_parameters("decoder")
        elif c.probe_decoder:
            self.probe_opt = tools.Optimizer(self.decoder.named_parameters(), **adam)
        if c.baseline != "none":
            with torch.random.fork_rng([]):
                self.baseline = baselines.METHODS[c.baseline](c, self.encoder, self.dynamics)
            trained |= self.baseline.model_parameters()
        self.start = "target_post" if c.hybrid and c.imag_branch == "target" else "post"  # where imagination starts
        if c.hybrid:
            self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
            self.target_dynamics = copy.deepcopy(self.dynamics).requires_grad_(False)
        compares = c.hybrid and c.mbr_scale and c.mbr_projection == "trained"
        unused = () if compares else ("dynamics.projection.weight",)
        self.opt = tools.Optimizer(trained, unused=unused, **adam)

    def draw_mask(self, data: dict[str, Tensor]) -> Tensor | None:
        """A cube mask (T, H, W) for a batch; None if there is no image or nothing to hide."""
        c, keys = self.config, self.encoder.cnn_keys
        if not keys or c.mask_ratio == 0:
            return None
        image = data[keys[0]]
        return cube_mask(*image.shape[1:4], c.mask_ratio, c.patch_size, c.block_size, image.device)

    def apply_mask(self, data: dict[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """The observations of the masked branch: masked pixels are 0 (mid-gray), then the augmentations."""
        out = dict(data)
        for key in self.encoder.cnn_keys:
            if mask is not None:
                out[key] = mask_pixels(out[key], mask)
            out[key] = augment(out[key], tuple(self.config.augmentation), self.config.aug_prob)
        return out

    def losses(
        self, data: dict[str, Tensor], mask: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, networks.State], Metrics]:
        """The terms of the world-model objective (docs/algorithm.md, section 3).

        A loss named `x` is weighted by the setting `x_scale` and logged, without its weight, as `x_loss`.

        Args:
            data: a preprocessed batch, (B, T, ...).
            mask: (T, H, W), 1 is hidden.

        Returns:
            Losses by name, each a scalar or of every step, (B, T); the states of both branches (post, prior,
            target_post, target_prior), the features of post (feat) and the embedding (embed) that the start of
            imagination was inferred from; metrics.
        """
        c = self.config
        action, is_first = data["action"], data["is_first"]

        # Masked branch. (B, T, E)
        embed = self.encoder(self.apply_mask(data, mask))
        post, prior = self.dynamics.observe(embed, action, is_first)
        # (B, T, F)
        feat, prior_feat = self.dynamics.feat(post), self.dynamics.feat(prior)
        states = {"post": post, "prior": prior, "feat": feat, "embed": embed}

        post_dist, prior_dist = self.dynamics.dist(post), self.dynamics.dist(prior)
        dyn, rep, kl = kl_losses(post_dist, prior_dist, c.kl_free)
        losses = {"dyn": dyn, "rep": rep}
        for name, head in self.heads.items():
            inputs = feat if name in c.grad_heads else feat.detach()
            losses[name] = -head(inputs).log_prob(data[name].unsqueeze(-1))

        # Target branch (the hybrid structure of section 3 of the paper): the EMA copies see the whole images, without
        # gradient, and share the masked branch's recurrent state. Without it, the bisimulation compares the masked
        # branch with itself.
        other, other_prior = feat.detach(), prior_feat
        if c.hybrid:
            with torch.no_grad():
                target_embed = self.target_encoder(data)
                target_post, target_prior = self.target_dynamics.target_branch(prior, target_embed, action, is_first)
                target_feat, target_prior_feat = self.dynamics.feat(target_post), self.dynamics.feat(target_prior)
            states.update(target_post=target_post, target_prior=target_prior)
            if self.start == "target_post":
                states["embed"] = target_embed
            if c.simsr_branch == "target":
                other, other_prior = target_feat, target_prior_feat
            if c.mbr_scale:  # section 3.2
                losses["mbr"] = self.latent_reconstruction(feat, target_feat)

        if "decoder" in c.grad_heads:
            losses["decoder"] = reconstruction_loss(self.decoder(feat), data)

        metrics = {}
        if self.baseline is not None:
            own_losses, own_metrics = self.baseline.loss(self, data, post, prior, feat, embed)
            losses.update(own_losses)
            metrics.update(own_metrics)
        if c.simsr_scale:  # section 3.3; r at t with the states at t and at t + 1
            reward = data["reward"][:, :-1] * self.reward_to_simsr
            pairs = feat[:, :-1], other[:, :-1], prior_feat[:, 1:], other_prior[:, 1:], reward
            losses["simsr"] = bisimulation_loss(*(x.flatten(0, 1) for x in pairs), c.simsr_discount)
            metrics["simsr_reward_out_of_range"] = (reward.max() - reward.min() > 2).float()

        entropies = {"prior_ent": prior_dist.entropy(), "post_ent": post_dist.entropy()}
        metrics |= {"kl": kl.mean(), **{k: v.detach().mean() for k, v in entropies.items()}}
        return losses, states, metrics

    def latent_reconstruction(self, feat: Tensor, target_feat: Tensor) -> Tensor:
        """How far the projected features of the two branches are apart: (B, T, F) each → (B, T), or a scalar.

        `mbr_loss: barlow` is a variant that is not in the paper: it compares the latents alone, without the recurrent
        state that both branches share, by a loss that a constant projection does not lower.
        """
        c, stoch, deter = self.config, self.dynamics.stoch_size, self.dynamics.deter
        if c.mbr_loss == "barlow":
            feat, target_feat = (F.pad(x[..., :stoch], (0, deter)) for x in (feat, target_feat))
        online = self.dynamics if c.mbr_projection == "trained" else self.dynamics.frozen
        projected, target = online.project(feat), self.target_dynamics.project(target_feat)
        if c.mbr_loss == "barlow":
            return barlow_twins_loss(projected.flatten(0, 1), target.flatten(0, 1), c.barlow_lambda)
        return latent_reconstruction_loss(projected, target)

    def loss(self, data: dict[str, Tensor], mask: Tensor | None) -> tuple[Tensor, dict[str, networks.State], Metrics]:
        """The objective, Σ scale·loss, each a mean over (B, T); its states; its metrics and those of `losses`."""
        losses, states, metrics = self.losses(data, mask)
        total = sum((self.config[f"{name}_scale"] * loss).mean() for name, loss in losses.items())
        metrics.update({f"{name}_loss": loss.detach().mean() for name, loss in losses.items()})
        return total, states, {"model_loss": total.detach(), **metrics}

    def update(self, batch: dict[str, Tensor]) -> tuple[networks.State, Tensor, Metrics]:
        """One optimizer step on a batch of replay rows, (B, T, ...), and one update of the EMA copies.

        Returns:
            Start states for imagination, (B·T, ...), and their embedding (B, T, E), both from before the step; metrics.
        """
        data = preprocess(batch)
        mask = self.draw_mask(data)
        if mask is not None:
            distributed.broadcast([mask])  # the batch shares one
        if self.baseline is not None:
            self.baseline.begin_update(self)
        total, states, metrics = self.loss(data, mask)
        metrics["model_grad_norm"] = self.opt.step(total)
        if self.baseline is not None:
            self.baseline.end_update(metrics)
        if self.probe_opt is not None:
            probe_loss = reconstruction_loss(self.decoder(states["feat"].detach()), data).mean()
            metrics.update(probe_loss=probe_loss.detach(), probe_grad_norm=self.probe_opt.step(probe_loss))
        if self.config.hybrid:
            tools.ema(self.target_encoder, self.encoder, self.config.encoder_tau)
            tools.ema(self.target_dynamics, self.dynamics, self.config.dynamics_tau)
        start = {k: v.detach().flatten(0, 1) for k, v in states[self.start].items()}
        return start, states["embed"].detach(), metrics


class ImagBehavior(nn.Module):
    """Actor and critic that learn in the world model's imagination (docs/algorithm.md, section 4)."""

    def __init__(self, config, world_model: WorldModel, actions: int):
        super().__init__()
        c = self.config = config
        feat = world_model.dynamics.feat_size
        self.actor = networks.Actor(
            feat, c.units, c.actor_layers, actions, dist=c.actor_dist, min_std=c.actor_min_std,
            max_std=c.actor_max_std, init_std=c.actor_init_std, unimix=c.action_unimix_ratio,
        )  # fmt: skip
        self.value = networks.Head(feat, c.units, c.value_layers, c.value_head)
        if c.slow_value_target:
            self.slow_value = copy.deepcopy(self.value).requires_grad_(False)
        self.register_buffer("return_levels", torch.tensor([0.05, 0.95]), persistent=False)
        self.register_buffer("return_ema", torch.zeros(2))  # EMA of these quantiles of the returns
        self.register_buffer("updates", torch.tensor(0), persistent=False)  # a captured update counts too
        adam = {"eps": c.ac_opt_eps, "weight_decay": c.weight_decay}
        self.actor_opt = tools.Optimizer(self.actor.named_parameters(), c.actor_lr, clip=c.actor_grad_clip, **adam)
        self.value_opt = tools.Optimizer(self.value.named_parameters(), c.value_lr, clip=c.value_grad_clip, **adam)

    def loss(
        self, world_model: WorldModel, start: networks.State, objective: Callable | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Metrics]:
        """Losses of the actor and of the critic from one imagined rollout; moves the return EMA.

        Args:
            start: states (N, ...).
            objective: features (H, N, F), actions (H, N, A) → reward (H, N, 1); None is the reward head.

        Returns:
            Actor loss, value loss, the trajectory (feat, action, weights, target, base) and metrics.
        """
        c = self.config
        feat, action, policy = world_model.dynamics.imagine(self.actor, start, c.imag_horizon)
        # (H, N, 1)
        reward = world_model.heads["reward"](feat).mode() if objective is None else objective(feat, action)
        discount = c.discount * world_model.heads["cont"](feat).mean
        value_dist = self.value(feat)
        value = value_dist.mode()
        # (H - 1, N, 1)
        target = lambda_return(reward[1:], value[:-1], discount[1:], value[-1], c.discount_lambda)
        # (H, N, 1)
        weights = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0).detach()

        offset, scale = self.return_range(target)
        base = value[:-1]
        advantage = (target - offset) / scale - (base - offset) / scale
        # (H, N, 1)
        entropy = policy.entropy().unsqueeze(-1)
        if c.imag_gradient == "dynamics":
            gain = advantage
        else:
            gain = policy.log_prob(action.detach())[:-1, :, None] * advantage.detach()
            if c.imag_gradient == "both":
                gain = c.imag_gradient_mix * advantage + (1 - c.imag_gradient_mix) * gain
        actor_loss = -(weights[:-1] * (gain + c.actor_entropy * entropy[:-1])).mean()

        # The critic's own gradient stops at the features because its optimizer differentiates only its parameters.
        value_dist = value_dist[:-1]
        value_loss = -value_dist.log_prob(target.detach())
        if c.slow_value_target:
            with torch.no_grad():
                slow = self.slow_value(feat[:-1]).mode()
            value_loss = value_loss - value_dist.log_prob(slow)
        value_loss = (weights[:-1, :, 0] * value_loss).mean()

        metrics = {"actor_loss": actor_loss, "value_loss": value_loss, "actor_entropy": entropy.mean()}
        metrics |= {"value_mean": value.mean(), "target_mean": target.mean()}
        metrics |= {"imag_reward_mean": reward.mean(), "imag_reward_std": reward.std()}
        metrics |= {"imag_action_mean": action.mean(), "imag_action_std": action.std()}
        metrics |= {"EMA_005": self.return_ema[0], "EMA_095": self.return_ema[1]}
        metrics = {k: v.detach().clone() for k, v in metrics.items()}
        trajectory = {"feat": feat, "action": action, "weights": weights, "target": target, "base": base}
        return actor_loss, value_loss, trajectory, metrics

    def return_range(self, target: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Moves the EMA of the 5th and 95th percentile of all ranks' returns; returns (offset, scale)."""
        if not self.config.reward_EMA:
            return 0.0, 1.0
        quantiles = torch.quantile(distributed.all_gather_rows(target.flatten()), self.return_levels)
        self.return_ema.lerp_(quantiles, 0.01)
        return self.return_ema[0].clone(), (self.return_ema[1] - self.return_ema[0]).clamp_min(1)

    def update(self, world_model: WorldModel, start: networks.State, objective: Callable | None = None) -> Metrics:
        """One optimizer step each of actor and critic from imagined rollouts, after moving the slow critic.

        Args:
            start: states (N, ...) where they start: all of them, or `imag_starts` drawn at random.
            objective: see `loss`.
        """
        self.move_slow_value()
        start = pick_starts(start, self.config.imag_starts // distributed.size())
        actor_loss, value_loss, _, metrics = self.loss(world_model, start, objective)
        metrics["actor_grad_norm"] = self.actor_opt.step(actor_loss, retain_graph=True)
        metrics["value_grad_norm"] = self.value_opt.step(value_loss)
        return metrics

    @torch.no_grad()
    def move_slow_value(self) -> None:
        """Moves the slow critic toward the critic at every `slow_target_update`-th update."""
        c = self.config
        if c.slow_value_target:
            rate = c.slow_target_fraction
            if c.slow_target_update > 1:  # a rate of 0 between: a branch could not depend on the counter's value
                rate = torch.where(self.updates % c.slow_target_update == 0, rate, 0.0)
            tools.ema(self.slow_value, self.value, rate)
        self.updates += 1
