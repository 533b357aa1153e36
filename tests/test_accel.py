"""Every backend computes what the plain agent computes: values, and gradients at the inputs and at every parameter."""

import contextlib
import copy
import functools
import re
import shutil
import sys
from pathlib import Path

import agents
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import accel
import distributions as dists
import dreamer
import models
import networks
import tools
from accel import backend, functions, graphs, layers, native, steps
from run import runtime

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
COMPILE = torch.compile
FUSE = [pytest.param("native", marks=needs_compiler), "compiled"]

# Config groups that change what an agent computes, on top of a family
GROUPS = [
    ("dmc_vision",),
    ("dmc_proprio",),
    ("dmc_vision", "continuous"),
    *(("dmc_vision", name) for name in ("no_mask", "no_mbr", "mbr_fixed", "mbr_barlow", "no_simsr")),
    *(("dmc_vision", name) for name in ("no_hybrid", "masked_start")),
    *(("dmc_vision", name) for name in ("dreamerv3", "repo", "r2dreamer", "infonce", "dreamerpro")),
]
QUICK = GROUPS[:3]


@pytest.fixture(autouse=True, scope="module")
def _traced():
    """Whatever is compiled is traced and differentiated as for compiling, but run by PyTorch's own kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, options=None, **kwargs: COMPILE(f, backend="aot_eager", **kwargs))
        yield
    functions.compiled.cache_clear()
    torch._dynamo.reset()


def make(fuse: str, base, *flags: str, **kwargs) -> dreamer.Dreamer:
    shapes = agents.VECTORS if "dmc_proprio" in base else agents.IMAGE
    return agents.agent(*flags, shapes=shapes, base=base, fuse=fuse, **kwargs)


def close(found, expected, tolerance: float = 2e-5) -> None:
    """Nested results, each within a share of its largest entry; a missing gradient equals only a missing one."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        ours = found[name]
        assert (ours is None) == (wanted is None), f"{name}: {ours if ours is None else 'there'}"
        if wanted is not None:
            error, scale = (ours - wanted).abs().max().item(), wanted.abs().max().item()
            assert error <= tolerance * max(scale, 1e-6), f"{name}: off by {error:.3g}, largest entry {scale:.3g}"


def running(agent: dreamer.Dreamer):
    """Within it, functions are replaced as in an update of the agent."""
    return functions.replaced(functions.twins(agent.accelerated) if hasattr(agent, "accelerated") else [])


# Random losses of the states


class Reworked(networks.RSSM):
    """A user's dynamics: a step that calls a layer twice, one of them on more rows, and has a parameter of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.offset = torch.nn.Parameter(0.1 * torch.ones(16))

    def img_step(self, state, action):
        cell = self.gru(state, self.action_input(action))
        hidden = self.prior_layer(cell["deter"]) + self.offset
        hidden = self.prior_layer(torch.stack([hidden, -hidden], 1)).sum(1) + self.prior_layer(hidden)
        return self.sample_state(self.latent(self.prior_out(hidden)), cell)


def dynamics(fuse: str, kind, cell, discrete: int, dtype=torch.float32, log=lambda line: None) -> networks.RSSM:
    """Dynamics alone, with the twins of a backend."""
    torch.manual_seed(0)
    made = kind(12, 3, cell(16, 16), stoch=4, discrete=discrete, deter=16, hidden=16, projection=6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    if fuse or dtype != torch.float32:
        made.accelerated = backend.Mode(accel.Backend(fuse, dtype=dtype), log)
        layers.replace_layers(made, made.accelerated)
        if fuse:
            for name in steps.STEPS[networks.RSSM]:
                setattr(made, name, steps.Step(made, name, made.accelerated))
    return made


@functools.cache
def cached_dynamics(*args) -> networks.RSSM:
    return dynamics(*args)


def run_losses(
    made: networks.RSSM, plan: list[str], seed: int, sample: bool, penalty: bool = False
) -> dict[str, torch.Tensor | None]:
    """A random loss of the states that a plan of calls visits: values, and gradients at the inputs and parameters.

    penalty: adds the squared gradient at the inputs to the loss.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    embed, action = draw(3, 4, 12), draw(3, 4, 3)
    is_first = torch.rand(3, 4, generator=generator) < 0.3
    state = {"stoch": draw(3, 4, *([made.discrete] if made.discrete else [])), "deter": draw(3, 16)}
    inputs = {"embed": embed, "action": action, **state}
    torch.manual_seed(seed)
    values, seen = {}, []
    with running(made):
        for number, call in enumerate(plan):
            if call == "observe":
                post, prior = made.observe(embed, action, is_first, state, sample)
                seen += [post, prior]
                state = {k: v[:, -1] for k, v in post.items()}
            elif call == "img_step":
                state = made.img_step(state, action[:, number % 4])
            elif call == "keywords":
                state = made.img_step(action=action[:, number % 4], state=state)
            elif call == "frozen":
                state = made.frozen.img_step(state, action[:, number % 4])
            elif call == "sequences":  # a state of each of several steps
                many = {k: state[k].unsqueeze(1).repeat_interleave(4, 1) for k in made.carried}
                seen.append(made.img_step(many, action))
            elif call == "no_grad":
                with torch.no_grad():
                    seen.append(made.img_step(state, action[:, number % 4]))
            seen.append(state)
        terms = []
        for number, one in enumerate(seen):
            for key, value in one.items():
                values[f"{number} {key}"] = value.detach()
                terms.append((value.sin() * torch.randn(value.shape, generator=generator)).sum())
        if penalty:
            steep = torch.autograd.grad(sum(terms), list(inputs.values()), create_graph=True, allow_unused=True)
            terms.append(sum(grad.square().sum() for grad in steep if grad is not None))
        wanted = {**inputs, **dict(made.named_parameters())}
        # a first pass asks for gradients at the inputs alone
        first = torch.autograd.grad(sum(terms), list(inputs.values()), retain_graph=True, allow_unused=True)
        grads = torch.autograd.grad(sum(terms), list(wanted.values()), allow_unused=True)
    values |= {f"first grad {name}": grad for name, grad in zip(inputs, first, strict=True)}
    return values | {f"grad {name}": grad for name, grad in zip(wanted, grads, strict=True)}


BLOCKS = functools.partial(networks.BlockGRU, blocks=4)
CALLS = ["observe", "img_step", "keywords", "frozen", "sequences", "no_grad"]
plans = st.lists(st.sampled_from(CALLS), min_size=1, max_size=5)


@pytest.mark.parametrize("discrete", [5, 0])
@pytest.mark.parametrize("kind", [networks.RSSM, Reworked])
@pytest.mark.parametrize("fuse", FUSE)
@settings(max_examples=12)
@given(plan=plans, seed=st.integers(0, 1000))
def test_random_losses_of_states_have_the_plain_values_and_gradients(fuse, kind, discrete, plan, seed):
    setup = kind, networks.GRU, discrete
    expected = run_losses(cached_dynamics("", *setup), plan, seed, True)
    close(run_losses(cached_dynamics(fuse, *setup), plan, seed, True), expected)


@pytest.mark.parametrize("discrete", [5, 0])
@pytest.mark.parametrize("kind", [networks.RSSM, Reworked])
@pytest.mark.parametrize("fuse", FUSE)
def test_a_gradient_penalty_has_the_plain_gradients_or_is_refused(fuse, kind, discrete):
    setup, plan = (kind, networks.GRU, discrete), ["observe", "img_step", "frozen"]
    found = functools.partial(run_losses, cached_dynamics(fuse, *setup), plan, 0, True, penalty=True)
    if fuse == "compiled":
        with pytest.raises(RuntimeError, match=r"double backward|in-place operation"):  # PyTorch's own words
            found()
        return
    close(found(), run_losses(cached_dynamics("", *setup), plan, 0, True, penalty=True), 1e-4)


@needs_compiler
def test_an_encoders_gradient_penalty_has_the_plain_gradients():
    """Its norms read what is not contiguous where there is one image."""
    found = {}
    for fuse in ("", "native"):
        agent = make(fuse, ("dmc_vision",))
        image = torch.rand(2, 1, 64, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
        feat = torch.randn(2, 1, agent.world_model.dynamics.feat_size, generator=torch.Generator().manual_seed(1))
        encoder, head = agent.world_model.encoder, agent.world_model.heads["cont"]
        with running(agent):
            losses = encoder({"image": image.requires_grad_()}).sin().sum(), head(feat.requires_grad_()).mean.sum()
            steep = torch.autograd.grad(losses, [image, feat], create_graph=True)
            parameters = dict(encoder.named_parameters("encoder")) | dict(head.named_parameters("head"))
            penalty = sum(grad.square().sum() for grad in steep)
            grads = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
            found[fuse] = dict(zip(parameters, grads, strict=True))
    close(found["native"], found[""], 1e-4)


@pytest.mark.parametrize("fuse", FUSE)
def test_biases_of_layers_whose_weights_are_constants_get_the_plain_gradients(fuse):
    setup, found = (networks.RSSM, networks.GRU, 5), {}
    for how in ("", fuse):
        made = dynamics(how, *setup)
        torch.manual_seed(1)
        state = {"stoch": torch.randn(3, 4, 5), "deter": torch.randn(3, 16)}
        biases = {k: v for k, v in made.named_parameters() if k.endswith("bias")}
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name in biases)
        with running(made):
            for _ in range(3):
                state = made.img_step(state, torch.ones(3, 3))
        loss = sum(value.sin().sum() for value in state.values())
        grads = torch.autograd.grad(loss, list(biases.values()), allow_unused=True)
        found[how] = dict(zip(biases, grads, strict=True))
    close(found[fuse], found[""])


@pytest.mark.parametrize("fuse", FUSE)
def test_a_state_that_a_loss_has_changed_is_read_as_it_is(fuse):
    found = {}
    for how in ("", fuse):
        agent = make(how, ("dmc_vision",))
        made, action, first = agent.world_model.dynamics, torch.ones(3, 3), torch.zeros(3).bool()
        start = {k: v.expand(3, *v.shape[1:]) for k, v in made.initial().items()}
        shares = made.action_input(action), made.embed_input(torch.ones(3, agent.world_model.encoder.outputs))
        torch.manual_seed(1)
        with running(agent):
            for name, change in {"replaced": torch.mul, "in place": torch.Tensor.mul_}.items():
                state = made.obs_step(start, *shares, first, start)
                state["deter"] = change(state["deter"], 0.5)
                state = made.img_step(state, action)
                state["deter"] = change(state["deter"], 0.5)
                found[how, name] = {"feat": made.feat(state)}
        feat = found[how, "replaced"]["feat"]
        found[how, "replaced"]["grad"] = torch.autograd.grad(feat.sin().sum(), made.cell.linear.weight)[0]
    for name in ("replaced", "in place"):
        close(found[fuse, name], found["", name])


def test_a_hook_on_a_state_is_refused_where_steps_are_compiled():
    """It would see a part of the gradient: the rest is added within the steps."""
    made = dynamics("compiled", networks.RSSM, networks.GRU, 5)
    start = {"stoch": torch.ones(3, 4, 5), "deter": torch.ones(3, 16)}
    for add in (lambda x: x.register_hook(lambda grad: grad / 2), torch.Tensor.retain_grad):
        with running(made):
            state = made.img_step(start, torch.ones(3, 3))
            add(state["deter"])
            with pytest.raises(RuntimeError, match="only a part of its gradient"):
                made.img_step(state, torch.ones(3, 3))
            with pytest.raises(RuntimeError, match="only a part of its gradient"):
                steps.Feat(made)(state)


@pytest.mark.parametrize("fuse", FUSE)
def test_another_cell_has_the_plain_values_and_gradients(fuse):
    setup, plan = (networks.RSSM, BLOCKS, 5), ["observe", "img_step", "sequences", "img_step"]
    close(run_losses(dynamics(fuse, *setup), plan, 0, True), run_losses(dynamics("", *setup), plan, 0, True))


@pytest.mark.parametrize("cell", [networks.GRU, BLOCKS])
@pytest.mark.parametrize("fuse", ["", *FUSE])
def test_in_bfloat16_values_and_gradients_are_close(fuse, cell):
    """Of Normal latents, whose draws do not jump with rounding: to float32, and between the backends."""
    setup, plan = (Reworked, cell, 0), ["observe", "img_step", "img_step", "keywords"]
    expected = run_losses(dynamics("", *setup, torch.bfloat16 if fuse else torch.float32), plan, 0, True)
    close(run_losses(dynamics(fuse, *setup, torch.bfloat16), plan, 0, True), expected, 0.05 if fuse else 0.2)


@pytest.mark.slow
@needs_compiler
def test_code_that_is_compiled_for_a_cpu_computes_the_same(monkeypatch):
    """By the compiler that a GPU uses, not only traced."""
    functions.compiled.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", COMPILE)
    setup, plan, said = (Reworked, networks.GRU, 5), ["observe", "img_step", "keywords", "frozen"], []
    expected = run_losses(dynamics("", *setup), plan, 0, True)
    close(run_losses(dynamics("compiled", *setup, torch.float32, said.append), plan, 0, True), expected)
    assert not said
    functions.compiled.cache_clear()
    torch._dynamo.reset()


# The agent's own losses


def agents_losses(made: dreamer.Dreamer, base) -> dict[str, torch.Tensor | None]:
    """Losses and their gradients at the observations and at every parameter of the agent."""
    batch = agents.batch(agents.VECTORS if "dmc_proprio" in base else agents.IMAGE)
    torch.manual_seed(1)
    with running(made):
        data = models.preprocess(batch)
        inputs = {k: data[k].requires_grad_() for k in made.keys}
        model, parameters = made.world_model, dict(made.named_parameters())
        parameters = {k: v for k, v in parameters.items() if v.requires_grad}
        losses, states, _ = model.losses(data, model.draw_mask(data))
        total = sum((made.config[f"{name}_scale"] * loss).mean() for name, loss in losses.items())
        start = states[made.world_model.start]
        start = {k: v.detach().flatten(0, 1) for k, v in start.items()}
        actor_loss, value_loss, _, _ = made.behavior.loss(model, start)
        found = {f"loss {name}": loss.detach() for name, loss in losses.items()}
        found |= {"actor loss": actor_loss.detach(), "value loss": value_loss.detach()}
        for label, loss in {"model": total, "actor": actor_loss, "value": value_loss}.items():
            wanted = {**inputs, **parameters}
            grads = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
            found |= {f"{label}: {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return found


def slow_unless_quick(groups):
    return [pytest.param(g, marks=() if g in QUICK else pytest.mark.slow, id=" ".join(g)) for g in groups]


@pytest.mark.parametrize("base", slow_unless_quick(GROUPS))
@pytest.mark.parametrize("fuse", FUSE)
def test_the_agents_losses_have_the_plain_values_and_gradients(fuse, base):
    said = []
    expected = agents_losses(make("", base), base)
    close(agents_losses(make(fuse, base, log=said.append), base), expected, 5e-5)
    assert not said


@pytest.mark.parametrize(
    "flags", [("--expl_behavior", "plan2explore"), ("--imag_gradient", "both"), ("--actor_dist", "onehot")]
)
@pytest.mark.parametrize("fuse", FUSE)
def test_updates_and_acting_compute_the_same(fuse, flags):
    batch, found = agents.batch(discrete="onehot" in flags), {}
    obs = {k: v[:, 0] for k, v in batch.items() if k in ("image", "is_first")}
    for how in ("", fuse):
        agent = make(how, ("dmc_vision",), *flags)
        torch.manual_seed(1)
        found[how] = [agent.update(batch), agent.update(batch)]
        state = None
        for _ in range(3):
            action, state = agent.act(obs, state, training=True)
        found[how].append({"action": action, **state})
    for ours, plain in zip(found[fuse], found[""], strict=True):
        close(ours, plain, 2e-4)


@pytest.mark.parametrize("fuse", ["", *FUSE])
def test_a_copy_of_an_agent_computes_with_its_own_weights(fuse):
    agent, batch, found = make(fuse, ("dmc_vision",)), agents.batch(), []
    obs = {k: v[:, 0] for k, v in batch.items() if k in ("image", "is_first")}
    agent.act(obs, None, training=True)
    for made in (agent, copy.deepcopy(agent)):
        torch.manual_seed(1)
        data, model = models.preprocess(batch), made.world_model
        losses, states, _ = model.losses(data, None)
        start = {k: v.detach().flatten(0, 1) for k, v in states["post"].items()}
        actor_loss, _, _, _ = made.behavior.loss(model, start)
        found.append({**{k: v.detach() for k, v in losses.items()}, "actor": actor_loss.detach()})
        found[-1]["action"] = made.act(obs, None, training=False)[0]
        found[-1] |= made.update(batch)
        with torch.no_grad():
            for parameter in agent.parameters():
                parameter.zero_()
    close(found[1], found[0])


@pytest.mark.parametrize("fuse", ["", *FUSE])
def test_imagination_gives_the_world_model_no_gradient_and_its_steps_do(fuse):
    agent = make(fuse, ("dmc_vision",))
    model = agent.world_model
    weight = model.dynamics.cell.linear.weight
    state = {k: v.expand(2, *v.shape[1:]) for k, v in model.dynamics.initial().items()}
    with running(agent):
        feats, _, _ = model.dynamics.imagine(agent.behavior.actor, {k: v.detach() for k, v in state.items()}, 3)
        with pytest.raises(RuntimeError):  # nothing but the actor is differentiated
            torch.autograd.grad(feats.sum(), weight)
        follow = model.dynamics.img_step(state, torch.zeros(2, 3))
        assert torch.autograd.grad(follow["deter"].sum(), weight)[0].abs().max() > 0


def test_frozen_dynamics_follow_the_weights():
    agent = make("", ("dmc_vision",))
    frozen = agent.world_model.dynamics.frozen
    before = frozen.cell.linear.weight.clone()
    agent.update(agents.batch())
    assert torch.equal(frozen.cell.linear.weight, agent.world_model.dynamics.cell.linear.weight)
    assert not torch.equal(frozen.cell.linear.weight, before)
    assert not any("frozen" in name for name in agent.state_dict())


def test_an_input_that_has_been_changed_in_place_is_refused_where_steps_are_compiled():
    """As in plain PyTorch."""
    for fuse in ("", "compiled"):
        made = dynamics(fuse, networks.RSSM, networks.GRU, 5)
        with running(made):
            state = made.img_step({"stoch": torch.ones(3, 4, 5), "deter": torch.ones(3, 16)}, torch.ones(3, 3))
        state["deter"].mul_(0.5)
        with pytest.raises(RuntimeError, match=r"in-?place operation"):
            torch.autograd.grad(state["logit"].sin().sum(), made.prior_layer.linear.weight)


def documented_loss():
    """The multi-step loss that docs/extending.md works out."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    source = "\n".join(line[1:] for line in page.splitlines() if line.startswith("+"))
    names: dict = {"torch": torch, "Tensor": torch.Tensor}
    exec(re.search(r"def consistency_loss.*?\n(?=\n\n|\Z)", source + "\n\n\n", re.S)[0], names)
    return names["consistency_loss"]


@pytest.mark.parametrize("fuse", FUSE)
def test_the_documented_multi_step_loss_trains_the_dynamics_on_every_backend(fuse):
    loss, found = documented_loss(), {}
    for how in ("", fuse):
        agent = make(how, ("dmc_vision",))
        batch, model = agents.batch(), agent.world_model
        torch.manual_seed(1)
        with running(agent):
            data = models.preprocess(batch)
            post, _ = model.dynamics.observe(model.encoder(data), data["action"], data["is_first"])
            value = loss(model.dynamics, post, data["action"], data["is_first"], 3)
            parameters = {k: v for k, v in model.named_parameters() if v.requires_grad}
            grads = torch.autograd.grad(value.mean(), list(parameters.values()), allow_unused=True)
        found[how] = {"value": value.detach(), **dict(zip(parameters, grads, strict=True))}
    close(found[fuse], found[""], 5e-5)
    for name in ("dynamics.cell.linear.weight", "dynamics.prior_out.weight", "dynamics.input.linear.weight"):
        assert found[fuse][name].abs().max() > 0


# Steps


@pytest.mark.parametrize("twin", [False, True])
def test_a_split_layer_is_a_layer_of_both_inputs(twin):
    torch.manual_seed(0)
    layer, x, y = networks.JointLinear((4, 3), 5), torch.randn(2, 4), torch.randn(2, 3)
    expected = F.linear(torch.cat([x, y], -1), layer.weight)
    if twin:
        layers.replace_layers(layer, backend.Mode(accel.Backend(), print))
    both = layer.first(x) + layer.second(y)
    torch.testing.assert_close(both, expected)
    torch.testing.assert_close(layer(torch.cat([x, y], -1)), expected)
    for a, b in zip(*(torch.autograd.grad(z.sin().sum(), layer.weight) for z in (both, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_rollout_computes_each_weight_gradient_once():
    made = dynamics("compiled", networks.RSSM, networks.GRU, 5)

    def learn():
        torch.manual_seed(1)
        embed, action = torch.randn(3, 5, 12, requires_grad=True), torch.rand(3, 5, 3)
        first = torch.zeros(3, 5, dtype=torch.bool)
        with running(made), made.accelerated.rollout():
            post, _ = made.observe(embed, action, first)
            wanted = [made.cell.linear.weight, made.post_out.weight, embed]
            torch.autograd.grad(sum(v.square().sum() for v in post.values()), wanted)

    learn()
    with torch.profiler.profile(record_shapes=True) as trace:
        learn()
    products = [event.input_shapes[:2] for event in trace.events() if event.name in ("aten::mm", "aten::addmm")]
    # (out, rows of all steps) @ (rows, in)
    for out, inputs in ((48, 32), (20, 16)):
        assert [[out, 15], [15, inputs]] in products, (out, inputs)
        assert not any(p in products for p in ([[out, 3], [3, inputs]], [[inputs, 3], [3, out]])), (out, inputs)


def test_in_bfloat16_the_steps_gradients_are_summed_without_rounding():
    torch.manual_seed(0)
    made = dynamics("compiled", networks.RSSM, networks.GRU, 5, torch.bfloat16)
    xs = torch.randn(256, 4, 16)
    mode, weight = made.accelerated, made.post_out.weight
    layer = steps.Layer(made.post_out, "", True)

    def error(grad):
        exact = sum(y.double().T @ x.bfloat16().double() for x, y in zip(xs, ys, strict=True))
        return ((grad - exact).norm() / exact.norm()).item()

    ys = torch.randn(256, 4, 20)
    outputs = []
    with mode.rollout():
        for x in xs:
            call = steps.Call(layer, 4)
            outputs.append(call.linear(x.bfloat16()))
            call.end()
    (grad,) = torch.autograd.grad((torch.stack(outputs).float() * ys).sum(), weight)
    cast = weight.to(torch.bfloat16)
    rounded = torch.stack([F.linear(x.bfloat16(), cast) for x in xs])
    (other,) = torch.autograd.grad((rounded.float() * ys).sum(), weight)
    assert error(grad) < 0.005 < error(other)


# Failures


class Untraceable(networks.RSSM):
    def img_step(self, state, action):
        torch._dynamo.graph_break()
        return super().img_step(state, action)


def test_a_step_that_cannot_be_compiled_runs_plainly_and_is_named():
    said = []
    plan = ["img_step", "img_step", "observe"]
    expected = run_losses(dynamics("", Untraceable, networks.GRU, 5), plan, 0, True)
    made = dynamics("compiled", Untraceable, networks.GRU, 5, torch.float32, said.append)
    close(run_losses(made, plan, 0, True), expected)
    assert len(said) == 1 and said[0].startswith("Untraceable.img_step is not compiled ("), said


def test_an_error_of_the_compiler_within_an_update_does_not_repeat_the_world_models_step(monkeypatch):
    """PyTorch compiles gradients when they are first needed: here, those of the critic fail to."""
    batch, said = agents.batch(), []
    plain, found = make("", ("dmc_vision",)), []
    agent = make("compiled", ("dmc_vision",), log=said.append)
    real, failures = agent.behavior.value_opt.step, [RuntimeError("no kernel for this")]

    def step(loss):
        if failures:  # after the steps of the world model and of the actor
            raise failures.pop()
        return real(loss)

    monkeypatch.setattr(agent.behavior.value_opt, "step", step)
    torch.manual_seed(1)
    found.append(agent.update(batch))
    found.append(agent.update(batch))
    torch.manual_seed(1)
    for ours in found:
        close(ours, plain.update(batch), 2e-4)
    close(dict(agent.state_dict()), dict(plain.state_dict()), 1e-3)
    assert said == ["update: nothing is compiled (no kernel for this)"]


def test_a_cast_is_made_once_and_again_when_its_input_has_changed():
    mode = backend.Mode(accel.Backend(dtype=torch.bfloat16), print)
    x = torch.ones(3)
    with mode.rollout():
        assert mode.cast(x) is mode.cast(x)
        x += 1
        assert (mode.cast(x) == 2).all()
        x.requires_grad_()
        with torch.no_grad():
            assert not mode.cast(x).requires_grad
        assert mode.cast(x).requires_grad


@needs_compiler
@pytest.mark.parametrize("change", ["strided", "expanded", "other size", "double"])
def test_parameters_of_a_norm_that_cpp_cannot_read_are_not_read(change):
    def parameter(size):
        x = torch.linspace(1, 2, 2 * size)
        x = {"strided": x[::2], "expanded": x[:1].expand(size), "other size": x, "double": x[:size].double()}[change]
        return torch.nn.Parameter(x)

    made, twin = dynamics("", networks.RSSM, networks.GRU, 5), dynamics("native", networks.RSSM, networks.GRU, 5)
    found = []
    for owner in (made, twin):
        for norm in (owner.prior_layer.norm, owner.cell.norm):
            norm.weight, norm.bias = parameter(norm.weight.numel()), parameter(norm.weight.numel())
        torch.manual_seed(1)
        calls = [functools.partial(owner.prior_layer, torch.randn(3, 16))]
        calls += [functools.partial(owner.cell, torch.randn(3, 16), {"deter": torch.randn(3, 16)})]
        for call in calls:
            try:
                found.append(call())
            except RuntimeError:  # PyTorch's own words
                found.append(None)
    for plain, ours in zip(found[:2], found[2:], strict=True):
        assert ours is None or plain is not None
        if ours is not None:
            torch.testing.assert_close(ours, plain)


@needs_compiler
def test_an_agent_is_installed_once():
    agent = make("native", ("dmc_vision",))
    with pytest.raises(ValueError, match="runs with a backend already"):
        accel.install(agent, accel.Backend("native"))


def test_layers_without_a_twin_get_float32():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8, 2))

        def forward(self, x):
            return x @ self.weight

    model = torch.nn.Sequential(networks.Dense(4, 8), Odd(), networks.Dense(2, 4))
    plain = model(x := torch.randn(3, 4))
    layers.replace_layers(model, backend.Mode(accel.Backend(dtype=torch.bfloat16), print))
    torch.testing.assert_close(model(x).float(), plain, rtol=0.05, atol=0.05)


def test_a_cast_is_made_again_when_its_input_comes_to_require_a_gradient():
    mode, x = backend.Mode(accel.Backend(dtype=torch.bfloat16), print), torch.ones(3)
    with mode.rollout():
        assert not mode.cast(x).requires_grad
        assert mode.cast(x.requires_grad_()).requires_grad


@needs_compiler
def test_replaced_functions_come_back():
    agent, plain = make("native", ("dmc_vision",)), dists.mix
    with pytest.raises(KeyError), running(agent):
        assert dists.mix is not plain
        raise KeyError
    assert dists.mix is plain
    agent.update(agents.batch())
    assert dists.mix is plain


@pytest.mark.parametrize("fuse", FUSE)
def test_a_function_that_somebody_puts_there_later_is_called(fuse, monkeypatch):
    agent, found = make(fuse, ("dmc_vision",)), []
    batch = agents.batch()
    for factor in (1, 2):
        name = "mix" if fuse == "native" else "two_hot_mean"
        plain = getattr(dists, name)
        monkeypatch.setattr(dists, name, lambda *args, plain=plain, k=factor: found.append(k) or plain(*args))
        agent.update(batch)
        monkeypatch.setattr(dists, name, plain)
    assert {1, 2} == set(found)


# What a researcher's code does with an agent's networks


def small_mlp(fuse: str) -> networks.MLP:
    torch.manual_seed(0)
    made = networks.MLP(6, 16, 2, 3)
    if fuse:
        layers.replace_layers(made, backend.Mode(accel.Backend(fuse), print))
    return made


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_no_gradient(dtype):
    found = {}
    for fuse in ("", "native"):
        made, mlp = dynamics(fuse, networks.RSSM, networks.GRU, 0), small_mlp(fuse)
        x, deter = torch.ones(2, 3, 16), torch.ones(2, 3, 16)
        torch.set_default_dtype(dtype)
        try:
            loss = made.cell(x, {"deter": deter})["deter"].sin().sum() + mlp(x[..., :6]).sin().sum()
            parameters = [*made.cell.parameters(), *mlp.parameters()]
            found[fuse] = dict(enumerate(torch.autograd.grad(loss, parameters)))
        finally:
            torch.set_default_dtype(torch.float32)
    close(found["native"], found[""])


@needs_compiler
def test_what_only_follows_the_operations_gets_the_plain_ones():
    """Tracing and torch.func hand on tensors without numbers, or of other shapes than they show."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    found = {}
    for fuse in ("", "native"):
        mlp = small_mlp(fuse)
        weights = dict(mlp.named_parameters())
        call = functools.partial(torch.func.functional_call, mlp)
        several = {k: torch.stack([v, 2 * v]).detach() for k, v in weights.items()}
        with FakeTensorMode(allow_non_fake_inputs=True):
            shape = mlp(torch.ones(5, 6)).shape
        found[fuse] = {
            "traced": torch.jit.trace(mlp, x)(3 * x),
            "exported": torch.export.export(mlp, (x,)).module()(3 * x),
            "ensemble": torch.vmap(call, in_dims=(0, None))(several, (x,)),
            "jacobian": torch.func.jacrev(mlp)(x[0]),
            "forward mode": torch.func.jacfwd(mlp)(x[0]),
            "gradient": torch.func.grad(lambda w, call=call: call(w, (x,)).sin().sum())(weights)["out.weight"],
            "shape": torch.tensor(shape).float(),
        }
    close(found["native"], found[""])


class Ahead(torch.nn.Module):
    def __init__(self, made: networks.RSSM):
        super().__init__()
        self.made = made

    def forward(self, state, action):
        return self.made.img_step(state, action)


@pytest.mark.parametrize("fuse", FUSE)
@pytest.mark.parametrize("how", ["functional_call", "data", "in place", "trained later"])
def test_other_weights_within_a_rollout_are_used(fuse, how):
    found = {}
    for kind in ("", fuse):
        made = dynamics(kind, networks.RSSM, networks.GRU, 0)
        step, action = Ahead(made), torch.ones(3, 3)
        weights = dict(step.named_parameters())
        other = {k: (1.5 * v).detach().requires_grad_() for k, v in weights.items()}
        start = {"stoch": torch.ones(3, 4), "deter": torch.ones(3, 16)}
        last, trained = made.prior_out.weight, how in ("functional_call", "trained later")
        last.requires_grad_(how != "trained later")
        torch.manual_seed(1)
        rollout = made.accelerated.rollout() if kind else contextlib.nullcontext()
        with running(made), rollout, torch.set_grad_enabled(trained):
            states = [step(start, action)]
            last.requires_grad_()
            for name, value in weights.items():
                if how == "data":
                    value.data = other[name].detach()
                elif how == "in place":
                    value.mul_(1.5)
            changed = other if how == "functional_call" else {}
            states.append(torch.func.functional_call(step, changed, (start, action)))
        found[kind] = {f"{n} {k}": v.detach() for n, state in enumerate(states) for k, v in state.items()}
        if trained:
            wanted = {**weights, **{f"other {k}": v for k, v in changed.items()}}
            loss = sum(v.sin().sum() for state in states for v in state.values())
            grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            found[kind] |= dict(zip(wanted, grads, strict=True))
    close(found[fuse], found[""])


class Scaled(torch.nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(module):
    plain = module.forward
    module.forward = lambda x: 2 * plain(x)


OWN_LAYERS = {
    "norm.forward": lambda cell: doubled(cell.norm),
    "linear.forward": lambda cell: doubled(cell.linear),
    "norm of another class": lambda cell: setattr(cell, "norm", Scaled(48)),
    "no norm": lambda cell: setattr(cell, "norm", torch.nn.Identity()),
    "no bias": lambda cell: setattr(cell, "norm", torch.nn.LayerNorm(48, bias=False)),
}


@pytest.mark.parametrize("change", OWN_LAYERS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("fuse", FUSE)
def test_somebodys_own_layer_within_the_cell_is_called(fuse, late, change):
    class Cell(networks.RSSM):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if not late:
                OWN_LAYERS[change](self.cell)

    found = {}
    for kind in ("", fuse):
        made = dynamics(kind, Cell, networks.GRU, 0)
        if late:
            OWN_LAYERS[change](made.cell)
        torch.manual_seed(1)
        with running(made):
            state = made.img_step({"stoch": torch.ones(3, 4), "deter": torch.ones(3, 16)}, torch.ones(3, 3))
        grads = torch.autograd.grad(sum(v.sin().sum() for v in state.values()), list(made.cell.parameters()))
        found[kind] = {k: v.detach() for k, v in state.items()} | dict(enumerate(grads))
    close(found[fuse], found[""])


class Wide(networks.RSSM):
    """A step with a norm without bias, a vector for all rows, a number in its state; features with an argument."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.row = torch.nn.Parameter(torch.linspace(0, 1, 16))
        self.scale = torch.nn.LayerNorm(16, bias=False)

    def img_step(self, state, action):
        cell = self.gru(state, self.action_input(action))
        hidden = self.scale(self.prior_layer(cell["deter"])) + self.prior_layer(self.row)
        return {**self.sample_state(self.latent(self.prior_out(hidden)), cell), "steps": state.get("steps", 0) + 1}

    def feat(self, state, scale=1):
        return scale * super().feat(state)


@pytest.mark.parametrize("fuse", FUSE)
def test_a_users_step_with_all_that_python_allows(fuse):
    found = {}
    for kind in ("", fuse):
        made = dynamics(kind, Wide, networks.GRU, 0)
        if kind == "compiled":
            made.feat = steps.Feat(made)
        torch.manual_seed(1)
        state = {"stoch": torch.ones(3, 4), "deter": torch.ones(3, 16)}
        with running(made):
            for _ in range(3):
                state = made.img_step(state, torch.ones(3, 3))
            feat = made.feat(state, scale=3)
        assert state["steps"] == 3
        grads = torch.autograd.grad(feat.sin().sum(), list(made.parameters()), allow_unused=True)
        found[kind] = {"feat": feat.detach(), "drawn": torch.rand(3)} | dict(enumerate(grads))
    close(found[fuse], found[""])


@pytest.mark.parametrize("fuse", ["", *FUSE])
@pytest.mark.parametrize("precision", ["32", "16"])
def test_modules_are_saved_whole(fuse, precision, tmp_path):
    agent = make(fuse, ("dmc_vision",), "--precision", precision)
    torch.save(agent.world_model.heads["reward"], tmp_path / "head.pt")
    head = torch.load(tmp_path / "head.pt", weights_only=False)
    feat = torch.randn(3, agent.world_model.dynamics.feat_size)
    torch.testing.assert_close(head(feat).mode(), agent.world_model.heads["reward"](feat).mode())


@pytest.mark.parametrize("fuse", ["", *FUSE])
def test_bfloat16_in_inference_mode(fuse):
    agent = make(fuse, ("dmc_vision",), "--precision", "16")
    data = models.preprocess(agents.batch())
    with torch.inference_mode(), running(agent):
        losses, _, _ = agent.world_model.losses(data, None)
    assert all(loss.isfinite().all() for loss in losses.values())


# Hooks


def halve(module, args, out):
    return {k: v / 2 for k, v in out.items()} if isinstance(out, dict) else out / 2


@pytest.mark.parametrize("layer", ["cell.norm", "cell.linear", "cell", "prior_layer.norm", "prior_out"])
@pytest.mark.parametrize("fuse", FUSE)
def test_a_hook_on_a_layer_has_its_effect(fuse, layer):
    found = {}
    for how in ("", fuse):
        made = dynamics(how, networks.RSSM, networks.GRU, 0)
        state = {"stoch": torch.ones(3, 4), "deter": torch.ones(3, 16)}
        with running(made):
            for hook in (False, True, False):  # a step may have been compiled before there was one
                handle = made.get_submodule(layer).register_forward_hook(halve) if hook else None
                torch.manual_seed(1)
                value = sum(v.sin().sum() for v in made.img_step(state, torch.ones(3, 3)).values())
                grads = torch.autograd.grad(value, list(made.cell.parameters()))
                found.setdefault(how, []).extend([value.detach(), *grads])
                if handle:
                    handle.remove()
    close(dict(enumerate(found[fuse])), dict(enumerate(found[""])))


@pytest.mark.parametrize("fuse", FUSE)
def test_weights_that_a_hook_sets_at_each_call_are_used_as_plainly(fuse):
    found = {}
    for how in ("", fuse):
        made = dynamics(how, networks.RSSM, networks.GRU, 0)
        torch.manual_seed(1)
        torch.nn.utils.spectral_norm(made.prior_out)
        state = {"stoch": torch.ones(3, 4), "deter": torch.ones(3, 16)}
        with running(made):
            for step in range(3):
                state = made.img_step(state, torch.ones(3, 3))
                found.setdefault(how, {})[f"{step}"] = state["mean"].detach()
    close(found[fuse], found[""])


# Somebody changes an equation


def changed_gru(self, x, state):
    parts = self.norm(self.linear(torch.cat([x, state["deter"]], -1)))
    return {"deter": networks.update_deter(*parts.chunk(3, -1), 0.5 * state["deter"])}


def changed_norm(self, x):
    return torch.nn.functional.silu(2 * torch.nn.LayerNorm.forward(self, x))


def changed_share(self, y):
    return 2 * torch.nn.functional.linear(y, self.weight.split(self.sizes, 1)[1])


def changed_mix(logits, unimix):
    probs = torch.softmax(2 * logits, -1)
    return probs * (1 - unimix) + unimix / probs.shape[-1]


def changed_ema(target, online, rate):
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.lerp_(new, 2 * rate)


CHANGES = [
    (networks.GRU, "forward", changed_gru),
    (networks.NormSiLU, "forward", changed_norm),
    (networks.JointLinear, "second", changed_share),
    (dists, "mix", changed_mix),
    (tools, "ema", changed_ema),
]


@pytest.mark.parametrize("owner, name, equation", CHANGES)
@pytest.mark.parametrize("fuse", [FUSE[0], pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_changed_equation_is_computed_as_it_is_written(fuse, owner, name, equation, monkeypatch):
    """A twin repeats an equation; it is left out if the equation is another one now, and the log says so."""
    monkeypatch.setattr(owner, name, equation)
    for cached in (functions.compiled, native.plain_norm_silu):
        cached.cache_clear()
    torch._dynamo.reset()
    lines, results = [], []
    plain, fast = make("", ("dmc_vision",)), make(fuse, ("dmc_vision",), log=lines.append)
    for agent in (plain, fast):
        torch.manual_seed(1)
        metrics = [agent.update(agents.batch()) for _ in range(2)][-1]
        results.append({k: v for k, v in metrics.items() if k.endswith(("loss", "norm"))})
    close(results[1], results[0], 2e-4)
    compiled_as_written = fuse == "compiled" and (name == "mix" or owner is networks.NormSiLU)
    named = owner.__name__ if isinstance(owner, type) else name
    assert any(line.startswith(f"{named} does not compute") for line in lines) != compiled_as_written, lines


@pytest.mark.parametrize("name", ["img_step", "feat"])
@pytest.mark.parametrize("fuse", FUSE)
def test_a_method_of_an_instance_is_left_as_it_is(fuse, name):
    agent, found, lines = make("", ("dmc_vision",)), [], []
    made = agent.world_model.dynamics
    plain = getattr(made, name)

    def half(*args):
        out = plain(*args)
        return {k: v / 2 for k, v in out.items()} if isinstance(out, dict) else out / 2

    setattr(made, name, half)
    for how in ("", fuse):
        accel.install(agent, accel.Backend(how), lines.append)
        torch.manual_seed(1)
        with running(agent):
            state = {k: v.expand(3, *v.shape[1:]) for k, v in made.initial().items()}
            found.append({"feat": made.feat(made.img_step(state, torch.ones(3, 3))).detach()})
    close(found[1], found[0])
    assert lines or (fuse, name) == ("native", "feat")


def special_norm(self, x):
    """Of a layer that somebody has given an attribute."""
    y = torch.nn.functional.silu(torch.nn.LayerNorm.forward(self, x))
    return 2 * y if getattr(self, "doubled", False) else y


def ema_with_buffers(target, online, rate):
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.lerp_(new, rate)
        for old, new in zip(target.buffers(), online.buffers(), strict=True):
            old.copy_(new)


def ema_of_all_but_norms(target, online, rate):
    with torch.no_grad():
        for (name, old), new in zip(target.named_parameters(), online.parameters(), strict=True):
            old.lerp_(new, 1.0 if "norm" in name else rate)


def cut_stoch(states):
    return {key: value.detach() if key == "stoch" else value for key, value in states.items()}


class RenamedGRU(networks.Cell):
    """A GRU whose layers have other names than those that the twin reads."""

    def __init__(self, inputs, deter):
        super().__init__()
        self.map = torch.nn.Linear(inputs + deter, 3 * deter)

    def forward(self, x, state):
        parts = self.map(torch.cat([x, state["deter"]], -1))
        return {"deter": networks.update_deter(*parts.chunk(3, -1), state["deter"])}


RARE_CHANGES = {
    "large logits": (dists, "mix", lambda logits, unimix: PLAIN["mix"](logits.clamp(-10, 10), unimix)),
    "other dimension": (
        dists,
        "mix",
        lambda logits, unimix: (1 - unimix) * logits.softmax(1) + unimix / logits.shape[-1],
    ),
    "no share": (dists, "mix", lambda logits, unimix: PLAIN["mix"](logits, unimix or 0.01)),
    "few draws": (dists, "pick", lambda probs, u: PLAIN["pick"](0.99 * probs + 0.01 / probs.shape[-1], u)),
    "large states": (networks.GRU, "forward", lambda *args: {"deter": PLAIN["gru"](*args)["deter"].clamp(-3, 3)}),
    "large outputs": (networks.NormSiLU, "forward", lambda *args: PLAIN["norm"](*args).clamp(max=6)),
    "other layers": (networks, "GRU", RenamedGRU),
    "one layer": (networks.NormSiLU, "forward", special_norm),
    "one entry": (networks, "stack", lambda *args: cut_stoch(PLAIN["stack"](*args))),
    "buffers": (tools, "ema", ema_with_buffers),
    "names": (tools, "ema", ema_of_all_but_norms),
}
PLAIN = {"mix": dists.mix, "pick": dists.pick, "stack": networks.stack}
PLAIN |= {"gru": networks.GRU.forward, "norm": networks.NormSiLU.forward}


@pytest.mark.parametrize("change", [None, *RARE_CHANGES])
@pytest.mark.parametrize("fuse", FUSE)
def test_a_change_that_shows_in_some_inputs_alone_is_noticed(fuse, change, monkeypatch):
    owner, name, equation = RARE_CHANGES.get(change, (dists, "mix", dists.mix))
    monkeypatch.setattr(owner, name, equation)
    if name == "GRU":  # as if it were written in networks.py
        monkeypatch.setitem(networks.CELLS, "gru_layer_norm", equation)
        monkeypatch.setitem(layers.TWINS, equation, layers.GRU)
    agent, lines = make("", ("dmc_vision",)), []
    agent.world_model.dynamics.prior_layer.norm.doubled = True
    accel.install(agent, accel.Backend(fuse), lines.append)
    named = equation.__name__ if name == "GRU" else owner.__name__ if isinstance(owner, type) else name
    as_written = fuse == "compiled" and (name in ("mix", "pick") or change == "large outputs")
    expected = [] if change is None or as_written else [named]
    assert [line.split()[0] for line in lines if "does not compute" in line] == expected


def test_a_latent_of_uniform_probabilities_has_no_gradient():
    logits = torch.randn(3, 5, requires_grad=True)
    for mix in (dists.mix, functions.native_mix):
        probs = mix(logits, 1.0)
        assert torch.equal(probs, torch.full((3, 5), 0.2))
        assert torch.equal(torch.autograd.grad((probs * torch.randn(3, 5)).sum(), logits)[0], torch.zeros(3, 5))


def test_a_trained_uniform_share_gets_its_gradient():
    logits, grads = torch.randn(3, 5), []
    for mix in (dists.mix, functions.native_mix):
        unimix = torch.tensor(0.1, requires_grad=True)
        grads += torch.autograd.grad(mix(logits, unimix).square().sum(), unimix)
    torch.testing.assert_close(*grads)


# Convolutions


@pytest.mark.parametrize("size, inputs, outputs", [(8, 5, 6), (4, 1, 3), (2, 4, 2)])
def test_gradients_of_a_convolution_by_products(size, inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(3, inputs, size, size, dtype=torch.double, requires_grad=True)
    weight = torch.randn(outputs, inputs, 4, 4, dtype=torch.double, requires_grad=True)
    plain = F.conv2d(x, weight, stride=2, padding=1)
    ours = layers.Halving.apply(x, weight)
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, [x, weight], grad) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b)
    # images that need no gradient
    (alone,) = torch.autograd.grad(layers.Halving.apply(x.detach(), weight), weight, grad)
    torch.testing.assert_close(alone, b)


@pytest.mark.parametrize("kernel, pad", [(4, 1), (3, 0), (5, 1), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_of_all_sizes_compute_the_same(kernel, pad, dtype):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(5, 6, kernel, stride=2, padding=pad, bias=False)
    twin = torch.nn.Sequential(torch.nn.Conv2d(5, 6, kernel, stride=2, padding=pad, bias=False))
    twin.load_state_dict({"0.weight": plain.weight})
    layers.replace_layers(twin, backend.Mode(accel.Backend(dtype=dtype), print))
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    found = []
    for layer, weight in ((plain, plain.weight), (twin, twin[0].weight)):
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, weight])])
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    close(dict(enumerate(found[1])), dict(enumerate(found[0])), tolerance)


# Backends


def test_the_choice_on_a_cpu_is_reported():
    for wanted, how, words in ((True, ("", "native"), "C++"), (False, ("",), "compile is False")):
        chosen = accel.choose_backend(wanted, torch.device("cpu"), precision=16)
        assert chosen.fuse in how and not chosen.capture and words in chosen.note and chosen.dtype == torch.bfloat16


def test_a_captured_function_gets_its_inputs_in_the_same_memory():
    memory, addresses = None, set()
    for x in (torch.randn(4, 6).T, torch.randn(6, 1).expand(6, 4), torch.randn(6, 4)):
        memory = graphs.copy_into(memory, {"a": {"x": x}})
        copy = memory["a"]["x"]
        assert torch.equal(copy, x) and copy.is_contiguous()
        addresses.add(copy.data_ptr())
    assert len(addresses) == 1


@pytest.mark.parametrize("base", [("dmc_vision",), ("dmc_vision", "continuous")])
def test_acting_takes_the_same_inputs_at_every_call(base):
    """As a captured function must, into whose memory they are copied."""
    agent, batch, memory = make("", base), agents.batch(), None
    plain, seen = agent.act_step, []

    def act_step(obs, state, training, explore):
        nonlocal memory
        memory = graphs.copy_into(memory, {"obs": obs, "state": state})
        seen.append({k: v.data_ptr() for k, v in memory["state"].items()})
        return plain(memory["obs"], memory["state"], training, explore)

    agent.act_step, state = act_step, None
    for t in range(3):
        obs = {k: batch[k][:, t] for k in ("image", "is_first")}
        _, state = agent.act(obs, state, training=True)
    assert seen[0] == seen[1] == seen[2]


def test_a_failed_capture_is_logged_and_the_update_runs(monkeypatch):
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: 1 / 0)
    said = []
    chosen = accel.Backend(capture=True)
    runner = graphs.GraphedFunction(lambda x: {"y": x["x"] + 1}, chosen, backend.Mode(chosen, said.append), "update")
    runner.WARM_UP = 0
    for value in range(3):
        assert runner({"x": torch.tensor(value)})["y"] == value + 1
    assert len(said) == 1 and said[0].startswith("update: not captured as a CUDA graph (") and len(said[0]) > 45


def gpu_agent(fast: bool, *flags: str, log=lambda line: None) -> dreamer.Dreamer:
    """Plain, or with the backend that a run would choose."""
    torch.manual_seed(0)
    config = agents.config(*flags)
    made = dreamer.Dreamer(config, shapes=agents.IMAGE, actions=3)
    accel.install(made, accel.choose_backend(fast, made.device, precision=config.precision), log)
    return made


@needs_gpu
@pytest.mark.parametrize("precision", ["32", "16"])
def test_captured_updates_match_plain_ones(precision):
    device = ("--device", "cuda", "--precision", precision)
    batches = [{k: v.cuda() for k, v in agents.batch(seed=i).items()} for i in range(8)]
    found, said = [], []
    for fast in (False, True):
        agent = gpu_agent(fast, *device, log=said.append)
        torch.manual_seed(1)
        found.append([{k: v.item() for k, v in agent.update(batch).items()} for batch in batches])
    assert agent.update.graph is not None, said
    # class draws differ once rounding does: the first updates are the same
    for plain, captured in list(zip(*found, strict=True))[: 8 if precision == "32" else 2]:
        for key in plain:
            assert captured[key] == pytest.approx(plain[key], rel=1e-2, abs=1e-2), key


@needs_gpu
def test_captured_acting_matches_plain_acting():
    found = []
    obs = {k: v[:, 0].cuda() for k, v in agents.batch().items() if k in ("image", "is_first")}
    for fast in (False, True):
        agent, state, actions = gpu_agent(fast, "--device", "cuda"), None, []
        torch.manual_seed(1)
        for _ in range(8):
            action, state = agent.act(obs, state, training=True)
            actions.append(action.cpu())
        found.append(torch.stack(actions))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "16"])
def test_losses_of_many_captured_updates_are_those_of_plain_ones(precision):
    """The draws differ after the first updates; the means over 100 later ones do not."""
    flags = ("--device", "cuda", "--precision", precision, "--model_lr", "1e-3")
    batches = [{k: v.cuda() for k, v in agents.batch(seed=i).items()} for i in range(4)]
    means = []
    for fast in (False, True):
        agent = gpu_agent(fast, *flags)
        torch.manual_seed(1)
        updates = [agent.update(batches[i % 4]) for i in range(300)]
        means.append({k: torch.stack([u[k] for u in updates[200:]]).mean().item() for k in updates[0] if "loss" in k})
    for name, plain in means[0].items():
        assert means[1][name] == pytest.approx(plain, rel=0.05, abs=0.01), name


def test_draws_of_acting_follow_their_probabilities():
    """With the fastest backend of this machine."""
    device, copies, calls = runtime.pick_device("auto"), 256, 20
    agent = agents.agent("--device", str(device))
    accel.install(agent, accel.choose_backend(True, device))
    torch.manual_seed(1)
    # one observation, many times; a state after two steps
    batch = agents.batch()
    obs = {k: batch[k][:1, 0].repeat_interleave(copies, 0).to(device) for k in ("image", "is_first")}
    _, state = agent.act(obs, None, training=True)
    state = {k: v[:1].expand_as(v).contiguous() for k, v in state.items()}
    obs["is_first"] = torch.zeros_like(obs["is_first"])
    draws = sum(agent.act(obs, state, training=True)[1]["stoch"].sum(0) for _ in range(calls))
    data = models.preprocess({k: v[:1, None] for k, v in obs.items()})
    model, before = agent.world_model, {k: state[k][:1] for k in ("stoch", "deter")}
    with torch.no_grad():
        post, _ = model.dynamics.observe(model.encoder(data), state["action"][:1, None], data["is_first"], before)
    probs, count = model.dynamics.dist(post).probs[0, 0], copies * calls
    z = (draws / count - probs) / (probs * (1 - probs) / count).sqrt()
    assert z.abs().max() < 4.5 and 0.5 < z.square().mean() < 2


# A fake GPU: shapes and devices of the GPU's branches, on tensors without memory


class PlainIndexing(TorchFunctionMode):
    """Indexing and inversion by functions that need no GPU driver."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__invert__:
            return torch.logical_not(args[0])
        if function is not torch.Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        x, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        used = sum(i is not None and i is not Ellipsis for i in index)
        dim = 0
        for i in index:
            if i is None:
                x, dim = x.unsqueeze(dim), dim + 1
            elif i is Ellipsis:
                dim += args[0].ndim - used
            elif isinstance(i, int):
                x = x.select(dim, i)
            else:
                x, dim = torch.ops.aten.slice(x, dim, *i.indices(x.shape[dim])), dim + 1
        return x


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the real one is there")
@pytest.mark.parametrize(
    "flags", [(), ("--precision", "16"), ("--imag_gradient", "both", "--expl_behavior", "plan2explore")]
)
def test_nothing_waits_for_a_gpu_or_is_on_another_device(flags, monkeypatch):
    """Fake tensors refuse `.item()`, anything else that reads values, and operations across devices."""
    for name in ("trunc_normal_", "uniform_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    monkeypatch.setattr(dreamer.Dreamer, "to", lambda self, device: self)
    # it reads values, on the CPU, before the agent runs
    monkeypatch.setattr(sys.modules["accel.install"], "leave_out_changed", lambda agent, mode: None)
    cuda = torch.device("cuda", 0)
    with FakeTensorMode(), PlainIndexing(), torch.no_grad():
        with cuda:
            agent = agents.agent(*flags)
        batch = {k: torch.empty(v.shape, dtype=v.dtype, device=cuda) for k, v in agents.batch().items()}
        data = models.preprocess(batch)
        _, states, found = agent.world_model.loss(data, agent.world_model.draw_mask(data))
        start = {k: v.flatten(0, 1) for k, v in states["target_post"].items()}
        _, _, trajectory, metrics = agent.behavior.loss(agent.world_model, start)
        obs = {k: v[:, 0] for k, v in batch.items() if k in ("image", "is_first")}
        _, state = agent.act(obs, None, training=True, explore="plan2explore" in flags)
        for tensor in [*found.values(), *trajectory.values(), *metrics.values(), *state.values()]:
            assert tensor.device == cuda
