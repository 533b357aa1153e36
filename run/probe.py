"""Linear probes from an agent's features to the physics state and to the visual distractor.

Used by `python dreamer.py --eval_only --probe_state --logdir RUN`. A feature that keeps the task's state and drops the
distractor has a high R² for the first and one near 0 for the second.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import networks

EPISODES = 3  # needed: to fit, to choose the penalty, held out
RIDGE = 10.0 ** np.arange(-4, 5)  # penalties tried, for standardized features


class Recorder:
    """Collects the data for probes from the episodes that `evaluate.play` plays, as its `observe`.

    Attributes:
        rows: lists with an entry per step: `feat` (F,), `episode`, and the state variables by name: vector
            observations ("height", "velocity/0", …) and, on tasks with a video or clouds in the background,
            "background/mean" and an 8×8 grayscale thumbnail "background/0" … "background/63".
    """

    def __init__(self, dynamics: networks.RSSM):
        self.dynamics = dynamics
        self.rows: dict[str, list] = {}

    def __call__(self, episodes: list[int | None], obs: list[dict], state: networks.State) -> None:
        feats = self.dynamics.feat(state).float().cpu().numpy()
        for episode, one, feat in zip(episodes, obs, feats, strict=True):
            if episode is not None:
                for key, value in {"feat": feat, "episode": episode, **variables(one)}.items():
                    self.rows.setdefault(key, []).append(value)


def is_vector(value: Any) -> bool:
    """Whether an observation, or its space, is one of numbers to predict."""
    return value.dtype == np.float32 and len(value.shape) <= 2


def variables(obs: dict[str, np.ndarray]) -> dict[str, float]:
    """The numbers to predict for one observation, by name."""
    found = {}
    for key, value in obs.items():
        value = np.asarray(value)
        if not is_vector(value):
            continue
        flat = value.reshape(-1)
        found.update({key if len(flat) == 1 else f"{key}/{i}": float(x) for i, x in enumerate(flat)})
        if key == "background":
            found["background/mean"] = float(flat.mean())
    return found


def probe(rows: Mapping[str, Sequence]) -> dict[str, float]:
    """R² on held-out episodes of a ridge regression from the features to each variable.

    A third of the episodes is held out; another third chooses the penalty. Constant variables are left out.
    R² is relative to the held-out mean, so it is negative if a probe is worse than a constant.

    Args:
        rows: see `Recorder`.
    """
    data = {key: np.asarray(values) for key, values in rows.items()}
    episode = data["episode"]
    numbers = np.unique(episode)
    if len(numbers) < EPISODES:
        raise ValueError(f"probes need {EPISODES} episodes or more, got {len(numbers)}")
    part = (np.searchsorted(numbers, episode)) % 3  # 0 fit, 1 penalty, 2 held out
    names = [k for k in data if k not in ("feat", "episode") and all(data[k][part == p].std() > 1e-6 for p in range(3))]
    if not names:
        return {}
    targets = np.stack([data[name] for name in names], 1).astype(np.float64)
    feat = data["feat"].astype(np.float64)
    feat = (feat - feat[part < 2].mean(0)) / (feat[part < 2].std(0) + 1e-8)

    def fit(rows: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        x, y = feat[rows], targets[rows]
        middle = x.mean(0), y.mean(0)
        x, y = x - middle[0], y - middle[1]
        weight = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ y)
        return weight, middle[1] - middle[0] @ weight

    def score(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        error = ((targets[rows] - feat[rows] @ weight - bias) ** 2).mean(0)
        return 1 - error / targets[rows].var(0)

    scores = np.stack([score(part == 1, *fit(part == 0, penalty)) for penalty in RIDGE])
    best = scores.argmax(0)
    result = {}
    for index in np.unique(best):  # a penalty per variable
        r2 = score(part == 2, *fit(part < 2, RIDGE[index]))
        result.update({names[i]: float(r2[i]) for i in np.flatnonzero(best == index)})
    return {name: result[name] for name in names}


def latent_share(feat: np.ndarray, projection: np.ndarray, latents: int) -> float:
    """How much of what `mbr`, the latent reconstruction loss, compares depends on the latent: 0 to 1.

    The target branch shares the recurrent state of the masked one, so the loss also vanishes if the projection looks at
    that state alone; then the posterior learns nothing from it.

    Args:
        feat: (N, F), the stochastic latent first.
        projection: (P, F), its weight.
        latents: number of features of the stochastic latent.

    Returns the variance over states of the projection of the latent, relative to the sum of this and of that of the
    recurrent state's.
    """
    parts = (slice(None, latents), slice(latents, None))
    latent, recurrent = ((feat[:, part] @ projection[:, part].T).var(0).sum() for part in parts)
    return float(latent / max(latent + recurrent, 1e-12))


def summarize(r2: dict[str, float]) -> dict[str, float]:
    """Mean R² of each observation ("height", "velocity", …), of all state variables, and of the background."""
    groups: dict[str, list[float]] = {}
    for name, value in r2.items():
        group = name.split("/")[0] if name != "background/mean" else "background_mean"
        groups.setdefault(group, []).append(value)
    means = {name: float(np.mean(values)) for name, values in groups.items()}
    state = [value for name, value in r2.items() if not name.startswith("background")]
    return {"state": float(np.mean(state)), **means} if state else means
