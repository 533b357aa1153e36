"""figures/loss_gradients.py: the gradients of the losses add up to that of their sum; the table of a real run."""

import sys

import agents
import numpy as np
import pytest
import torch
from test_dreamer import VECTORS

import dreamer
import models
from figures import loss_gradients

OWN = {
    "hrssm": {"mbr", "simsr"},
    "dreamerv3": {"decoder"},
    "repo": {"repo"},
    "r2dreamer": {"barlow"},
    "dreamerpro": {"swav", "temp", "norm"},
}


@pytest.mark.parametrize("method", OWN)
def test_gradients_add_up_to_that_of_the_sum(method):
    agent = agents.agent(base=("dmc_vision", *([] if method == "hrssm" else [method])))
    model, batch = agent.world_model, agents.batch()
    agent.update(batch)  # output layers of reward and value heads start at 0
    torch.manual_seed(1)
    found = loss_gradients.loss_gradients(model, batch)
    kl = set() if method == "repo" else {"dyn", "rep"}
    assert found.keys() == {"reward", "cont"} | kl | OWN[method]

    torch.manual_seed(1)
    data = models.preprocess(batch)
    total, _, _ = model.loss(data, model.draw_mask(data))
    assert sum(value for value, _ in found.values()) == pytest.approx(total.item(), rel=1e-5)
    for part, kept in (("encoder", lambda name: True), ("dynamics", lambda name: not name.startswith("projection"))):
        params = [p for name, p in getattr(model, part).named_parameters() if kept(name)]
        grads = torch.autograd.grad(total, params, retain_graph=True, materialize_grads=True)
        whole = torch.cat([grad.flatten() for grad in grads])
        parts = {name: grads[part] for name, (_, grads) in found.items()}
        unreached = {name for name, grad in parts.items() if grad.norm() == 0}
        assert unreached == {("dreamerpro", "dynamics"): {"swav"}}.get((method, part), set())
        torch.testing.assert_close(sum(parts.values()), whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_a_loss_without_weight_is_left_out():
    agent = agents.agent("--mbr_scale", "0", "--dyn_scale", "0", "--rep_scale", "0")
    assert loss_gradients.loss_gradients(agent.world_model, agents.batch()).keys() == {"reward", "cont", "simsr"}


@pytest.mark.slow
def test_table_of_a_run(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    flags = ["--parallel", "False", "--device", "cpu", "--steps", "240", "--logdir", str(run)]
    assert dreamer.main([*VECTORS, *flags]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["loss_gradients.py", str(run), "--batches", "2"])
    loss_gradients.main()
    title, _, head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert title == f"{run}, step 240"
    assert head == "| loss | value | encoder | dynamics | share, encoder | share, dynamics |"
    assert [row.split(" | ")[0] for row in rows] == ["| dyn", "| rep", "| reward", "| cont", "| mbr", "| simsr"]
    norms = np.array([[float(cell) for cell in row.strip("| ").split(" | ")[2:]] for row in rows])
    # the larger the norm of a loss's gradient, the larger its share; the largest makes up most of the sum
    assert (norms[:, :2].argmax(0) == norms[:, 2:].argmax(0)).all() and (norms[:, 2:].max(0) > 0.5).all()
    for problem in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(sys, "argv", ["loss_gradients.py", str(problem)])
        with pytest.raises(SystemExit, match="2"):
            loss_gradients.main()
        assert capsys.readouterr().err == (
            f"loss_gradients.py: {problem} is not the folder of a run with its replay (config.yaml, train_eps)\n"
        )
