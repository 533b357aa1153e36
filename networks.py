"""Networks of HRSSM: encoder, heads, and the recurrent state-space model with its discrete or continuous latent.

Letters in the shape comments: B sequences, T steps, N = any number of states, A action dims, E embedding, S×K
categorical latent, D deterministic state, F = S·K + D features. Parameters are float32; a network computes its matrix
products and convolutions in its `dtype` (float32 or bfloat16), and norms, gates, probabilities and sampling in float32.
"""

import itertools
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists
import native
from fast import LayerNorm, Linear, SplitLinear, fusable, halve, rollout, stack_steps, step

NORM_EPS = 1e-3
TRUNC_STD = 0.87962566103423978  # std of a standard normal truncated at ±2

State = dict[str, Tensor]  # stoch (..., S, K) or (..., S), deter (..., D), and the latent's logit or mean and std


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights by fan-in plus fan-out, biases 0, norms 1 and 0 (for `module.apply`)."""
    if isinstance(module, nn.Linear):
        std = math.sqrt(2 / (module.in_features + module.out_features)) / TRUNC_STD
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        area = module.kernel_size[0] * module.kernel_size[1]
        std = math.sqrt(2 / (area * (module.in_channels + module.out_channels))) / TRUNC_STD
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0, b=2.0)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def init_output(layer: nn.Linear | nn.ConvTranspose2d, scale: float) -> None:
    """Uniform weights of an output layer; scale 0 makes it output 0."""
    inputs, outputs, *area = layer.weight.shape
    limit = math.sqrt(3 * scale * 2 / (math.prod(area) * (inputs + outputs)))
    nn.init.uniform_(layer.weight, -limit, limit)
    nn.init.zeros_(layer.bias)


@fusable(native.norm_silu)
def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension, in float32, then SiLU; the output has the type of the input."""
    return F.silu(F.layer_norm(x.float(), weight.shape, weight, bias, eps)).to(x.dtype)


class NormSiLU(LayerNorm):
    """LayerNorm over the last dimension, then SiLU; the output has the type of the input."""

    fused = staticmethod(norm_silu)

    def __init__(self, size: int):
        super().__init__(size, eps=NORM_EPS)

    def after(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Dense(nn.Module):
    """Linear map without bias, LayerNorm, SiLU: (..., inputs) → (..., units)."""

    def __init__(self, inputs: int, units: int, dtype=torch.float32):
        super().__init__()
        self.linear = Linear(inputs, units, bias=False, dtype=dtype)
        self.norm = NormSiLU(units)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class JointDense(nn.Module):
    """A Dense layer of two concatenated inputs: (..., sizes[0]), (..., sizes[1]) → (..., units).

    The product with the second input, `second(y)`, is computed separately: a rollout does so for all steps at once.
    """

    def __init__(self, sizes: tuple[int, int], units: int, dtype=torch.float32):
        super().__init__()
        self.linear = SplitLinear(sizes, units, dtype)
        self.norm = NormSiLU(units)

    def second(self, y: Tensor) -> Tensor:
        return self.linear.second(y)

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        return self.norm(self.linear.first(x) + second)


class MLP(nn.Module):
    """`layers` Dense layers and, given `outputs`, a linear output layer: (..., inputs) → (..., outputs or units).

    Args:
        outscale: scale of the uniform initialization of the output layer.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        layers: int,
        outputs: int = 0,
        outscale: float = 1.0,
        dtype=torch.float32,
    ):
        super().__init__()
        self.layers = nn.ModuleList(Dense(units if i else inputs, units, dtype) for i in range(layers))
        self.out = Linear(units, outputs, dtype=dtype) if outputs else None
        self.apply(init_weights)
        if self.out is not None:
            init_output(self.out, outscale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if self.out is None else self.out(x)


class ScalarHead(MLP):
    """A head that predicts a scalar from features: `symlog_disc` is two-hot over symlog, `normal` a unit Normal."""

    def __init__(self, inputs: int, units: int, layers: int, dist: str = "symlog_disc", dtype=torch.float32):
        discrete = dist == "symlog_disc"
        outputs = dists.BUCKETS if discrete else 1
        super().__init__(inputs, units, layers, outputs, outscale=0.0, dtype=dtype)
        self.dist = dists.TwoHotSymlog if discrete else dists.UnitNormal

    def forward(self, feat: Tensor) -> dists.TwoHotSymlog | dists.UnitNormal:
        return self.dist(super().forward(feat))


class BinaryHead(MLP):
    """A head that predicts a probability from features: that the episode continues."""

    def __init__(self, inputs: int, units: int, layers: int, dtype=torch.float32):
        super().__init__(inputs, units, layers, 1, outscale=1.0, dtype=dtype)

    def forward(self, feat: Tensor) -> dists.Bernoulli:
        return dists.Bernoulli(super().forward(feat))


@fusable()
def bounded_normal(out: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """Output layer's values (..., 2A) → mean in (-1, 1) and std in (min_std, max_std), (..., A)."""
    mean, std = out.chunk(2, -1)
    return torch.tanh(mean), (max_std - min_std) * torch.sigmoid(std + 2) + min_std


class Actor(MLP):
    """The policy: features (..., F) → a distribution over actions (..., A).

    Args:
        dist: normal, trunc_normal, tanh_normal for continuous actions, onehot for discrete ones.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        layers: int,
        actions: int,
        dist: str = "normal",
        min_std: float = 0.1,
        max_std: float = 1.0,
        init_std: float = 1.0,
        unimix: float = 0.01,
        dtype=torch.float32,
    ):
        outputs = actions if dist == "onehot" else 2 * actions
        super().__init__(inputs, units, layers, outputs, dtype=dtype)
        self.dist, self.unimix = dist, unimix
        self.min_std, self.max_std, self.init_std = min_std, max_std, init_std

    def forward(self, feat: Tensor) -> dists.Normal | dists.OneHot:
        return self.policy(super().forward(feat))

    @step()
    def act(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F) → sampled actions (N, A), and the output layer's values, the input of `policy`."""
        out = MLP.forward(self, feat)
        return self.policy(out).sample(), out

    def policy(self, out: Tensor) -> dists.Normal | dists.OneHot:
        """The distribution for the output layer's values (..., A) or (..., 2A)."""
        out = out.float()
        if self.dist == "onehot":
            return dists.OneHot(out, self.unimix, event_dims=0)
        if self.dist == "tanh_normal":
            mean, std = out.chunk(2, -1)
            return dists.TanhNormal(5 * torch.tanh(mean / 5), F.softplus(std + self.init_std) + self.min_std)
        kind = dists.TruncNormal if self.dist == "trunc_normal" else dists.Normal
        return kind(*bounded_normal(out, self.min_std, self.max_std))


class ConvEncoder(nn.Module):
    """Stride-2 convolutions to `minres`: images (..., H, W, C) in [-0.5, 0.5] → (..., E), flattened channel first."""

    def __init__(self, shape: tuple[int, int, int], depth: int, kernel_size: int, minres: int, dtype=torch.float32):
        super().__init__()
        height, width, channels = shape
        stages = count_stages(height, minres)
        if width != height:
            raise ValueError(f"images must be square, not {height}x{width}: see --size")
        depths = [channels] + [depth * 2**i for i in range(stages)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size, stride=2, bias=False) for a, b in itertools.pairwise(depths)
        )
        self.norms = nn.ModuleList(NormSiLU(d) for d in depths[1:])
        self.outputs = depths[-1] * minres * minres
        pad = max(kernel_size - 2, 0)  # "same" for even sizes; an odd remainder goes to the right and the bottom
        self.pad = (pad // 2, pad - pad // 2)
        self.dtype = dtype
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        lead = image.shape[:-3]
        # (N, C, H, W), channels last in memory, the layout that the images already have
        x = image.to(self.dtype).flatten(0, -4).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            weight = conv.weight.to(self.dtype, memory_format=torch.channels_last)
            if self.pad[0] == self.pad[1]:
                x = halve(x, weight, self.pad[0])
            else:
                x = halve(F.pad(x, self.pad * 2), weight, 0)
            # (N, H/2, W/2, C): the norm is over channels
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.flatten(1).unflatten(0, lead)


def count_stages(size: int, minres: int) -> int:
    """Number of halvings from `size` to `minres`; ValueError if there is none."""
    stages = round(math.log2(max(size, 1) / minres))
    if stages < 1 or minres * 2**stages != size:
        raise ValueError(f"an image of {size} pixels cannot be halved down to minres {minres}: use --size {minres}·2^n")
    return stages


class Encoder(nn.Module):
    """Images and vectors of an observation → one embedding (B, T, E).

    Args:
        shapes: shape of each observation, by name.
        mlp_keys, cnn_keys: regular expressions that select vectors and images among them.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        mlp_keys: str,
        cnn_keys: str,
        cnn_depth: int,
        kernel_size: int,
        minres: int,
        mlp_layers: int,
        mlp_units: int,
        symlog_inputs: bool,
        dtype=torch.float32,
    ):
        super().__init__()
        self.cnn_keys, self.mlp_keys = pick_keys(shapes, mlp_keys, cnn_keys)
        self.symlog_inputs = symlog_inputs
        self.cnn = self.mlp = None
        self.outputs = 0
        if self.cnn_keys:
            height, width, _ = shapes[self.cnn_keys[0]]
            channels = sum(shapes[k][-1] for k in self.cnn_keys)
            self.cnn = ConvEncoder((height, width, channels), cnn_depth, kernel_size, minres, dtype)
            self.outputs += self.cnn.outputs
        if self.mlp_keys:
            inputs = sum(math.prod(shapes[k]) for k in self.mlp_keys)
            self.mlp = MLP(inputs, mlp_units, mlp_layers, dtype=dtype)
            self.outputs += mlp_units

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        parts = []
        if self.cnn is not None:
            images = [obs[k] for k in self.cnn_keys]
            parts.append(self.cnn(images[0] if len(images) == 1 else torch.cat(images, -1)))
        if self.mlp is not None:
            lead = obs[self.mlp_keys[0]].shape[:2]
            vector = torch.cat([obs[k].reshape(*lead, -1) for k in self.mlp_keys], -1)
            parts.append(self.mlp(dists.symlog(vector) if self.symlog_inputs else vector))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class ConvDecoder(nn.Module):
    """The encoder's mirror image: features (..., F) → images (..., H, W, C), nominally in [-0.5, 0.5]."""

    def __init__(
        self, inputs: int, shape: tuple[int, int, int], depth: int, kernel_size: int, minres: int, dtype=torch.float32
    ):
        super().__init__()
        height, _, channels = shape
        depths = [depth * 2**i for i in reversed(range(count_stages(height, minres)))]
        self.start = nn.Linear(inputs, depths[0] * minres * minres)
        odd = kernel_size % 2  # each convolution doubles the resolution
        settings = {"stride": 2, "padding": (kernel_size - 2 + odd) // 2, "output_padding": odd}
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel_size, bias=False, **settings) for a, b in itertools.pairwise(depths)
        )
        self.norms = nn.ModuleList(NormSiLU(d) for d in depths[1:])
        self.out = nn.ConvTranspose2d(depths[-1], channels, kernel_size, **settings)
        self.minres, self.dtype = minres, dtype
        self.apply(init_weights)
        init_output(self.out, 1.0)

    def forward(self, feat: Tensor) -> Tensor:
        lead = feat.shape[:-1]
        x = F.linear(feat.to(self.dtype), self.start.weight.to(self.dtype), self.start.bias.to(self.dtype))
        # (N, C, minres, minres), channels last in memory
        x = x.flatten(0, -2).unflatten(-1, (self.minres, self.minres, -1)).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.upsample(conv, x)
            # (N, H, W, C): the norm is over channels
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.upsample(self.out, x).permute(0, 2, 3, 1).unflatten(0, lead).float()

    def upsample(self, conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
        bias = None if conv.bias is None else conv.bias.to(self.dtype)
        return F.conv_transpose2d(x, conv.weight.to(self.dtype), bias, 2, conv.padding, conv.output_padding)


class Decoder(nn.Module):
    """Features (..., F) → the observations that an encoder reads, by name: images, and vectors as their symlog.

    Args:
        encoder: the encoder whose observations and sizes it mirrors.
        shapes: shape of each observation, by name.
        config: the encoder's settings (cnn_depth, kernel_size, minres, mlp_layers, mlp_units).
    """

    def __init__(self, inputs: int, encoder: Encoder, shapes: dict[str, tuple[int, ...]], config, dtype=torch.float32):
        super().__init__()
        self.images = {k: shapes[k][-1] for k in encoder.cnn_keys}  # channels
        self.vectors = {k: tuple(shapes[k]) for k in encoder.mlp_keys}
        self.cnn = self.mlp = None
        if self.images:
            shape = (*shapes[encoder.cnn_keys[0]][:2], sum(self.images.values()))
            self.cnn = ConvDecoder(inputs, shape, config.cnn_depth, config.kernel_size, config.minres, dtype)
        if self.vectors:
            outputs = sum(math.prod(shape) for shape in self.vectors.values())
            self.mlp = MLP(inputs, config.mlp_units, config.mlp_layers, outputs, dtype=dtype)

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        out = {}
        if self.cnn is not None:
            out.update(zip(self.images, self.cnn(feat).split(list(self.images.values()), -1), strict=True))
        if self.mlp is not None:
            sizes = [math.prod(shape) for shape in self.vectors.values()]
            for (key, shape), part in zip(self.vectors.items(), self.mlp(feat).float().split(sizes, -1), strict=True):
                out[key] = part.reshape(*feat.shape[:-1], *shape)
        return out


def pick_keys(shapes: dict[str, tuple[int, ...]], mlp_keys: str, cnn_keys: str) -> tuple[list[str], list[str]]:
    """Names of the image observations (3 dimensions) and vector observations (1 or 0) that the patterns match."""
    cnn = [k for k, s in shapes.items() if len(s) == 3 and re.match(cnn_keys, k)]
    mlp = [k for k, s in shapes.items() if len(s) < 3 and re.match(mlp_keys, k)]
    if not cnn and not mlp:
        raise ValueError(
            f"encoder.cnn_keys {cnn_keys!r} and encoder.mlp_keys {mlp_keys!r} match none of the observations "
            + ", ".join(f"{k} {tuple(s)}" for k, s in shapes.items())
        )
    return cnn, mlp


@fusable(native.gru_gates)
def gru_gates(parts: Tensor, deter: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """DreamerV2's GRU after its matrix product: LayerNorm of the three parts (N, 3D), gates, new deter (N, D)."""
    return update_deter(F.layer_norm(parts.float(), weight.shape, weight, bias, eps), deter)


def update_deter(parts: Tensor, deter: Tensor) -> Tensor:
    """h' = update·cand + (1 - update)·h, from the normalized reset, candidate and update parts (N, 3D)."""
    reset, cand, update = parts.chunk(3, -1)
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    update = torch.sigmoid(update - 1)
    return update * cand + (1 - update) * deter


class GRUGates(LayerNorm):
    """LayerNorm and gates of the GRU: (N, 3D), (N, D) → (N, D)."""

    fused = staticmethod(gru_gates)

    def after(self, parts: Tensor, deter: Tensor) -> Tensor:
        return update_deter(parts, deter)


@fusable()
def concatenate(stoch: Tensor, deter: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([stoch, deter], -1).to(dtype)


class RSSM(nn.Module):
    """Recurrent state-space model: a GRU over (stoch, action), a prior from its state, a posterior that sees the image.

    A state is a dict: `deter` (..., D), `stoch` (..., S, K) one-hot or (..., S), and `logit` or `mean` and `std` of the
    latent from which stoch was drawn.

    Args:
        stoch, discrete: S and K; K = 0 makes the latent Normal.
        projection: size of the projection for the latent reconstruction loss.
        train_projection: False keeps it at its initialization.
        initial: `learned` or `zeros`.
    """

    def __init__(
        self,
        embed: int,
        actions: int,
        stoch: int = 32,
        discrete: int = 32,
        deter: int = 512,
        hidden: int = 512,
        projection: int = 32,
        train_projection: bool = True,
        unimix: float = 0.01,
        initial: str = "learned",
        mean_act: str = "none",
        std_act: str = "sigmoid2",
        min_std: float = 0.1,
        dtype=torch.float32,
    ):
        super().__init__()
        self.stoch, self.discrete, self.deter, self.actions = stoch, discrete, deter, actions
        self.unimix, self.initial_state = unimix, initial
        self.mean_act, self.std_act, self.min_std = mean_act, std_act, min_std
        self.dtype = dtype
        self.stoch_size = stoch * discrete if discrete else stoch
        self.train_projection = train_projection
        self.feat_size = self.stoch_size + deter
        stats = stoch * discrete if discrete else 2 * stoch
        self.input = JointDense((self.stoch_size, actions), hidden, dtype)
        self.cell = Linear(hidden + deter, 3 * deter, bias=False, dtype=dtype)
        self.cell_norm = GRUGates(3 * deter, eps=NORM_EPS)
        self.prior_layer = Dense(deter, hidden, dtype)
        self.prior_out = Linear(hidden, stats, dtype=dtype)
        self.post_layer = JointDense((deter, embed), hidden, dtype)
        self.post_out = Linear(hidden, stats, dtype=dtype)
        self.projection = nn.Linear(self.feat_size, projection, bias=False)
        self.apply(init_weights)
        if initial == "learned":
            self.initial_deter = nn.Parameter(torch.zeros(1, deter))

    # Latents

    def latent(self, out: Tensor) -> State:
        """Output of a prior or posterior layer → `logit` (..., S, K), or `mean` and `std` (..., S), float32."""
        if self.discrete:
            return {"logit": out.unflatten(-1, (self.stoch, self.discrete)).float()}
        mean, std = out.float().chunk(2, -1)
        if self.mean_act == "tanh5":
            mean = 5 * torch.tanh(mean / 5)
        if self.std_act == "sigmoid2":
            std = 2 * torch.sigmoid(std / 2)
        elif self.std_act == "sigmoid":
            std = torch.sigmoid(std)
        elif self.std_act == "softplus":
            std = F.softplus(std)
        else:
            std = torch.abs(std + 1)
        return {"mean": mean, "std": std + self.min_std}

    def dist(self, state: State) -> dists.OneHot | dists.Normal:
        """Distribution of a state's latent; the event is the whole latent."""
        if self.discrete:
            return dists.OneHot(state["logit"], self.unimix)
        return dists.Normal(state["mean"], state["std"])

    def sample_state(self, latent: State, deter: Tensor, sample: bool = True) -> State:
        """State of a latent and a deter, with stoch a sample of the latent or its mode."""
        dist = self.dist(latent)
        return {"stoch": dist.sample() if sample else dist.mode(), "deter": deter, **latent}

    def feat(self, state: State, dtype=torch.float32) -> Tensor:
        """Features of a state: stoch, flattened, and deter. (..., F)"""
        stoch = state["stoch"].flatten(-2) if self.discrete else state["stoch"]
        return concatenate(stoch, state["deter"], dtype)

    def project(self, feat: Tensor) -> Tensor:
        """(..., F) → (..., projection), for the latent reconstruction loss."""
        weight = self.projection.weight if self.train_projection else self.projection.weight.detach()
        return F.linear(feat.to(self.dtype), weight.to(self.dtype)).float()

    # Steps

    def initial(self, device: torch.device | None = None) -> State:
        """The state before an episode, (1, ...)."""
        if self.initial_state == "learned":
            deter = torch.tanh(self.initial_deter)
            return self.sample_state(self.prior(deter), deter, sample=False)
        deter = torch.zeros(1, self.deter, device=device)
        shape = (1, self.stoch, self.discrete) if self.discrete else (1, self.stoch)
        stoch = torch.zeros(shape, device=device)
        latent = {"logit": stoch} if self.discrete else {"mean": stoch, "std": torch.ones_like(stoch)}
        return {"stoch": stoch, "deter": deter, **latent}

    def action_input(self, action: Tensor) -> Tensor:
        """The action's contribution to the input layer: (..., A) → (..., hidden)."""
        return self.input.second(action / action.detach().abs().clamp_min(1))

    def embed_input(self, embed: Tensor) -> Tensor:
        """The embedding's contribution to the posterior layer: (..., E) → (..., hidden)."""
        return self.post_layer.second(embed)

    def gru(self, stoch: Tensor, action_input: Tensor, deter: Tensor) -> Tensor:
        """The recurrent state after a step: (N, S·K), (N, hidden), (N, D) → (N, D)."""
        x = self.input(stoch, action_input)
        return self.cell_norm(self.cell(torch.cat([x, deter.to(self.dtype)], -1)), deter)

    def prior(self, deter: Tensor) -> State:
        """Latent predicted from the recurrent state (..., D)."""
        return self.latent(self.prior_out(self.prior_layer(deter)))

    def posterior(self, deter: Tensor, embed_input: Tensor) -> State:
        """Latent given the recurrent state (..., D) and the image's `embed_input` (..., hidden)."""
        return self.latent(self.post_out(self.post_layer(deter, embed_input)))

    @step()
    def obs_step(self, stoch, deter, action_input, embed_input, is_first, initial_stoch, initial_deter, sample=True):
        """One step with an observation: the posterior state.

        Args:
            stoch (N, S·K), deter (N, D): the previous state.
            action_input, embed_input: (N, hidden) each.
            is_first: (N, 1) bool; there the initial stoch and deter replace the previous state.
            sample: draw the latent; False takes its mode.
        """
        stoch = torch.where(is_first, initial_stoch, stoch)
        deter = torch.where(is_first, initial_deter, deter)
        deter = self.gru(stoch, action_input, deter)
        return self.sample_state(self.posterior(deter, embed_input), deter, sample)

    @step(frozen=True)
    def img_step(self, action: Tensor, state: State) -> State:
        """One step without an observation: the prior state after `action` (N, A) in `state` (N, ...)."""
        deter = self.gru(state["stoch"].reshape(-1, self.stoch_size), self.action_input(action), state["deter"])
        return self.sample_state(self.prior(deter), deter)

    # Rollouts

    @rollout
    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None, sample: bool = True
    ) -> tuple[State, State]:
        """Infers the states of sequences of observations.

        Args:
            embed: (B, T, E).
            action: (B, T, A), the action that led to each observation.
            is_first: (B, T) bool; there the previous state is the initial one and the action is 0.
            state: of (B, ...) before the first step; None is the initial state.
            sample: draw the latents; False takes their modes.

        Returns:
            Posterior and prior states, (B, T, ...).
        """
        batch, length = is_first.shape
        assert embed.shape[:2] == action.shape[:2] == (batch, length), (embed.shape, action.shape, is_first.shape)
        # only GRU and posterior are sequential: everything else is computed for all T at once
        inputs = [self.action_input(action * ~is_first[..., None]), self.embed_input(embed), is_first[..., None]]
        initial = self.initial(action.device)
        # a view per step, all of whose gradients are summed at once
        views = [initial[k].flatten(1).expand(length, batch, -1).unbind() for k in ("stoch", "deter")]
        before = (views[0][0], views[1][0]) if state is None else (state["stoch"].flatten(1), state["deter"])
        states = []
        for t, step_inputs in enumerate(zip(*(x.unbind(1) for x in inputs), strict=True)):
            reset = (view[max(t - 1, 0)] for view in views)
            state = self.obs_step(*before, *step_inputs, *reset, sample)
            before = state["stoch"].flatten(1), state["deter"]
            states.append(state)
        post = {k: stack_steps([s[k] for s in states]) for k in states[0]}
        prior = self.sample_state(self.prior(post["deter"]), post["deter"], sample)
        return post, prior

    @rollout
    def target_branch(self, deter: Tensor, embed: Tensor, action: Tensor, is_first: Tensor) -> tuple[State, State]:
        """Target posterior and target prior, all T in one pass, from the EMA copy of the dynamics.

        Args:
            deter: (B, T, D) of the masked branch's prior, shared by this branch.
            embed: (B, T, E), the EMA encoder's embedding of the unmasked images.
            action: (B, T, A).
            is_first: (B, T) bool.

        Returns:
            The posterior at each step, and the prediction into each step from the posterior before it, (B, T, ...).
        """
        post = self.sample_state(self.posterior(deter, self.embed_input(embed)), deter)
        initial = self.initial(action.device)
        before = {}
        for key in ("stoch", "deter"):
            first = initial[key].expand(deter.shape[0], 1, *initial[key].shape[1:])
            shifted = torch.cat([first, post[key][:, :-1]], 1)
            starts = is_first.reshape(*is_first.shape, *[1] * (shifted.ndim - 2))
            before[key] = torch.where(starts, initial[key], shifted).flatten(0, 1)
        action = action * ~is_first[..., None]
        prior = self.img_step(action.flatten(0, 1), before)
        return post, {k: v.unflatten(0, is_first.shape) for k, v in prior.items()}

    @rollout
    def imagine(self, actor: Actor, start: State, horizon: int) -> tuple[Tensor, Tensor, dists.Normal | dists.OneHot]:
        """Rolls the prior out under an actor that acts from `sg(feat)`.

        Args:
            start: state of (N, ...).
            horizon: H states, including the start.

        Returns:
            feats (H, N, F), actions (H, N, A) drawn at each, and their distribution, for gradients of the actor and of
            the start.
        """
        state, steps = {k: start[k] for k in ("stoch", "deter")}, []
        for i in range(horizon):
            feat = self.feat(state, self.dtype)  # once for all heads
            action, out = actor.act(feat.detach())
            steps.append((feat, action, out))
            if i < horizon - 1:
                state = self.img_step(action, state)
        feats, actions, outs = map(torch.stack, zip(*steps, strict=True))
        return feats, actions, actor.policy(outs)
