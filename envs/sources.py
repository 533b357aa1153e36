"""Names of the backgrounds of `_video` tasks, and how many videos the benchmarks show."""

IMG_SOURCES = ("video", "images", "clouds", "noise", "color")
DMCGS_VIDEOS = {"video_easy": 10, "video_hard": 100}  # {mode: all of them}
DAVIS_VIDEOS = {0.025: 2, 0.05: 2, 0.1: 4, 0.15: 6, 0.2: 8, 0.3: 60, 0.4: 60, 0.5: 60}  # {intensity: the first n}
