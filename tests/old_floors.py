"""Frames of the suite in few numbers: run with mujoco 3.3.0 and dm_control 1.0.28, it prints the lines of FRAMES.

pip install --target OLD mujoco==3.3.0 dm_control==1.0.28
PYTHONPATH=OLD MUJOCO_GL=egl python tests/old_floors.py
"""

import numpy as np

TASKS = {
    "ball_in_cup": "catch", "cheetah": "run", "finger": "spin", "fish": "swim", "hopper": "hop", "lqr": "lqr_2_1",
    "point_mass": "easy", "reacher": "easy", "walker": "walk",
}  # fmt: skip
FRAMES = {  # what `shrink` makes of frames of mujoco 3.3.0, in hexadecimal
    "ball_in_cup": (
        "474747464646464640403f47474041413b3a3a4141393a3a3634333232333435"
        "2f2e2d32312d2e2e403f3f40595a5b5b65656562464848482f2e2e2d26262728"
    ),
    "cheetah": (
        "64656465656565645e5f5e5f5f5f605e585959595958585851525b6060645b52"
        "4b4b655251624b4a3f4356404356403d31363f4137352c283837383836373537"
    ),
    "finger": (
        "474747464646464640403f40404342413b3a413a3a705d3a363a5c39396e4c35"
        "2f2e532d2c3a312e403f544058565b5b65656662474048482f2e302d26262728"
    ),
    "fish": (
        "3536383b5553504f363a3c3f5e595550383c424768615953393f475775685e54"
        "545e687557473f395359616847423c385055595e3f3c3a364f50535439383635"
    ),
    "hopper": (
        "64656465656565645e5f5e5f5f5f605e5859595f645858585152525e5d515252"
        "4b4b4a53544a4b4a4344444b4b444545333337414c3f37293b41454c3a2e2b28"
    ),
    "lqr": (
        "4d4e4d4e4e4e4d4d4847474747474747413c302c2d2b3340382f2f4b39383739"
        "4b525e873835302e4d535a5b48423b343d3f4b615e5b544e3a3c525b5956524d"
    ),
    "point_mass": (
        "47494b50706b6861494a4d50777370684b4d52557d78736b5050555c857d7770"
        "70777d855c5550506b73787d55524d4b68707377504d4a4961686b70504b4947"
    ),
    "reacher": (
        "47484a506f696560484b4d50746e6a654a4d52557c756e695050556b8a867e70"
        "6f747c8670635e52696e757c55524d4a656a6e74504d4b486065696f504a4847"
    ),
    "walker": (
        "42424252524243433d3c3c51513c3d3c3836364a4b36363732312f4343303131"
        "2e2c2b3c3d2d2e2c4f3a3c47656560404a484b54725b594f53595c6349444546"
    ),
}


def shrink(physics) -> np.ndarray:
    """(8, 8) gray levels of the model's first pose: means of 8x8 pixels of a frame of 64x64."""
    with physics.reset_context():
        physics.data.qpos[:] = physics.model.qpos0
    return physics.render(64, 64, camera_id=0).reshape(8, 8, 8, 8, 3).mean((1, 3, 4))


if __name__ == "__main__":
    from dm_control import suite

    for domain, task in TASKS.items():
        physics = suite.load(domain, task, task_kwargs={"random": 0}).physics
        print(f'    "{domain}":\n    "{np.rint(shrink(physics)).astype(np.uint8).tobytes().hex()}",')
