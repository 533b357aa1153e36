"""Prediction videos: how well a decoder shows the states of the world model."""

import torch
from torch import Tensor

import models


@torch.no_grad()
def video_pred(model: models.WorldModel, batch: dict[str, Tensor], context: int = 5) -> Tensor:
    """Prediction video of replay rows (B, T, ...): truth, reconstruction, open-loop prediction.

    Three rows of whole images, then, with masks, three of masked ones. The open-loop prediction sees `context`
    steps, then only the recorded actions.

    Returns:
        (T, rows·H, B·W, 3) uint8, the sequences side by side.
    """
    data, key = models.preprocess(batch), model.encoder.cnn_keys[0]
    mask = model.draw_mask(data)
    rows = []
    for seen in [data] if mask is None else [data, model.apply_mask(data, mask)]:
        post, _ = model.dynamics.observe(model.encoder(seen), data["action"], data["is_first"])
        # (B, T, H, W, 3)
        reconstruction = model.decoder(model.dynamics.feat(post))[key]
        state, feats = {k: v[:, context - 1] for k, v in post.items()}, []
        for action in data["action"][:, context:].unbind(1):
            state = model.dynamics.img_step(state, action)
            feats.append(model.dynamics.feat(state))
        prediction = model.decoder(torch.stack(feats, 1))[key]
        rows += [seen[key], reconstruction, torch.cat([reconstruction[:, :context], prediction], 1)]
    # (B, T, rows·H, W, 3) to (T, rows·H, B·W, 3)
    frames = torch.cat(list(torch.cat(rows, 2)), 2)
    return ((frames + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
