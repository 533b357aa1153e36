#!/usr/bin/env bash
# x-transformers generates other tokens than its network chooses, if the network shifts tokens. `shift_tokens=1` mixes
# half of the features of the token before into each token. `generate` caches keys and values by default and passes
# the newest token alone: its neighbor is then missing, and 0 is taken in its place, in each layer. No error, no warning.
#
# 2026-11-30, x-transformers 2.31.10, torch 2.13.0 (CPU), numpy 2.4.6. Sequences of which each symbol is the sum of the
# two before, modulo 8. Two layers, rotary positions, 250 updates; greedy (temperature 0), 16 symbols after 4. Seen:
#     plain (training loss 0.15)
#         generate, default: 100.0% the network's own choice, 100.0% right
#         generate, cache_kv=False: 100.0% the network's own choice, 100.0% right
#     shift_tokens=1 (training loss 0.12)
#         generate, default: 34.4% the network's own choice, 27.1% right
#         generate, cache_kv=False: 100.0% the network's own choice, 100.0% right
# ("Own choice": the argmax of one pass through the network over the whole sequence, which is what it is trained by. The
# loss that is left is that of the two first symbols, which are random. `can_cache_kv` of the network says True.)
#
# Documentation: the README recommends `shift_tokens = 1` for autoregressive models, and says nothing of generation or
# of a cache. Networks that cannot cache (memory tokens, recycling) are marked, and `generate` then does without.
#
# Why it matters: the package is a usual base of transformer world models, which are trained on whole sequences and
# imagine token by token. Their loss and their one-step predictions are right, and what they imagine is not: it looks
# like compounding errors of the model. A comparison with and without the shift turns out wrong.
# Expected before: the cache saves time and changes nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 x-transformers==2.31.10 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import sys

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.set_num_threads(1)
SYMBOLS, PROMPT, LENGTH = 8, 4, 16
seen = {}


def sequences(count):
    """Each symbol is the sum of the two before, modulo 8: two symbols tell all that follow."""
    rows = torch.randint(SYMBOLS, (count, 2))
    while rows.shape[1] < PROMPT + LENGTH:
        rows = torch.cat([rows, (rows[:, -1:] + rows[:, -2:-1]) % SYMBOLS], dim=1)
    return rows


for name, options in (
    ("plain", {}),
    ("shift_tokens=1", {"shift_tokens": 1}),
):
    torch.manual_seed(0)
    decoder = Decoder(dim=32, depth=2, heads=2, attn_dim_head=32, rotary_pos_emb=True, **options)
    network = TransformerWrapper(num_tokens=SYMBOLS, max_seq_len=PROMPT + LENGTH, attn_layers=decoder)
    model = AutoregressiveWrapper(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss = model(sequences(32))
        loss.backward()
        optimizer.step()
    model.eval()
    rows = sequences(256)
    with torch.no_grad():
        for kind, more in (("default", {}), ("cache_kv=False", {"cache_kv": False})):
            made = model.generate(rows[:, :PROMPT], LENGTH, temperature=0.0, **more)
            own = network(torch.cat([rows[:, :PROMPT], made], dim=1))[:, PROMPT - 1 : -1].argmax(-1)
            seen[name, kind] = (made == own).double().mean().item(), (made == rows[:, PROMPT:]).double().mean().item()
    print(f"{name} (training loss {loss.item():.2f})")
    for kind in ("default", "cache_kv=False"):
        print(f"    generate, {kind}: {seen[name, kind][0]:.1%} the network's own choice, {seen[name, kind][1]:.1%} right")
good = all(min(seen[name, "cache_kv=False"]) > 0.97 for name in ("plain", "shift_tokens=1"))
good &= min(seen["plain", "default"]) > 0.97 and max(seen["shift_tokens=1", "default"]) < 0.7
sys.exit(0 if good else 1)
PYTHON
