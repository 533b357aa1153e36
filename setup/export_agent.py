"""Exports a run's agent to a folder small enough for a repository: `python setup/export_agent.py RUN FOLDER`.

The folder holds config.yaml and a latest.pt with only the networks, rounded to bfloat16: `--eval_only` evaluates it,
training cannot resume from it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from run import checkpoint
from run.config import ACTIONS, load_config, read_config, save_config


def export(run: Path, folder: Path) -> None:
    state = checkpoint.load_checkpoint(run / "latest.pt")
    with checkpoint.our_layout(run / "latest.pt"):
        networks, step = state["agent"]["agent"], state["step"]
        agent = {k: v.bfloat16() if v.is_floating_point() else v for k, v in networks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # complete, even if the run is older than some settings
    config, _ = load_config([], extra=ACTIONS, base=read_config(run / "config.yaml"))
    save_config(config.replace(logdir=load_config([]).logdir), folder / "config.yaml")  # no folder of this machine
    checkpoint.save_checkpoint(folder / "latest.pt", {"agent": {"agent": agent}, "step": step})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError) as error:
        print(f"export_agent.py: {error}", file=sys.stderr)
        sys.exit(2)
