"""Networks of HRSSM: encoder, decoder, heads, and the recurrent state-space model.

Letters in the shape comments: B sequences, T steps, N = any number of states, A action dims, E embedding, S×K
categorical latent, D deterministic state, F = S·K + D features.
"""

import functools
import itertools
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists
import tools

NORM_EPS = 1e-3
TRUNC_STD = 0.87962566103423978  # std of a standard normal truncated at ±2

State = dict[str, Tensor]  # stoch (..., S, K) or (..., S), deter (..., D), and the latent's logit or mean and std


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights by fan-in plus fan-out, biases 0, norms 1 and 0 (for `module.apply`)."""
    if isinstance(module, (nn.Linear, BlockLinear)):
        std = math.sqrt(2 / sum(module.weight.shape[-2:])) / TRUNC_STD
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        std = math.sqrt(2 / fan_in_and_out(module.weight)) / TRUNC_STD
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0, b=2.0)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def init_output(layer: nn.Linear | nn.ConvTranspose2d, scale: float) -> None:
    """Uniform weights of an output layer; scale 0 makes it output 0."""
    limit = math.sqrt(3 * scale * 2 / fan_in_and_out(layer.weight))
    nn.init.uniform_(layer.weight, -limit, limit)
    nn.init.zeros_(layer.bias)


def fan_in_and_out(weight: Tensor) -> int:
    """Inputs plus outputs of a linear map, or of a convolution times its kernel's area."""
    inputs, outputs, *area = weight.shape
    return math.prod(area) * (inputs + outputs)


class NormSiLU(nn.LayerNorm):
    """LayerNorm over the last dimension, then SiLU."""

    def __init__(self, size: int):
        super().__init__(size, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class Dense(nn.Module):
    """Linear map without bias, LayerNorm, SiLU: (..., inputs) → (..., units)."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.linear = nn.Linear(inputs, units, bias=False)
        self.norm = NormSiLU(units)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class JointLinear(nn.Linear):
    """A linear map of two concatenated inputs, W·[x, y], as the sum of `first(x)` and `second(y)`.

    So the share of an input that is known for all steps of a rollout can be computed for all of them at once.
    """

    def __init__(self, sizes: tuple[int, int], outputs: int):
        super().__init__(sum(sizes), outputs, bias=False)
        self.sizes = sizes

    def first(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.split(self.sizes, 1)[0])

    def second(self, y: Tensor) -> Tensor:
        return F.linear(y, self.weight.split(self.sizes, 1)[1])


class JointDense(nn.Module):
    """A Dense layer of two concatenated inputs: (..., sizes[0]), (..., sizes[1]) → (..., units)."""

    def __init__(self, sizes: tuple[int, int], units: int):
        super().__init__()
        self.linear = JointLinear(sizes, units)
        self.norm = NormSiLU(units)

    def second(self, y: Tensor) -> Tensor:
        """The share of the second input, for `forward`: (..., sizes[1]) → (..., units)."""
        return self.linear.second(y)

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        return self.norm(self.linear.first(x) + second)


class MLP(nn.Module):
    """`layers` Dense layers and, given `outputs`, a linear output layer: (..., inputs) → (..., outputs or units).

    Args:
        outscale: scale of the uniform initialization of the output layer.
    """

    def __init__(self, inputs: int, units: int, layers: int, outputs: int = 0, outscale: float = 1.0):
        super().__init__()
        self.layers = nn.ModuleList(Dense(units if i else inputs, units) for i in range(layers))
        self.out = nn.Linear(units, outputs) if outputs else None
        self.apply(init_weights)
        if self.out is not None:
            init_output(self.out, outscale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if self.out is None else self.out(x)


PREDICTIONS = {"symlog_disc": dists.TwoHotSymlog, "normal": dists.UnitNormal, "binary": dists.Bernoulli}


class Head(MLP):
    """A prediction from features (..., F).

    Args:
        dist: of a scalar, `symlog_disc` (two-hot over symlog) or `normal` (of std 1); `binary`, of a flag.
    """

    def __init__(self, inputs: int, units: int, layers: int, dist: str):
        outputs, outscale = dists.BUCKETS if dist == "symlog_disc" else 1, 1.0 if dist == "binary" else 0.0
        super().__init__(inputs, units, layers, outputs, outscale)
        self.dist = PREDICTIONS[dist]

    def forward(self, feat: Tensor) -> dists.TwoHotSymlog | dists.UnitNormal | dists.Bernoulli:
        return self.dist(super().forward(feat))


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
        self, inputs: int, units: int, layers: int, actions: int, dist: str = "normal",
        min_std: float = 0.1, max_std: float = 1.0, init_std: float = 1.0, unimix: float = 0.01,
    ):  # fmt: skip
        super().__init__(inputs, units, layers, actions if dist == "onehot" else 2 * actions)
        self.dist, self.unimix = dist, unimix
        self.min_std, self.max_std, self.init_std = min_std, max_std, init_std

    def forward(self, feat: Tensor) -> dists.Normal | dists.OneHot:
        return self.policy(super().forward(feat))

    def act(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F) → sampled actions (N, A), and the output layer's values, the input of `policy`."""
        out = MLP.forward(self, feat)
        return self.policy(out).sample(), out

    def policy(self, out: Tensor) -> dists.Normal | dists.OneHot:
        """The distribution for the output layer's values (..., A) or (..., 2A)."""
        if self.dist == "onehot":
            return dists.OneHot(out, self.unimix, event_dims=0)
        if self.dist == "tanh_normal":
            mean, std = out.chunk(2, -1)
            return dists.TanhNormal(5 * torch.tanh(mean / 5), F.softplus(std + self.init_std) + self.min_std)
        kind = dists.TruncNormal if self.dist == "trunc_normal" else dists.Normal
        return kind(*bounded_normal(out, self.min_std, self.max_std))


class ConvEncoder(nn.Module):
    """Stride-2 convolutions to `minres`: images (..., H, W, C) in [-0.5, 0.5] → (..., E), flattened channel first."""

    def __init__(self, shape: tuple[int, int, int], depth: int, kernel_size: int, minres: int):
        super().__init__()
        height, width, channels = shape
        stages = count_stages(height, minres)
        if width != height:
            raise ValueError(f"images must be square, not {height}x{width}: see --size")
        depths = [channels] + [depth * 2**i for i in range(stages)]
        pad = max(kernel_size - 2, 0)  # "same" for even sizes; an odd remainder goes to the right and the bottom
        self.pad = (0, pad % 2) * 2
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size, stride=2, padding=pad // 2, bias=False) for a, b in itertools.pairwise(depths)
        )
        self.norms = nn.ModuleList(NormSiLU(d) for d in depths[1:])
        self.outputs = depths[-1] * minres * minres
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        lead = image.shape[:-3]
        # (N, C, H, W), channels last in memory, the layout that the images already have
        x = image.flatten(0, -4).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(F.pad(x, self.pad) if any(self.pad) else x)
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
        config: the settings `encoder`; mlp_keys and cnn_keys select vectors and images among the observations.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], config):
        super().__init__()
        self.cnn_keys, self.mlp_keys = pick_keys(shapes, config.mlp_keys, config.cnn_keys)
        self.symlog_inputs = config.symlog_inputs
        self.cnn = self.mlp = None
        self.outputs = 0
        if self.cnn_keys:
            height, width, _ = shapes[self.cnn_keys[0]]
            channels = sum(shapes[k][-1] for k in self.cnn_keys)
            self.cnn = ConvEncoder((height, width, channels), config.cnn_depth, config.kernel_size, config.minres)
            self.outputs += self.cnn.outputs
        if self.mlp_keys:
            inputs = sum(math.prod(shapes[k]) for k in self.mlp_keys)
            self.mlp = MLP(inputs, config.mlp_units, config.mlp_layers)
            self.outputs += config.mlp_units

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

    def __init__(self, inputs: int, shape: tuple[int, int, int], depth: int, kernel_size: int, minres: int):
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
        self.minres = minres
        self.apply(init_weights)
        init_output(self.out, 1.0)

    def forward(self, feat: Tensor) -> Tensor:
        lead = feat.shape[:-1]
        # (N, C, minres, minres), channels last in memory
        x = self.start(feat).flatten(0, -2).unflatten(-1, (self.minres, self.minres, -1)).permute(0, 3, 1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # (N, H, W, C): the norm is over channels
            x = norm(conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out(x).permute(0, 2, 3, 1).unflatten(0, lead)


class Decoder(nn.Module):
    """Features (..., F) → the observations that an encoder reads, by name: images, and vectors as their symlog.

    Args:
        encoder: the encoder whose observations and sizes it mirrors.
        shapes: shape of each observation, by name.
        config: the settings `encoder`.
    """

    def __init__(self, inputs: int, encoder: Encoder, shapes: dict[str, tuple[int, ...]], config):
        super().__init__()
        self.images = {k: shapes[k][-1] for k in encoder.cnn_keys}  # channels
        self.vectors = {k: tuple(shapes[k]) for k in encoder.mlp_keys}
        self.cnn = self.mlp = None
        if self.images:
            shape = (*shapes[encoder.cnn_keys[0]][:2], sum(self.images.values()))
            self.cnn = ConvDecoder(inputs, shape, config.cnn_depth, config.kernel_size, config.minres)
        if self.vectors:
            outputs = sum(math.prod(shape) for shape in self.vectors.values())
            self.mlp = MLP(inputs, config.mlp_units, config.mlp_layers, outputs)

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        out = {}
        if self.cnn is not None:
            out.update(zip(self.images, self.cnn(feat).split(list(self.images.values()), -1), strict=True))
        if self.mlp is not None:
            sizes = [math.prod(shape) for shape in self.vectors.values()]
            for (key, shape), part in zip(self.vectors.items(), self.mlp(feat).split(sizes, -1), strict=True):
                out[key] = part.reshape(*feat.shape[:-1], *shape)
        return out


def pick_keys(shapes: dict[str, tuple[int, ...]], mlp_keys: str, cnn_keys: str) -> tuple[list[str], list[str]]:
    """Names of the image observations (3 dimensions) and vector observations (1 or 0) that the patterns match."""
    cnn = [k for k, s in shapes.items() if len(s) == 3 and re.match(cnn_keys, k)]
    mlp = [k for k, s in shapes.items() if len(s) < 3 and re.match(mlp_keys, k)]
    if not cnn and not mlp:
        raise ValueError(
            f"--encoder.cnn_keys {cnn_keys} and --encoder.mlp_keys {mlp_keys} match none of the observations: "
            + ", ".join(["image", *(f"{k} {tuple(s)}" for k, s in shapes.items() if k != "image")])
        )
    return cnn, mlp


class Cell(nn.Module):
    """A recurrent cell: a step with a state, of which the rest of the model reads `deter` (..., D)."""

    state = ("deter",)  # names of the tensors that it carries from step to step

    def initial(self, deter: Tensor) -> State:
        """The state before an episode, given its deter (1, D)."""
        return {"deter": deter}

    def forward(self, x: Tensor, state: State) -> State:
        """The state after a step with input x (N, inputs)."""
        raise NotImplementedError


class GRU(Cell):
    """DreamerV2's GRU, with one LayerNorm over its three parts (`gru_layer_norm`)."""

    def __init__(self, inputs: int, deter: int):
        super().__init__()
        self.linear = nn.Linear(inputs + deter, 3 * deter, bias=False)
        self.norm = nn.LayerNorm(3 * deter, eps=NORM_EPS)

    def forward(self, x: Tensor, state: State) -> State:
        deter = state["deter"]
        parts = self.norm(self.linear(torch.cat([x, deter], -1)))
        return {"deter": update_deter(*parts.chunk(3, -1), deter)}


def update_deter(reset: Tensor, cand: Tensor, update: Tensor, deter: Tensor) -> Tensor:
    """h' = update·cand + (1 - update)·h, from the normalized parts and the recurrent state, (N, D) each."""
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    update = torch.sigmoid(update - 1)
    return update * cand + (1 - update) * deter


class BlockLinear(nn.Module):
    """Linear map with a block-diagonal matrix: each of `blocks` equal parts of the input gives one of the output."""

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"a layer from {inputs} to {outputs} cannot be split into {blocks} blocks (dyn_blocks)")
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)."""
        x = x.unflatten(-1, (len(self.weight), -1))
        return torch.einsum("...gi,gio->...go", x, self.weight).flatten(-2) + self.bias


class BlockGRU(Cell):
    """DreamerV3's GRU with block-diagonal matrices (`block_gru`; Hafner et al., 2025, appendix on the RSSM).

    Every block sees its own part of the recurrent state and, whole, the input and a projection of the recurrent state.
    """

    def __init__(self, inputs: int, deter: int, blocks: int = 8):
        super().__init__()
        self.blocks = blocks
        self.mix = Dense(deter, inputs)
        self.hidden = BlockLinear(deter + 2 * blocks * inputs, deter, blocks)
        self.norm = NormSiLU(deter)
        self.parts = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, x: Tensor, state: State) -> State:
        deter, blocks = state["deter"], self.blocks
        # (N, blocks, D / blocks + 2·inputs)
        shared = torch.cat([self.mix(deter), x], -1).unsqueeze(-2).expand(*deter.shape[:-1], blocks, -1)
        x = torch.cat([deter.unflatten(-1, (blocks, -1)), shared], -1).flatten(-2)
        # (N, 3D), the three parts of each block side by side, to those of all blocks
        parts = self.parts(self.norm(self.hidden(x))).unflatten(-1, (blocks, 3, -1)).transpose(-3, -2).flatten(-3)
        return {"deter": update_deter(*parts.chunk(3, -1), deter)}


CELLS = {"gru_layer_norm": GRU, "block_gru": BlockGRU}


def stack(states: list[State], dim: int = 1) -> State:
    """T states of (N, ...) → one of (N, T, ...)."""
    return {k: torch.stack([state[k] for state in states], dim) for k in states[0]}


def bound_action(action: Tensor) -> Tensor:
    """Actions (..., A) in [-1, 1]: larger ones are divided by their size."""
    return action / action.detach().abs().clamp_min(1)


class RSSM(nn.Module):
    """Recurrent state-space model: a GRU over (stoch, action), a prior from its state, a posterior that sees the image.

    A state is a dict: `stoch` (..., S, K) one-hot or (..., S); what the cell carries, `deter` (..., D) among it; and
    `logit`, or `mean` and `std`, of the latent from which stoch was drawn.

    Args:
        cell: takes inputs of size `hidden`; its `deter` has size `deter`.
        stoch, discrete: S and K; K = 0 makes the latent Normal.
        projection: size of the projection for the latent reconstruction loss.
        initial: `learned` or `zeros`.
    """

    def __init__(
        self, embed: int, actions: int, cell: Cell, stoch: int = 32, discrete: int = 32, deter: int = 512,
        hidden: int = 512, projection: int = 32, unimix: float = 0.01, initial: str = "learned",
        mean_act: str = "none", std_act: str = "sigmoid2", min_std: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.stoch, self.discrete, self.deter, self.actions = stoch, discrete, deter, actions
        self.unimix, self.initial_state = unimix, initial
        self.mean_act, self.std_act, self.min_std = mean_act, std_act, min_std
        self.stoch_size = stoch * discrete if discrete else stoch
        self.feat_size = self.stoch_size + deter
        stats = stoch * discrete if discrete else 2 * stoch
        self.input = JointDense((self.stoch_size, actions), hidden)
        self.cell = cell
        self.prior_layer = Dense(deter, hidden)
        self.prior_out = nn.Linear(hidden, stats)
        self.post_layer = JointDense((deter, embed), hidden)
        self.post_out = nn.Linear(hidden, stats)
        self.projection = nn.Linear(self.feat_size, projection, bias=False)
        self.carried = ("stoch", *cell.state)  # the part of a state that the next step depends on
        self.apply(init_weights)
        if initial == "learned":
            self.initial_deter = nn.Parameter(torch.zeros(1, deter))

    @functools.cached_property
    def frozen(self) -> "RSSM":
        """These dynamics with these weights, as constants. Made at the first use, when they are on their device."""
        return tools.frozen(self)

    def __getstate__(self) -> dict:
        """What a copy gets: it makes its own `frozen`."""
        return {name: value for name, value in vars(self).items() if name != "frozen"}

    # Latents

    def latent(self, out: Tensor) -> State:
        """Output of a prior or posterior layer → `logit` (..., S, K), or `mean` and `std` (..., S)."""
        if self.discrete:
            return {"logit": out.unflatten(-1, (self.stoch, self.discrete))}
        mean, std = out.chunk(2, -1)
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

    def sample_state(self, latent: State, cell: State, sample: bool = True) -> State:
        """State of a latent and the cell's state, with stoch a sample of the latent or its mode."""
        dist = self.dist(latent)
        return {"stoch": dist.sample() if sample else dist.mode(), **cell, **latent}

    def flat_stoch(self, state: State) -> Tensor:
        """(..., S·K) or (..., S)."""
        return state["stoch"].flatten(-2) if self.discrete else state["stoch"]

    def feat(self, state: State) -> Tensor:
        """Features of a state: stoch, flattened, and deter. (..., F)"""
        return torch.cat([self.flat_stoch(state), state["deter"]], -1)

    def project(self, feat: Tensor) -> Tensor:
        """(..., F) → (..., projection), for the latent reconstruction loss."""
        return self.projection(feat)

    def prior(self, deter: Tensor) -> State:
        """Latent predicted from the recurrent state (..., D)."""
        return self.latent(self.prior_out(self.prior_layer(deter)))

    def posterior(self, deter: Tensor, embed: Tensor) -> State:
        """Latent given the recurrent state (..., D) and the image's share of the layer, `embed_input` (..., hidden)."""
        return self.latent(self.post_out(self.post_layer(deter, embed)))

    # Steps

    def initial(self, device: torch.device | None = None) -> State:
        """The state before an episode, (1, ...)."""
        if self.initial_state == "learned":
            deter = torch.tanh(self.initial_deter)
            return self.sample_state(self.prior(deter), self.cell.initial(deter), sample=False)
        stoch = torch.zeros((1, self.stoch, self.discrete) if self.discrete else (1, self.stoch), device=device)
        latent = {"logit": stoch} if self.discrete else {"mean": stoch, "std": torch.ones_like(stoch)}
        return {"stoch": stoch, **self.cell.initial(torch.zeros(1, self.deter, device=device)), **latent}

    def reset(self, state: State, initial: State, is_first: Tensor) -> State:
        """The carried part of states (N, ...), replaced by `initial` (N or 1, ...) where `is_first` (N) is set."""
        first = {k: is_first.reshape(-1, *[1] * (state[k].ndim - 1)) for k in self.carried}
        return {k: torch.where(first[k], initial[k], state[k]) for k in self.carried}

    def action_input(self, action: Tensor) -> Tensor:
        """The action's share of the input layer: (..., A) → (..., hidden)."""
        return self.input.second(bound_action(action))

    def embed_input(self, embed: Tensor) -> Tensor:
        """The embedding's share of the posterior layer: (..., E) → (..., hidden)."""
        return self.post_layer.second(embed)

    def gru(self, state: State, action: Tensor) -> State:
        """The cell's next state, from a state (N, ...) and the action's share of the input layer (N, hidden)."""
        return self.cell(self.input(self.flat_stoch(state), action), state)

    def obs_step(
        self, state: State, action: Tensor, embed: Tensor, is_first: Tensor, initial: State, sample: bool = True
    ) -> State:
        """One step with an observation: the posterior state.

        Args:
            state: the previous one, (N, ...).
            action, embed: their shares of the layers, `action_input` and `embed_input`, (N, hidden) each.
            is_first: (N) bool; there the previous state is replaced by `initial` (N, ...).
            sample: draw the latent; False takes its mode.
        """
        state = self.reset(state, initial, is_first)
        cell = self.gru(state, action)
        latent = self.posterior(cell["deter"], embed)
        return self.sample_state(latent, cell, sample)

    def img_step(self, state: State, action: Tensor) -> State:
        """One step without an observation: the prior state after `action` (N, A) in `state` (N, ...)."""
        cell = self.gru(state, self.action_input(action))
        return self.sample_state(self.prior(cell["deter"]), cell)

    # Rollouts

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
        # only the recurrent state is sequential: the rest is computed for all T at once
        action, embed = self.action_input(action * ~is_first[..., None]), self.embed_input(embed)
        # a view of the initial state for each step, so that their gradients are summed at once; the first also begins
        initial = self.initial(action.device)
        views = {k: initial[k].expand(length, batch, *initial[k].shape[1:]).unbind() for k in self.carried}
        initials = [{k: view[max(t - 1, 0)] for k, view in views.items()} for t in range(length)]
        state, states = state or initials[0], []
        for step in zip(action.unbind(1), embed.unbind(1), is_first.unbind(1), initials, strict=True):
            state = self.obs_step(state, *step, sample)
            states.append(state)
        post = stack(states)
        prior = self.sample_state(self.prior(post["deter"]), {k: post[k] for k in self.cell.state}, sample)
        return post, prior

    @torch.no_grad()
    def target_branch(self, prior: State, embed: Tensor, action: Tensor, is_first: Tensor) -> tuple[State, State]:
        """Target posterior and target prior, all T in one pass, from the EMA copy of the dynamics.

        Args:
            prior: (B, T, ...) of the masked branch, whose recurrent state this branch shares.
            embed: (B, T, E), the EMA encoder's embedding of the unmasked images.
            action: (B, T, A).
            is_first: (B, T) bool.

        Returns:
            The posterior at each step, and the prediction into each step from the posterior before it, (B, T, ...).
        """
        cell = {k: prior[k].detach() for k in self.cell.state}
        post = self.sample_state(self.posterior(cell["deter"], self.embed_input(embed)), cell)
        initial = self.initial(action.device)
        # (B·T, ...): the posterior one step earlier, or the initial state
        before = {k: torch.cat([initial[k].expand_as(post[k][:, :1]), post[k][:, :-1]], 1) for k in self.carried}
        before = self.reset({k: v.flatten(0, 1) for k, v in before.items()}, initial, is_first.flatten())
        predicted = self.img_step(before, (action * ~is_first[..., None]).flatten(0, 1))
        return post, {k: v.unflatten(0, is_first.shape) for k, v in predicted.items()}

    def imagine(self, actor: Actor, start: State, horizon: int) -> tuple[Tensor, Tensor, dists.Normal | dists.OneHot]:
        """Rolls the prior out under an actor that acts from `sg(feat)`; the dynamics' weights are constants.

        Args:
            start: state of (N, ...).
            horizon: H states, including the start.

        Returns:
            feats (H, N, F), actions (H, N, A) drawn at each, and their distribution, for gradients of the actor and of
            the start.
        """
        state, steps = {k: start[k] for k in self.carried}, []
        for i in range(horizon):
            feat = self.feat(state)
            action, out = actor.act(feat.detach())
            steps.append((feat, action, out))
            if i < horizon - 1:
                state = self.frozen.img_step(state, action)
        feats, actions, outs = map(torch.stack, zip(*steps, strict=True))
        return feats, actions, actor.policy(outs)
