#!/usr/bin/env bash
# A feature of torchvision's `create_feature_extractor` depends on which others are asked for. It keeps the tensor of a
# node and goes on; where the next layer works in place, as the ReLUs of torchvision's ResNet, VGG and DenseNet do, the
# output of "bn1" is that of the ReLU. Only as the last node of the list, behind which nothing runs, it is its own.
#
# 2026-11-30, torchvision 0.28.0, torch 2.13.0 (CPU), numpy 2.4.6. Models without weights, in eval mode; right is what a
# forward hook copies. Seen:
#     resnet18, ['bn1']: 52% of bn1 negative (right: 52%)
#     resnet18, ['bn1', 'layer4']: 0% of bn1 negative (right: 52%)
#     resnet18, all nodes, wrong: 0 of 20 Conv2d, 9 of 20 BatchNorm2d, 0 of 1 Linear
#     vgg11_bn, all nodes, wrong: 0 of 8 Conv2d, 8 of 8 BatchNorm2d, 2 of 3 Linear
#     densenet121, all nodes, wrong: 0 of 120 Conv2d, 120 of 121 BatchNorm2d, 0 of 1 Linear
#     convnext_tiny, all nodes, wrong: 0 of 21 Conv2d, 0 of 18 LayerNorm, 0 of 37 Linear
#
# Why it matters: probes and similarities that compare the layers of a pretrained encoder find that ReLU adds nothing
# to the normalization, since they get one tensor twice, and a layer probed alone differs from itself probed in a list.
# Features before the ReLU, which distillation and perceptual losses use, lose their negative half.
# Expected before: the output of each named node; its docstring says "the requested outputs as values". It has notes on
# how nodes are named and on train and eval mode, none on layers in place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 torchvision==0.28.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import glob
import importlib.util
import os
import sys

import torch

try:
    for path in glob.glob(os.path.join(os.path.dirname(importlib.util.find_spec("torchvision").origin), "_C*.so")):
        torch.ops.load_library(path)
except OSError:  # operators for CUDA beside a torch for the CPU: only their names are needed, by the import
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

torch.set_num_threads(1)
torch.manual_seed(0)
images = torch.rand(4, 3, 64, 64)


@torch.no_grad()
def outputs(model):
    """What each leaf module returns, copied before the next one runs."""
    kept, handles = {}, []
    for name, module in model.named_modules():

        def keep(module, inputs, output, name=name):
            kept.setdefault(name, output.clone())

        if not list(module.children()):
            handles.append(module.register_forward_hook(keep))
    model(images)
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def features(model, names):
    return create_feature_extractor(model, names)(images)


resnet = models.resnet18().eval()
truth = outputs(resnet)["bn1"]
good = True
for names in (["bn1"], ["bn1", "layer4"]):
    seen = features(resnet, names)["bn1"]
    share, right = ((tensor < 0).float().mean().item() for tensor in (seen, truth))
    print(f"resnet18, {names}: {share:.0%} of bn1 negative (right: {right:.0%})")
    good &= torch.equal(seen, truth) == (len(names) == 1)
good &= torch.equal(seen, truth.relu()) and bool((truth < 0).any())

wrong = {}
for name in ("resnet18", "vgg11_bn", "densenet121", "convnext_tiny"):
    model = getattr(models, name)().eval()
    right = outputs(model)
    names = [node for node in get_graph_node_names(model)[1] if node in right]
    seen = features(model, names)
    for kind in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.LayerNorm, torch.nn.Linear):
        nodes = [node for node in names if type(model.get_submodule(node)) is kind]
        if nodes:
            wrong[name, kind.__name__] = sum(not torch.equal(seen[node], right[node]) for node in nodes), len(nodes)
    counts = (f"{count[0]} of {count[1]} {kind}" for (of, kind), count in wrong.items() if of == name)
    print(f"{name}, all nodes, wrong:", ", ".join(counts))
good &= all(wrong[name, "BatchNorm2d"][0] > 5 for name in ("resnet18", "vgg11_bn", "densenet121"))
good &= not any(count[0] for (name, kind), count in wrong.items() if kind == "Conv2d" or name == "convnext_tiny")
sys.exit(0 if good else 1)
PYTHON
