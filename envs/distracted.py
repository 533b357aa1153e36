"""DMC in front of natural videos (`_video`, from DBC), and colors and green screens of the DMControl Generalization
Benchmark (color_easy, color_hard, video_easy, video_hard)."""

import pickle
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np

from . import backgrounds
from .dmc import DMC, common, texture
from .notes import note
from .sources import DMCGS_VIDEOS as VIDEOS

# isort: split
import mujoco  # comes after .dmc, which picks the renderer at import

CAMERAS = {"quadruped": "global"}  # differ from the plain tasks', as in the public code of both families
DARK_FLOOR_DOMAINS = ("walker", "hopper", "cheetah", "stacker")  # their floor stays; elsewhere it is background too

STOCK_COLORS = {"grid_rgb1": (0.1, 0.2, 0.3), "self_rgb": (0.7, 0.5, 0.3), "skybox_rgb": (0.4, 0.6, 0.8)}
COLOR_STD = {"color_easy": 0.1, "color_hard": 0.2}
GRID_MARK = (0.2, 0.3, 0.4)  # the floor's lines keep the stock color
COLORS = 100  # colors in a set
GREEN = (51, 204, 51)  # .2 .8 .2


class DistractedDMC(DMC):
    """`dmc_{domain}_{task}_video`: a background replaces the blue pixels of the frame (deep_bisim4control).

    The suite's shared look is changed so that blue means background: see `altered_look`. One background frame
    per agent step, wrapping around, starting from a random one in each episode.

    evaluation, img_source, resource_files, eval_resource_files, total_frames: see `backgrounds.make_source`. assets:
    folder of the downloaded assets; decoded frames are cached in its subfolder `cache`. The other arguments are DMC's.
    """

    def __init__(
        self, domain: str, task: str, *, seed: int = 0, size: tuple[int, int] = (64, 64), image: bool = True,
        evaluation: bool = False, img_source: str = "video", resource_files: str = "", eval_resource_files: str = "",
        total_frames: int = 1000, assets: str = "assets", **kwargs,
    ):  # fmt: skip
        if image:
            self._background = backgrounds.make_source(
                img_source, size, seed=seed, evaluation=evaluation, resource_files=resource_files,
                eval_resource_files=eval_resource_files, total_frames=total_frames, cache=Path(assets) / "cache",
            )  # fmt: skip
        look = {"camera": CAMERAS.get(domain), "assets": altered_look(domain)}
        super().__init__(domain, task, seed=seed, size=size, image=image, evaluation=evaluation, **look, **kwargs)
        self._coverage = Coverage(f"dmc_{domain}_{task}_video")

    def begin_episode(self) -> None:
        if self.image:
            self._background.reset(self.rng)

    def render(self) -> np.ndarray:
        frame = np.ascontiguousarray(super().render())
        self.background = self._background.next()
        mask = blue_mask(frame)
        self._coverage.add(mask)
        return replace(frame, mask, self.background)


class Coverage:
    """Watches how much of the first frames a background replaces, and reports a share of next to nothing."""

    FRAMES, MIN_SHARE = 10, 0.01

    def __init__(self, task: str):
        self.task = task
        self.shares: list[float] = []

    def add(self, mask: np.ndarray) -> None:
        """mask: (H, W) bool, the pixels of a frame that are replaced."""
        if len(self.shares) < self.FRAMES:
            self.shares.append(float(mask.mean()))
            if len(self.shares) == self.FRAMES and np.mean(self.shares) < self.MIN_SHARE:
                share = f"{np.mean(self.shares):.1%}"
                note(f"{self.task}: the distraction replaces {share} of the pixels; its returns are next to clean ones")


def altered_look(domain: str) -> dict[str, bytes]:
    """The suite's skybox.xml and materials.xml with the colors of deep_bisim4control."""
    floor = {"rgb1": ".1 .1 .4", "rgb2": ".2 .2 .8", "markrgb": ".1 .1 .4"}
    decoration = ".7 .5 .3"
    if domain in DARK_FLOOR_DOMAINS:
        floor = {"rgb1": ".1 .1 .1", "rgb2": ".2 .2 .2", "markrgb": ".1 .1 .1"}
        decoration = ".3 .5 .7"
    return {
        "skybox.xml": _edit_xml("skybox.xml", {"texture/skybox": {"markrgb": "0 0 0"}}),
        "materials.xml": _edit_xml(
            "materials.xml", {"texture/grid": floor, "material/decoration": {"rgba": f"{decoration} 1"}}
        ),
    }


def _edit_xml(file: str, edits: dict[str, dict[str, str]]) -> bytes:
    """A shared XML file of the suite with attributes set: edits is {"element/its name": {attribute: value}}."""
    root = ElementTree.fromstring(common.ASSETS[f"./common/{file}"])
    for element, attributes in edits.items():
        tag, name = element.split("/")
        root.find(f"asset/{tag}[@name='{name}']").attrib.update(attributes)
    return ElementTree.tostring(root)


def blue_mask(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) bool: where blue exceeds both red and green."""
    r, g, b = cv2.split(frame)
    return (b > r) & (b > g)


def green_mask(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) bool: hue in [100, 185] degrees, saturation in [80, 255], value in [70, 255] (of 255).

    In integers, exactly. Red is never the largest at these hues, so that value v = max(g, b), and green never the
    smallest. If green is the largest, hue = 60 (2 + (b - r) / (g - min)) >= 100 means g + 2b >= 3r (for b >= r either
    holds); if blue is, hue = 60 (4 + (r - g) / (b - r)) <= 185 means 12g >= 11b + r. Each inequality holds on the
    other's side too, as long as the pixel is not gray, and gray has no saturation: (v - min) / v >= 80 / 255.
    """
    r, g, b = (channel.astype(np.int16) for channel in cv2.split(frame))
    v = np.maximum(g, b)
    return (g + 2 * b >= 3 * r) & (12 * g >= 11 * b + r) & (v >= 70) & (35 * v >= 51 * np.minimum(r, b))


def replace(frame: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The frame (H, W, 3) with the background's pixels where the mask (H, W) is True; in place."""
    return cv2.copyTo(background, mask.view(np.uint8), frame)


class DMCGS(DMC):
    """`dmc_{domain}_{task}_{mode}`, mode one of color_easy, color_hard, video_easy, video_hard.

    color_*: at each reset floor, robot and sky take colors from a set of 100. video_*: the sky, in video_hard the
    floor too, is a green screen on which a video plays, the next one at each reset, one frame per agent step,
    from its first frame, wrapping around.

    assets: folder of the downloaded assets: the sets are read from dmcgb/{mode}.pt in it (or drawn if it is
    missing), the videos from dmcgb/{mode}/*.mp4. The other arguments are DMC's.
    """

    def __init__(
        self, domain: str, task: str, mode: str, *, size: tuple[int, int] = (64, 64), image: bool = True,
        assets: str = "assets", **kwargs,
    ):  # fmt: skip
        if mode not in (*COLOR_STD, *VIDEOS):
            raise ValueError(f"mode {mode}: expected one of {', '.join((*COLOR_STD, *VIDEOS))}")
        self._colors = load_colors(mode, assets) if image and mode in COLOR_STD else None
        self._color_file = f"{mode}.pt" if (Path(assets) / "dmcgb" / f"{mode}.pt").exists() else "drawn colors"
        self._videos = None
        if image and mode in VIDEOS:
            self._names = [f"{mode}/{path.name}" for path in find_videos(mode, assets)]
            self._videos = load_videos(mode, size, assets)
        super().__init__(domain, task, size=size, image=image, camera=CAMERAS.get(domain), **kwargs)
        self._coverage = Coverage(f"dmc_{domain}_{task}_{mode}")
        if self._colors is not None:
            self._templates = _texture_templates()
            self._templates["grid"] = np.roll(self._templates["grid"], self.floor_shift, (0, 1))
        if self._videos is not None:
            for name in ("skybox", "grid") if mode == "video_hard" else ("skybox",):
                self._texture(name)[:] = GREEN

    def begin_episode(self) -> None:
        if self._colors is not None:
            index = self.rng.integers(COLORS)
            self.shown = (self._color_file,)
            self._recolor(**{name: colors[index] for name, colors in self._colors.items()})
        if self._videos is not None:
            number = (self.seed + self._episode) % len(self._videos)
            self._video, self.shown = backgrounds.Frames([self._videos[number]]), (self._names[number],)

    def render(self) -> np.ndarray:
        frame = super().render()
        if self._videos is not None:
            frame = np.ascontiguousarray(frame)
            self.background = self._video.next()
            mask = green_mask(frame)
            self._coverage.add(mask)
            frame = replace(frame, mask, self.background)
        return frame

    def _recolor(self, grid_rgb1: np.ndarray, grid_rgb2: np.ndarray, self_rgb: np.ndarray, skybox_rgb: np.ndarray):
        self.physics.named.model.mat_rgba["self", :3] = self_rgb
        # (256, 3): the color of each level of a template
        level = np.arange(256)[:, None]
        sky = np.where(level == 255, 1.0, np.minimum((level + 0.5) / 254, 1) * skybox_rgb)
        grid = np.select([level == 0, level == 255], [grid_rgb1, grid_rgb2], GRID_MARK)
        for name, colors in (("skybox", sky), ("grid", grid)):
            cv2.applyColorMap(self._templates[name], (255 * colors).astype(np.uint8)[:, None], self._texture(name))
            self.upload(self.physics.model.name2id(name, "texture"))

    def _texture(self, name: str) -> np.ndarray:
        return texture(self.physics.model, self.physics.model.name2id(name, "texture"))


def _texture_templates() -> dict[str, np.ndarray]:
    """The shared textures, (h, w) uint8, their parts distinguished by level.

    skybox: the gradient from 0 to 254, the random marks 255. grid: rgb1 is 0, rgb2 is 255, the lines are between.
    Coloring a template through a table of levels takes milliseconds, compiling a tenth of a second (the sky agrees to
    one level of 255).
    """
    gradient = {"rgb1": " ".join(["0.99608"] * 3), "rgb2": "0 0 0", "markrgb": "1 1 1"}  # .99608 * 255 = 254.0004
    checker = {"rgb1": "0 0 0", "rgb2": "1 1 1", "markrgb": ".5 .5 .5"}
    assets = {
        "skybox.xml": _edit_xml("skybox.xml", {"texture/skybox": gradient}),
        "materials.xml": _edit_xml("materials.xml", {"texture/grid": checker}),
    }
    includes = "".join(f'<include file="{name}"/>' for name in assets)
    model = mujoco.MjModel.from_xml_string(f"<mujoco><asset/>{includes}</mujoco>", assets)
    return {model.texture(i).name: texture(model, i)[..., 0].copy() for i in range(model.ntex)}


def load_colors(mode: str, assets: str) -> dict[str, np.ndarray]:
    """The color set of color_easy or color_hard: {grid_rgb1, grid_rgb2, self_rgb, skybox_rgb: (100, 3) in [0, 1]}.

    The benchmark's own, {assets}/dmcgb/{mode}.pt, if that file exists, else `draw_colors`.
    """
    path = Path(assets) / "dmcgb" / f"{mode}.pt"
    if not path.exists():
        return draw_colors(mode)
    try:
        entries = _read_pt(path)
        colors = {name: np.array([entry[name] for entry in entries]) for name in (*STOCK_COLORS, "grid_rgb2")}
        good = all(value.shape == (COLORS, 3) and value.min() >= 0 for value in colors.values())
    except Exception as error:  # pickle raises almost anything for a damaged file
        raise ValueError(f"{path}: not a color set of the benchmark ({error}); {_download()}") from error
    if not good:
        raise ValueError(f"{path}: not a color set of the benchmark (expected {COLORS} colors); {_download()}")
    return colors


def draw_colors(mode: str) -> dict[str, np.ndarray]:
    """A color set drawn like the benchmark's: stock + N(0, std^2) clipped to [0, 1]; always the same one."""
    rng = np.random.default_rng(list(COLOR_STD).index(mode))
    noise = {name: rng.normal(0, COLOR_STD[mode], (COLORS, 3)) for name in STOCK_COLORS}
    colors = {name: np.clip(stock + noise[name], 0, 1) for name, stock in STOCK_COLORS.items()}
    return {**colors, "grid_rgb2": np.clip(colors["grid_rgb1"] + 0.1, 0, 1)}


class _NumpyUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain Python values, and runs nothing else that a file names."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct":  # numpy 2 moved it
            return np.zeros(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in it")


def _read_pt(path: Path):
    """The object in a file that torch.save wrote before torch 1.6, without torch, which env processes do not load."""
    with open(path, "rb") as file:
        for _ in range(3):  # magic number, protocol version, system
            _NumpyUnpickler(file).load()
        return _NumpyUnpickler(file).load()


def find_videos(mode: str, assets: str) -> list[Path]:
    """The files of video_easy or video_hard, in the order of their numbers."""
    folder = Path(assets) / "dmcgb" / mode
    files = sorted(folder.glob("*.mp4"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise FileNotFoundError(f"{mode} needs its {VIDEOS[mode]} videos, none in {folder.absolute()}; {_download()}")
    if len(files) < VIDEOS[mode]:
        note(f"{folder}: {len(files)} of {VIDEOS[mode]} videos: returns are not the benchmark's; {_download()}")
    return [path.absolute() for path in files]


def load_videos(mode: str, size: tuple[int, int], assets: str) -> list[np.ndarray]:
    """The videos of video_easy or video_hard at frame size, each (N, H, W, 3) uint8, in the order of their numbers."""
    clips = [[path] for path in find_videos(mode, assets)]
    return backgrounds.load_clips(clips, size, cache=Path(assets) / "cache")


def _download() -> str:
    return "python setup/download_assets.py dmcgb downloads them"
