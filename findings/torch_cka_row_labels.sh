#!/usr/bin/env bash
# torch_cka gives the similarities of layers the names of other layers. The rows and columns of its matrix are in the
# order in which the layers run. The names that `export` returns with it are in the order in which they are registered:
# a model comes before its parts there, but ends after them. It holds also for layers that the caller lists.
#
# 2026-12-01, torch_cka 0.21, torch 2.13.0 (CPU), matplotlib 3.11.2, tqdm 4.70.1, numpy 2.4.6. An actor of the usual form: `head` is
# made before `encoder`, and used after it. One model against itself, so row and column of a layer are the same. The
# similarity of `encoder.0` (its first layer) and `head`, where `export` has it, and computed for each pair by itself:
#     names: '' head encoder encoder.0 encoder.1 encoder.2
#     all layers, encoder.0 with head: 0.748 (its own: 0.358)
#     all layers, encoder with head: 0.748 (its own: 0.488)
# Model 1 with three layers, given in the order in which they run; model 2 with its head only. Similarity with the head:
#     names: head encoder.0 encoder.2
#     head: 0.358 (its own: 1.000)
#     encoder.0: 0.488 (its own: 0.358)
#     encoder.2: 1.000 (its own: 0.488)
#
# Why it matters: which layer of a world model keeps the state of the simulator, or where two agents differ, is read
# from this matrix. The numbers are right and sit at wrong layers; `plot_results` has no names that would show it.
# A model against itself still has a diagonal of 1, so that check passes.
# Documented: `export` returns "a dict that contains model names, layer names and the CKA matrix".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torch_cka==0.21 matplotlib==3.11.2 tqdm==4.70.1 numpy==2.4.6 2> "$folder/log" \
  || { cat "$folder/log"; exit 1; }
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys
from importlib.metadata import version

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA

torch.set_num_threads(1)


class Actor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(32, 4)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))

    def forward(self, inputs):
        return self.head(torch.relu(self.encoder(inputs)))


torch.manual_seed(0)
weights = Actor().state_dict()
data = DataLoader(TensorDataset(torch.randn(256, 16)), batch_size=64)


def compare(one=None, two=None):
    """Names of both and the matrix; new models with the same weights, as torch_cka leaves its hooks on them."""
    models = [Actor(), Actor()]
    for model in models:
        model.load_state_dict(weights)
    cka = CKA(*models, "one", "two", model1_layers=one, model2_layers=two)
    cka.compare(data)
    result = cka.export()
    return result["model1_layers"], result["model2_layers"], result["CKA"]


def show(names):
    return " ".join(name or "''" for name in names)


def alone(one, two):
    return compare([one], [two])[2].item()


print("torch_cka", version("torch_cka"), "torch", torch.__version__)
names, columns, matrix = compare()
print("names:", show(names))
good = names == columns and torch.allclose(matrix.diagonal(), torch.ones(len(names)), atol=1e-3)
for name in ("encoder.0", "encoder"):
    value, own = matrix[names.index(name), columns.index("head")].item(), alone(name, "head")
    print(f"all layers, {name} with head: {value:.3f} (its own: {own:.3f})")
    good &= abs(value - own) > 0.1
order = ["encoder.0", "encoder.1", "encoder.2", "encoder", "head"]  # the order in which they run; the model is last
good &= all(abs(matrix[i, 4].item() - alone(name, "head")) < 1e-3 for i, name in enumerate(order))
listed = ["encoder.0", "encoder.2", "head"]
names, columns, matrix = compare(listed, ["head"])
print("names:", show(names))
for name in names:
    value, own = matrix[names.index(name), 0].item(), alone(name, "head")
    print(f"{name}: {value:.3f} (its own: {own:.3f})")
    good &= abs(value - own) > 0.1
good &= names == ["head", "encoder.0", "encoder.2"] and columns == ["head"]
good &= all(abs(matrix[i, 0].item() - alone(name, "head")) < 1e-3 for i, name in enumerate(listed))
sys.exit(0 if good else 1)
PYTHON
