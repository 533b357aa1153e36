"""Faster paths against plain ones: shared matrices, fused functions, captured graphs."""

import shutil

import agents
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import distributions as dists
import dreamer
import fast
import models
import networks
from run import runtime

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# Compiled steps


@pytest.fixture(autouse=True)
def _nothing_compiled():
    yield
    fast._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """Whatever is compiled is traced and differentiated as for compiling, but run by PyTorch's own kernels."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: real(f, backend="aot_eager", **settings))


class Layers(torch.nn.Module):
    """Steps that use one of two layers."""

    def __init__(self, size=4, dtype=torch.float32):
        super().__init__()
        self.used, self.unused = (fast.Linear(size, size, dtype=dtype) for _ in range(2))

    @fast.step()
    def train(self, x):
        return self.used(x)

    @fast.step(frozen=True)
    def follow(self, x):
        return self.used(x)

    @fast.rollout
    def rollout(self, xs):
        return torch.stack([self.train(x) for x in xs])


def test_a_split_layer_is_a_layer_of_both_inputs():
    torch.manual_seed(0)
    layer, x, y = fast.SplitLinear((4, 3), 5), torch.randn(2, 4), torch.randn(2, 3)
    share = layer.second(y)
    both = torch.stack([layer.first(x) + share, layer(2 * x, y)])
    expected = torch.stack([F.linear(torch.cat([k * x, y], -1), layer.weight) for k in (1, 2)])
    torch.testing.assert_close(both, expected)
    for a, b in zip(*(torch.autograd.grad(z.sin().sum(), layer.weight) for z in (both, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_backward_pass_without_weight_gradients_does_not_affect_the_next(traced):
    torch.manual_seed(0)
    owner, xs = Layers(), torch.randn(5, 3, 4, requires_grad=True)
    wanted = [xs, owner.used.weight, owner.used.bias]
    plain = torch.autograd.grad(owner.rollout(xs).sin().sum(), wanted)
    with fast.fusing("compiled"):
        loss = owner.rollout(xs).sin().sum()
        torch.autograd.grad(5 * loss, xs, retain_graph=True)
        found = [torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(2)]
    for compiled in found:
        torch.testing.assert_close(compiled, plain)


def test_a_rollout_uses_the_parameters_at_its_start(traced):
    owner, xs = Layers(1, torch.bfloat16), torch.ones(2, 1, 1)
    with fast.fusing("compiled"):
        for value in (1, 2):
            with torch.no_grad():
                owner.used.weight.fill_(value)
                owner.used.bias.fill_(0)
            assert owner.rollout(xs).tolist() == [[[value]], [[value]]]


@pytest.mark.parametrize("fuse", ["", "compiled"])
def test_in_bfloat16_the_steps_gradients_are_summed_without_rounding(traced, fuse):
    torch.manual_seed(0)
    owner, xs = Layers(16, torch.bfloat16), torch.randn(256, 4, 16)

    def error(outputs, weight):
        (grad,) = torch.autograd.grad((outputs.float() * xs).sum(), weight)
        exact = sum(x.double().T @ x.bfloat16().double() for x in xs)
        return ((grad - exact).norm() / exact.norm()).item()

    cast = owner.used.weight.to(torch.bfloat16)
    rounded = torch.stack([F.linear(x.bfloat16(), cast) for x in xs])
    with fast.fusing(fuse):
        assert error(owner.rollout(xs.bfloat16()), owner.used.weight) < 0.005 < error(rounded, owner.used.weight)


# Convolutions


@pytest.mark.parametrize("size, inputs, outputs", [(8, 5, 6), (4, 1, 3), (2, 4, 2)])
def test_gradients_of_a_convolution_by_products(size, inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(3, inputs, size, size, dtype=torch.double, requires_grad=True)
    weight = torch.randn(outputs, inputs, 4, 4, dtype=torch.double, requires_grad=True)
    plain = F.conv2d(x, weight, stride=2, padding=1)
    ours = fast._Halving.apply(x, weight)
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, [x, weight], grad) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b)
    # images that need no gradient
    (alone,) = torch.autograd.grad(fast._Halving.apply(x.detach(), weight), weight, grad)
    torch.testing.assert_close(alone, b)


def test_small_bfloat16_images_on_a_cpu_take_the_products():
    x, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 4, 4)
    assert "Halving" in fast.halve(x.bfloat16(), weight.bfloat16()).grad_fn.name()
    assert "Convolution" in fast.halve(x, weight).grad_fn.name()
    large = torch.randn(2, 3, 16, 16).bfloat16().requires_grad_()
    assert "Convolution" in fast.halve(large, weight.bfloat16()).grad_fn.name()


# Fused functions


@pytest.mark.parametrize(
    "flags, shapes, base",
    [
        ((), agents.IMAGE, ("dmc_vision",)),
        (("--precision", "16", "--dyn_discrete", "0", "--imag_gradient", "both"), agents.VECTORS, ("dmc_proprio",)),
    ],
)
def test_all_fused_functions_of_an_update_can_be_traced_and_compute_the_same(flags, shapes, base, traced):
    found = {}
    batch = agents.batch(shapes)
    obs = {k: v[:, 0] for k, v in batch.items() if k in shapes or k == "is_first"}
    for fuse in ("", "compiled"):
        agent = agents.agent(*flags, shapes=shapes, base=base)
        agent.use_backend(fast.Backend(fuse))
        torch.manual_seed(1)
        found[fuse] = [agent.update(batch), agent.update(batch)]
        found[fuse].append({"action": agent.act(obs, None, training=True)[0]})
    for plain, fused in zip(found[""], found["compiled"], strict=True):
        for key in plain:
            torch.testing.assert_close(fused[key], plain[key], rtol=1e-4, atol=1e-5, msg=key)


def learn(dynamics):
    """The gradients of a loss of a rollout's states."""
    torch.manual_seed(1)
    embed, action = torch.randn(3, 5, 16, requires_grad=True), torch.rand(3, 5, 3)
    first = torch.zeros(3, 5, dtype=torch.bool)
    first[:, 0] = first[1, 3] = True
    post, prior = dynamics.observe(embed, action, first)
    loss = sum((x * torch.randn(x.shape)).sum() for state in (post, prior) for x in state.values())
    torch.autograd.grad(loss, [embed, *(v for k, v in dynamics.named_parameters() if not k.startswith("projection"))])


def small_rssm():
    torch.manual_seed(0)
    return networks.RSSM(16, 3, stoch=4, discrete=5, deter=24, hidden=16, projection=6)


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for the CPU needs g++")
def test_a_compiled_step_draws_and_computes_the_same():
    dynamics, found = small_rssm(), []
    leaves = [v for k, v in dynamics.named_parameters() if k.startswith(("cell", "input", "post_out"))]
    before = torch.randn(3, 20, requires_grad=True), torch.randn(3, 24, requires_grad=True)
    others = [torch.randn(2, 3, size) for size in (16, 16, 20, 24)]
    is_first = torch.tensor([[False], [True], [False]])
    weights = torch.randn(24)

    @fast.rollout
    def steps():
        stoch, deter = before
        for action, embed, *initial in zip(*others, strict=True):
            state = dynamics.obs_step(stoch, deter, action, embed, is_first, *initial)
            stoch, deter = state["stoch"].flatten(1), state["deter"]
        return state

    for fuse in ("", "compiled"):
        torch.manual_seed(1)
        with fast.fusing(fuse):
            state = steps()
            loss = (state["deter"] * weights).sum() + state["logit"].square().sum()
            found.append([*state.values(), *torch.autograd.grad(loss, [*leaves, *before], allow_unused=True)])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_a_compiled_rollout_computes_each_weight_gradient_once(traced):
    dynamics = small_rssm()
    with fast.fusing("compiled"):
        learn(dynamics)
        with torch.profiler.profile(record_shapes=True) as trace:
            learn(dynamics)
    products = [event.input_shapes[:2] for event in trace.events() if event.name in ("aten::mm", "aten::addmm")]
    # (out, rows of all steps) @ (rows, in)
    for out, inputs in ((16, 20), (72, 40), (16, 24), (20, 16)):
        assert [[out, 15], [15, inputs]] in products, (out, inputs)
        assert not any(p in products for p in ([[out, 3], [3, inputs]], [[inputs, 3], [3, out]])), (out, inputs)


def test_a_layer_that_a_step_does_not_call_gets_no_gradient(traced):
    owner, x = Layers(), torch.randn(3, 4)
    with fast.fusing("compiled"):
        y = fast.rollout(lambda: owner.train(owner.train(x)))()
    parameters = [owner.used.weight, owner.unused.weight]
    used, unused = torch.autograd.grad(y.sum(), parameters, allow_unused=True)
    assert used.abs().max() > 0 and unused is None


def test_a_frozen_step_passes_gradients_to_its_inputs_only(traced):
    owner, x = Layers(), torch.randn(3, 4, requires_grad=True)
    with fast.fusing("compiled"):
        y = fast.rollout(lambda: owner.follow(owner.follow(x)))()
    grad, none = torch.autograd.grad(y.sum(), [x, owner.used.weight], allow_unused=True)
    assert grad.abs().max() > 0 and none is None


def test_fusing_ends_with_its_block():
    seen = []
    with pytest.raises(KeyError), fast.fusing("native"):
        seen.append(fast._fusing)
        raise KeyError
    assert seen == ["native"] and not fast._fusing


# Backends


def test_the_choice_on_a_cpu_is_reported():
    for wanted, how, words in ((True, ("", "native"), "C++"), (False, ("",), "compile is False")):
        backend = fast.choose_backend(wanted, torch.device("cpu"))
        assert backend.fuse in how and not backend.capture and words in backend.note


def test_a_function_that_cannot_be_compiled_is_logged_and_runs_plain():
    @fast.fusable()
    def double(x):
        torch._dynamo.graph_break()
        return 2 * x

    said = []
    backend = fast.Backend("compiled")
    runner = fast.GraphedFunction(lambda inputs: {"y": double(inputs["x"])}, backend, "update", said.append)
    for _ in range(2):
        assert runner({"x": torch.tensor(3.0)})["y"] == 6
    assert len(said) == 1 and said[0].startswith("update: nothing is compiled (") and "graph_break" in said[0]


def test_a_captured_function_gets_its_inputs_in_the_same_memory():
    runner = fast.GraphedFunction(lambda x: x, fast.Backend(capture=True), "update")
    addresses = set()
    for x in (torch.randn(4, 6).T, torch.randn(6, 1).expand(6, 4), torch.randn(6, 4)):
        (copy,) = runner.copy({"x": x}).values()
        assert torch.equal(copy, x) and copy.is_contiguous()
        addresses.add(copy.data_ptr())
    assert len(addresses) == 1


def test_a_failed_capture_is_logged_and_the_update_runs(monkeypatch):
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: 1 / 0)
    said = []
    runner = fast.GraphedFunction(lambda x: {"y": x["x"] + 1}, fast.Backend(capture=True), "update", said.append)
    runner.WARM_UP = 0
    for value in range(3):
        assert runner({"x": torch.tensor(value)})["y"] == value + 1
    assert len(said) == 1 and said[0].startswith("update: not captured as a CUDA graph (") and len(said[0]) > 45


@needs_gpu
@pytest.mark.parametrize("precision", ["32", "16"])
def test_captured_updates_match_plain_ones(precision):
    device = ("--device", "cuda", "--precision", precision)
    batches = [{k: v.cuda() for k, v in agents.batch(seed=i).items()} for i in range(8)]
    found, said = [], []
    for backend in (fast.Backend(), fast.choose_backend(True, torch.device("cuda"))):
        agent = agents.agent(*device)
        agent.use_backend(backend, said.append)
        torch.manual_seed(1)
        found.append([{k: v.item() for k, v in agent.update(batch).items()} for batch in batches])
    assert agent.learn.graph is not None, said
    # class draws differ once rounding does: the first updates are the same
    for plain, captured in list(zip(*found, strict=True))[: 8 if precision == "32" else 2]:
        for key in plain:
            assert captured[key] == pytest.approx(plain[key], rel=1e-2, abs=1e-2), key


@needs_gpu
def test_captured_acting_matches_plain_acting():
    found = []
    obs = {k: v[:, 0].cuda() for k, v in agents.batch().items() if k in ("image", "is_first")}
    for backend in (fast.Backend(), fast.choose_backend(True, torch.device("cuda"))):
        agent, state, actions = agents.agent("--device", "cuda"), None, []
        agent.use_backend(backend)
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
    for backend in (fast.Backend(), fast.choose_backend(True, torch.device("cuda"))):
        agent = agents.agent(*flags)
        agent.use_backend(backend)
        torch.manual_seed(1)
        updates = [agent.update(batches[i % 4]) for i in range(300)]
        means.append({k: torch.stack([u[k] for u in updates[200:]]).mean().item() for k in updates[0] if "loss" in k})
    for name, plain in means[0].items():
        assert means[1][name] == pytest.approx(plain, rel=0.05, abs=0.01), name


def test_draws_of_acting_follow_their_probabilities():
    """With the fastest backend of this machine."""
    device, copies, calls = runtime.pick_device("auto"), 256, 20
    agent = agents.agent("--device", str(device))
    agent.use_backend(fast.choose_backend(True, device))
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
    dists._upper.cache_clear()
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
    dists._upper.cache_clear()
