"""Linear probes: their numbers on known features, and the command line on a real run."""

import json

import numpy as np
import pytest
from test_dreamer import PIXELS, run

from run import probe


def made_up(rng: np.random.Generator, episodes: int = 9, length: int = 200) -> dict[str, np.ndarray]:
    n = episodes * length
    data = {name: rng.normal(size=n) for name in ("kept", "half", "dropped")}
    noise = rng.normal(size=n)
    feat = np.stack([data["kept"], data["half"] + noise, *rng.normal(size=(6, n))], 1) @ rng.normal(size=(8, 8))
    return {"feat": feat, "episode": np.repeat(np.arange(episodes), length), "still": np.ones(n), **data}


def test_r2_is_the_share_that_the_features_explain():
    r2 = probe.probe(made_up(np.random.default_rng(0)))
    assert set(r2) == {"kept", "half", "dropped"}  # constants are left out
    assert r2["kept"] > 0.999 and abs(r2["half"] - 0.5) < 0.06 and abs(r2["dropped"]) < 0.05


def test_episodes_are_held_out_whole():
    rng = np.random.default_rng(0)
    data = made_up(rng)
    data["episode_mean"] = np.repeat(rng.normal(size=9), 200) + 1e-3 * rng.normal(size=1800)
    data["feat"] = np.concatenate([data["feat"], np.eye(9)[data["episode"]]], 1)  # tells the episodes apart
    assert probe.probe(data)["episode_mean"] < 0.1


def test_too_few_episodes_are_an_error():
    with pytest.raises(ValueError, match="3 episodes or more, got 2"):
        probe.probe(made_up(np.random.default_rng(0), episodes=2))


def test_images_are_not_predicted():
    image, height = np.zeros((8, 8, 3), np.uint8), np.float32(1)
    assert probe.variables({"image": image, "height": height}) == {"height": 1.0}
    assert [probe.is_vector(value) for value in (image, height, np.zeros(3, np.float32))] == [False, True, True]


def test_means_of_groups():
    r2 = {"height": 0.5, "velocity/0": 0.0, "velocity/1": 1.0, "background/0": 0.2, "background/mean": 0.8}
    expected = {"state": 0.5, "height": 0.5, "velocity": 0.5, "background": 0.2, "background_mean": 0.8}
    assert probe.summarize(r2) == expected


def test_share_of_the_latent_in_the_projection():
    rng = np.random.default_rng(0)
    latent, recurrent = np.eye(4)[rng.integers(4, size=2000)], rng.normal(size=(2000, 3))
    feat = np.concatenate([latent, recurrent], 1)
    projection = np.zeros((2, 7))
    projection[:, :4] = 5.0  # the same for every class: nothing varies with the latent
    projection[0, 4] = 1.0
    assert probe.latent_share(feat, projection, 4) < 1e-9
    projection[1, 0] += 1.0  # one class of probability 1/4: a variance of 3/16, next to 1
    assert abs(probe.latent_share(feat, projection, 4) - (3 / 16) / (3 / 16 + 1)) < 0.02
    assert probe.latent_share(feat, 0 * projection, 4) == 0


@pytest.mark.slow
def test_a_run_is_probed_for_state_and_background(tmp_path):
    flags = [*PIXELS, "--task", "dmc_cartpole_balance_video", "--img_source", "clouds", "--steps", "400"]
    flags += ["--logdir", str(tmp_path)]
    assert run(*flags)[0] == 0
    code, out, err = run("--eval_only", "--probe_state", "--episodes", "3", "--logdir", str(tmp_path))
    assert code == 0, err
    assert "held-out R²: state" in out
    row = json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[-1])
    names = set(row["probe_r2"])
    assert {"position/0", "velocity/1", "background/mean", "background/63"} <= names
    assert all(np.isfinite(v) and v <= 1 for v in row["probe_r2"].values())
    assert 0 < row["mbr_latent_share"] < 1 and "that mbr compares" in out
