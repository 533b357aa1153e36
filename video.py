"""Video files: frames to MP4 or GIF."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def enlarge(frame: np.ndarray, zoom: int) -> np.ndarray:
    """Each pixel as zoom x zoom pixels: (H, W, 3) → (zoom·H, zoom·W, 3)."""
    return frame.repeat(zoom, axis=0).repeat(zoom, axis=1)


def write(path: Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Writes (H, W, 3) uint8 frames as a video that browsers play (mp4: H.264 in yuv420p); returns their number."""
    if path.suffix.lower() == ".gif":
        frames = list(frames)
        path.write_bytes(encode_gif(frames, fps))
        return len(frames)

    import imageio_ffmpeg

    writer, count = None, 0
    try:
        for frame in frames:
            height, width = frame.shape[:2]
            # yuv420p halves the colors' resolution: an odd side gets its last line twice
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if writer is None:
                options = {"codec": "libx264", "pix_fmt_out": "yuv420p", "macro_block_size": 2, "quality": 8}
                size = frame.shape[1::-1]
                writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, ffmpeg_log_level="error", **options)
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
            count += 1
    finally:
        if writer is not None:
            writer.close()
    return count


def encode_gif(frames: np.ndarray, fps: float = 20) -> bytes:
    """An endless animated GIF of uint8 frames (T, H, W, 3), which TensorBoard and browsers show moving."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()
