"""Imports checkpoints of the public HRSSM code, for `--from_checkpoint`."""

import re
from pathlib import Path

from torch import Tensor, nn

from run import checkpoint

# The public implementation's parameter names, as regular expressions, and ours.
PUBLIC_NAMES = (
    (r"^_wm\.MBR\.target_encoder\.", "world_model.target_encoder."),
    (r"^_wm\.target_dynamics\.", "world_model.target_dynamics."),
    (r"^_wm\.(MBR\.)?encoder\.", "world_model.encoder."),
    (r"^_wm\.", "world_model."),
    (r"^_task_behavior\.", "behavior."),
    (r"\._slow_value\.", ".slow_value."),
    (r"\b(reward_ema|ema_vals)$", "return_ema"),
    (r"\._cnn\.layers\.(\d+)\.norm\.", lambda m: f".cnn.norms.{int(m[1]) // 3}."),
    (r"\._cnn\.layers\.(\d+)\.", lambda m: f".cnn.convs.{int(m[1]) // 3}."),
    (r"\._mlp\.", ".mlp."),
    (r"\._pre_layers\.", ".layers."),
    (r"dynamics\.W$", "dynamics.initial_deter"),
    (r"\._cell\._layer\.", ".cell.linear."),
    (r"\._cell\._norm\.", ".cell.norm."),
    (r"\._ims_stat_layer\.", ".prior_out."),
    (r"\._obs_stat_layer\.", ".post_out."),
    (r"\._cont_feat_layers\.0\.", ".projection."),
    (r"\._inp_layers\.", ".input."),
    (r"\._img_out_layers\.", ".prior_layer."),
    (r"\._obs_out_layers\.", ".post_layer."),
    (r"\.(input|prior_layer|post_layer)\.([01])\.", lambda m: f".{m[1]}.{'norm' if int(m[2]) else 'linear'}."),
    (r"\.layers\.(\d+)\.", lambda m: f".layers.{int(m[1]) // 3}.{'norm' if int(m[1]) % 3 else 'linear'}."),
    (r"\.(mean_layer|_dist_layer)\.", ".out."),
)


def public_name(name: str) -> str:
    """Our name of a parameter that is `name` in the public HRSSM code, in a compiled run or not."""
    name = name.replace("_orig_mod.", "")
    for pattern, ours in PUBLIC_NAMES:
        name = re.sub(pattern, ours, name)
    return name


def import_checkpoint(agent: nn.Module, path: Path | str) -> list[str]:
    """Loads the tensors that fit from a checkpoint of the public HRSSM code; returns a line for each that does not.

    Raises ValueError if nothing fits.
    """
    theirs = checkpoint.load_checkpoint(Path(path))
    if theirs.keys() >= {"agent", "step"}:
        raise ValueError(
            f"--from_checkpoint {path} is a checkpoint of this code, not of the public one: --logdir resumes its run"
        )
    theirs = theirs.get("agent_state_dict", theirs)
    ours = agent.state_dict()
    found, report = {}, []
    for name, value in theirs.items():
        # the behaviors of the public code contain the world model again
        if not isinstance(value, Tensor) or re.match(r"_task_behavior\.(_orig_mod\.)?_world_model\.|_expl_", name):
            continue
        key = public_name(name)
        if key not in ours:
            report.append(f"{name} {tuple(value.shape)}: no such tensor here")
        elif ours[key].shape != value.shape:
            report.append(f"{name} {tuple(value.shape)}: {key} has shape {tuple(ours[key].shape)}")
        else:
            found[key] = value
    missing = [k for k in ours if k not in found and k != "behavior.return_ema" and not k.startswith("explorer.")]
    named = " ".join(report)
    report += [f"{k} {tuple(ours[k].shape)}: not in the checkpoint" for k in missing if k not in named]
    if not found:
        raise ValueError(f"--from_checkpoint {path}: none of its {len(theirs)} entries is an HRSSM tensor")
    agent.load_state_dict(found, strict=False)
    return report
