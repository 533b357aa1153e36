"""Behaviors that gather data instead of the task's policy: uniform random actions, and Plan2Explore."""

import torch
from torch import Tensor, nn

import distributions as dists
import models
import networks
import tools


def make(config, world_model: models.WorldModel, actions: int) -> nn.Module:
    """The exploring behavior that `expl_behavior` names."""
    if config.expl_behavior == "plan2explore":
        return Plan2Explore(config, world_model, actions)
    if config.expl_behavior == "random":
        return Random(actions, config.actor_dist == "onehot")
    return Greedy()


def add_noise(action: Tensor, amount: float, discrete: bool) -> Tensor:
    """Exploration noise on actions (N, A): Normal of std `amount`, or for one-hot actions that share of uniform."""
    if not amount:
        return action
    if discrete:
        return dists.OneHot(torch.log(action.clamp_min(1e-8)), unimix=amount, event_dims=0).sample()
    return dists.Normal(action, torch.full_like(action, amount)).sample().clamp(-1, 1)


class Greedy(nn.Module):
    """No exploring behavior: the task's own policy gathers the data."""

    behaviors: tuple[models.ImagBehavior, ...] = ()  # behaviors that it trains

    def update(self, world_model, start, embed, batch) -> models.Metrics:
        return {}

    def optimizers(self) -> dict[str, tools.Optimizer]:
        return {}


class Random(Greedy):
    """Uniform random actions, continuous in [-1, 1] or one-hot."""

    def __init__(self, actions: int, discrete: bool = False):
        super().__init__()
        self.actions, self.discrete = actions, discrete

    def policy(self, feat: Tensor) -> dists.OneHot | dists.Uniform:
        shape = (*feat.shape[:-1], self.actions)
        if self.discrete:
            return dists.OneHot(torch.zeros(shape, device=feat.device), unimix=0, event_dims=0)
        return dists.Uniform(shape, feat.device)


class Plan2Explore(nn.Module):
    """An actor-critic that seeks states on which an ensemble of predictors disagrees (Sekar et al., 2020)."""

    def __init__(self, config, world_model: models.WorldModel, actions: int):
        super().__init__()
        self.config = config
        self.behavior = models.ImagBehavior(config, world_model, actions)
        self.behaviors = (self.behavior,)
        dynamics = world_model.dynamics
        sizes = {"stoch": dynamics.stoch_size, "deter": dynamics.deter, "feat": dynamics.feat_size}
        outputs = {**sizes, "embed": world_model.encoder.outputs}[config.disag_target]
        inputs = dynamics.feat_size + (actions if config.disag_action_cond else 0)
        self.ensemble = nn.ModuleList(
            networks.MLP(inputs, config.disag_units, config.disag_layers, outputs) for _ in range(config.disag_models)
        )
        self.opt = tools.Optimizer(
            self.ensemble.named_parameters(), config.model_lr, config.opt_eps, config.grad_clip, config.weight_decay
        )

    def policy(self, feat: Tensor) -> dists.Normal | dists.OneHot:
        return self.behavior.actor(feat)

    def predict(self, feat: Tensor, action: Tensor) -> Tensor:
        """The prediction of each member: (..., F), (..., A) → (members, ..., outputs)."""
        inputs = torch.cat([feat, action], -1) if self.config.disag_action_cond else feat
        return torch.stack([member(inputs) for member in self.ensemble])

    def intrinsic_reward(self, world_model: models.WorldModel, feat: Tensor, action: Tensor) -> Tensor:
        """Disagreement of the ensemble, and a share of the task's reward: (H, N, F), (H, N, A) → (H, N, 1)."""
        disagreement = self.predict(feat, action).std(0).mean(-1, keepdim=True)
        if self.config.disag_log:
            disagreement = torch.log(disagreement.clamp_min(1e-8))
        reward = self.config.expl_intr_scale * disagreement
        if self.config.expl_extr_scale:
            reward = reward + self.config.expl_extr_scale * world_model.heads["reward"](feat).mode()
        return reward

    def update(self, world_model: models.WorldModel, start: networks.State, embed: Tensor, batch) -> models.Metrics:
        """One step of the ensemble on the batch's states, and one of the exploring actor and critic in imagination.

        Args:
            start: states (B·T, ...) of the batch.
            embed: (B, T, E).
            batch: replay rows, (B, T, ...).
        """
        shape = embed.shape[:2]
        # (B, T, F)
        feat = world_model.dynamics.feat(start).unflatten(0, shape)
        latents = {"stoch": start["stoch"].reshape(*shape, -1), "deter": start["deter"].unflatten(0, shape)}
        target = {**latents, "feat": feat, "embed": embed}[self.config.disag_target]
        offset = self.config.disag_offset
        length = shape[1] - offset
        # row t's action led to row t; the action taken there is in row t + 1
        action = torch.cat([batch["action"][:, 1:], torch.zeros_like(batch["action"][:, :1])], 1)
        predicted = self.predict(feat[:, :length], action[:, :length])
        # (members, B, T - offset): each member's negative log-likelihood under a unit Normal, up to a constant
        error = 0.5 * ((predicted - target[:, offset:]) ** 2).sum(-1)
        loss = error.mean((1, 2)).sum()
        metrics = {"disag_loss": loss.detach(), "disag_grad_norm": self.opt.step(loss)}
        found = self.behavior.update(
            world_model, start, lambda feat, action: self.intrinsic_reward(world_model, feat, action)
        )
        return metrics | {f"expl_{key}": value for key, value in found.items()}

    def optimizers(self) -> dict[str, tools.Optimizer]:
        return {"disag": self.opt, "expl_actor": self.behavior.actor_opt, "expl_value": self.behavior.value_opt}
