"""Downloads the files that some tasks need: `python setup/download_assets.py dmcgb davis --to assets`.

    dmcgb        colors and videos of the DMC-GS tasks (color_easy, color_hard, video_easy, video_hard)
    davis        DAVIS-2017 training videos, the background of the distracting_cs tasks
    matterport   scans behind the Realistic ManiSkill tasks (rms_*)
    maniskill2   ManiSkill2's own models, for rms_turn_faucet, rms_assembling_kits and rms_panda_avoid_obstacles
    kinetics     no download: shrinks a folder of your own videos (--videos), for the _video tasks

Each file is verified, and gets its final name only once it is complete. Existing files are skipped; after an
interruption, the same command resumes where it stopped.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tqdm import tqdm

DAVIS = "https://data.vision.ee.ethz.ch/csergi/share/davis"
DAVIS_ARCHIVE = "DAVIS-2017-trainval-480p.zip"
DAVIS_SEQUENCES = 60  # size of the training split
MATTERPORT_ID = "1SLh1WOmYn5qzoDUygtlQ89SS8aBSenP0"  # ID of the file on Google Drive
MANISKILL2 = "https://storage1.ucsd.edu/datasets/ManiSkill2022-assets"
MANISKILL2_UIDS = ("assembling_kits", "panda_avoid_obstacles", "partnet_mobility/5021")
VIDEO_SUFFIXES = set(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm "
    ".rmvb .ts .vob .webm .wmv .y4m".split()
)
# In an unpacked folder: {file: size}; in that of kinetics: {file: [original, its size, its time, --short_side]}
CONTENTS = ".contents.json"

TRIES = 5  # attempts in a row without a new byte
DAMAGED_TRIES = 3  # complete files that fail their check
REQUESTS = 100  # maximum for one file
TIMEOUT = 30  # seconds without a byte
MIN_RATE = 1000  # bytes per second, averaged over RATE_SECONDS
RATE_SECONDS = 60
BLOCK = 1 << 18


class AssetError(Exception):
    """A download that failed, in one line."""


class UserError(AssetError):
    """A flag or a folder that the user must change, in one line."""


class Damaged(Exception):
    """A file has the wrong content; str() says why."""


class TooSlow(Exception):
    """A server sends fewer than MIN_RATE bytes per second."""


# ValueError: headers and URLs that urllib cannot parse
NETWORK_ERRORS = (
    TooSlow, urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError, ValueError
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- one file


def fetch(url: str, path: Path, check: Callable[[Path], None], label: str, wait: float) -> None:
    """Downloads `url` to `path`, resuming from the `path`.part of an earlier call.

    check(file) raises Damaged for wrong content, which is fetched again. wait: seconds before the second attempt,
    doubling with each. Raises AssetError after TRIES attempts in a row that got nothing or were too slow, DAMAGED_TRIES
    damaged files, REQUESTS attempts, or a permanent error such as 404.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    largest, idle, damaged = _size(part), 0, 0
    for _ in range(REQUESTS):
        try:
            with at_a_rate(lambda: _size(part), RATE_SECONDS):
                _transfer(url, part, label)
            check(part)
            return os.replace(part, path)
        except Damaged as error:
            part.unlink(missing_ok=True)
            largest, damaged, reason = 0, damaged + 1, str(error)
            if damaged == DAMAGED_TRIES:
                raise AssetError(f"{url}: {reason} ({damaged} times); the source has changed") from None
        except NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                reason = f"the server returned {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise AssetError(f"{url}: {reason}") from None
            got_more = _size(part) > largest and not isinstance(error, TooSlow)
            largest, idle = max(largest, _size(part)), 1 if got_more else idle + 1
        if idle == TRIES:
            raise AssetError(f"{url}: {reason} ({idle} times in a row); the same command resumes from here")
        tqdm.write(f"{label}: {reason}; trying again", file=sys.stderr)
        time.sleep(min(30, wait * 2 ** (idle + damaged - 1)))
    raise AssetError(f"{url}: {reason} (after {REQUESTS} requests); the same command resumes from here")


@contextlib.contextmanager
def at_a_rate(size: Callable[[], int], seconds: float) -> Iterator[None]:
    """Raises TooSlow within it if size() grows by less than MIN_RATE bytes per second over `seconds`.

    By the alarm signal, which also ends the wait for a server that sends its headers byte by byte.
    """
    held = size()

    def look(*_) -> None:
        nonlocal held
        before, held = held, size()
        if before <= held < before + MIN_RATE * seconds:  # a smaller file was restarted
            raise TooSlow(f"fewer than {MIN_RATE} bytes per second in {seconds:g} s")

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _transfer(url: str, part: Path, label: str) -> None:
    """One request: appends the missing bytes to `part`. Raises a network error if the response ends early."""
    held = _size(part)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "hrssm-assets"})
    if held:
        request.add_header("Range", f"bytes={held}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{held}":
            return  # it is complete
        raise Damaged("its .part is not the beginning of the file") from None
    with answer:
        if answer.status == 206:
            content_range = answer.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", content_range)
            if match is None or int(match[1]) != held:
                raise Damaged("the server sent another range than the requested one")
            total = int(match[2])
        else:  # the whole file, regardless of the requested range
            held = 0
            length = answer.headers.get("Content-Length", "")
            total = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        bar = tqdm(desc=label, total=total, initial=held, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, open(part, "ab" if held else "wb") as file:
            while block := answer.read1(BLOCK):
                file.write(block)
                file.flush()  # received bytes are kept, whenever this process ends
                bar.update(len(block))
            os.fsync(file.fileno())
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def git_blob(path: Path) -> str:
    """Git's id of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % path.stat().st_size)).hexdigest()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expect(name: str, wanted: str, digest: Callable[[Path], str]) -> Callable[[Path], None]:
    """A check that digest(file) is `wanted`."""

    def check(path: Path) -> None:
        if (found := digest(path)) != wanted:
            raise Damaged(f"{name} is {found}, expected {wanted}")

    return check


# ------------------------------------------------------------------------------------------------------------- archives


def members(archive: Path) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    """(name, open) of each file in a zip or tar. Raises Damaged for any other file or a damaged one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir():
                    yield info.filename, partial(file.open, info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            for info in file:
                if info.isfile():
                    yield info.name, partial(file.extractfile, info)
    else:
        raise Damaged("is not a zip or tar archive")


def check_archive(archive: Path) -> None:
    """Reads all of it, which verifies the CRCs of a zip or of a compressed tar."""
    with _archive_errors():
        for _, opened in members(archive):
            with opened() as content:
                while content.read(BLOCK):
                    pass


# Errors from unpacking damaged content, besides an OSError without a number: impossible sizes and names.
CONTENT_ERRNOS = {errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR}


@contextlib.contextmanager
def _archive_errors() -> Iterator[None]:
    """Turns the libraries' errors for damaged, encrypted or unknown content, of almost any type, into Damaged."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in CONTENT_ERRNOS:
            raise  # the disk's error, not the file's
        raise Damaged(f"is a damaged archive ({str(error) or type(error).__name__})") from None


def unpack(archive: Path, folder: Path, names: dict[str, str], check: Callable[[Path], None] | None = None) -> None:
    """Writes the members of `archive` in `names` {member: path in folder}; `folder` appears atomically.

    check(file) raises Damaged for a file with wrong content.
    """
    building = folder.with_name(folder.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    sizes = {}
    with _archive_errors():
        bar = tqdm(members(archive), desc=f"unpacking {folder.name}", unit=" files", leave=False, disable=None)
        for name, opened in bar:
            if name not in names:
                continue
            target = building / names[name]
            if not target.resolve().is_relative_to(building.resolve()):
                raise Damaged(f"has a member outside its folder: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened() as content, open(target, "wb") as file:
                shutil.copyfileobj(content, file)
            if check is not None:
                check(target)
            sizes[names[name]] = target.stat().st_size
    (building / CONTENTS).write_text(json.dumps(sizes))
    os.sync()  # thousands of small files: their content is on disk before the folder gets its name
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(building, folder)


def read_contents(folder: Path) -> dict[str, Any]:
    """The list of a folder's files; empty if it is absent or damaged."""
    try:
        found = json.loads((folder / CONTENTS).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_whole(folder: Path) -> bool:
    """Whether `unpack` made `folder` and all its files still exist."""
    sizes = read_contents(folder)
    return bool(sizes) and all((folder / name).exists() and _size(folder / name) == sizes[name] for name in sizes)


def install(
    archive: Path,
    folder: Path,
    get: Callable[[], None],
    choose: Callable[[Iterable[str]], dict[str, str]],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Fetches an archive by get() and unpacks the members that choose(names) picks, unless `folder` is complete.

    The archive is kept until its content is in place, so that nothing is fetched again after an interrupted unpacking.
    """
    if is_whole(folder):
        return report(f"{folder}: there already")
    if folder.exists() and not (folder / CONTENTS).exists():
        raise UserError(f"{folder} was not made by this script and may be yours; move it away to have it fetched")
    if not archive.exists():
        get()
    try:
        with _archive_errors():
            names = choose([name for name, _ in members(archive)])
        unpack(archive, folder, names, check)
    except Damaged as error:
        archive.unlink()
        raise AssetError(f"{archive.name} {error}; it was removed, and the same command fetches it again") from None
    archive.unlink()
    report(f"{folder}: {len(names)} files")


# ------------------------------------------------------------------------------------------------------------- the sets


def dmcgb(folder: Path, source: str | None, wait: float, **_) -> None:
    """The files of dmcgb_manifest.json, each verified by its git blob id, existing ones too."""
    manifest = json.loads((Path(__file__).parent / "dmcgb_manifest.json").read_text())
    if source is None:
        raw = manifest["source"].replace("https://github.com/", "https://raw.githubusercontent.com/")
        source = f"{raw}/{manifest['commit']}/{manifest['folder']}"
    fetched = 0
    files = manifest["files"].items()
    for number, (name, blob) in enumerate(files, 1):
        path = folder / name
        if path.exists():
            if git_blob(path) == blob:
                continue
            report(f"{path}: does not match the manifest, fetching it again")
        label = f"[{number}/{len(files)}] {name}"
        fetch(f"{source}/{name}", path, expect("its git blob id", blob, git_blob), label, wait)
        fetched += 1
    report(f"{folder}: {len(files)} files, {fetched} fetched now")


def davis(folder: Path, source: str | None, wait: float, **_) -> None:
    """The 60 sequences of DAVIS-2017's training split as DAVIS/JPEGImages/480p/SEQUENCE/*.jpg, and their list."""

    def choose(names: Iterable[str]) -> dict[str, str]:
        split = "DAVIS/ImageSets/2017/train.txt"
        with zipfile.ZipFile(archive) as file:
            if split not in file.namelist():
                raise Damaged(f"lacks {split}")
            sequences = file.read(split).decode().split()
        wanted = {f"DAVIS/JPEGImages/480p/{sequence}" for sequence in sequences}
        frames = [name for name in names if name.endswith(".jpg") and str(PurePosixPath(name).parent) in wanted]
        held = {str(PurePosixPath(name).parent) for name in frames}
        if len(held) != DAVIS_SEQUENCES:
            raise Damaged(f"holds {len(held)} training sequences, expected {DAVIS_SEQUENCES}")
        return {name: name for name in [split, *frames]}

    archive = folder.with_name(DAVIS_ARCHIVE)
    get = partial(fetch, f"{source or DAVIS}/{DAVIS_ARCHIVE}", archive, check_archive, DAVIS_ARCHIVE, wait)
    install(archive, folder, get, choose)


def matterport(folder: Path, source: str | None, **_) -> None:
    """The scans, as *.glb in one folder. From Google Drive, through gdown."""

    def choose(names: Iterable[str]) -> dict[str, str]:
        paths = {name: PurePosixPath(name) for name in names if name.endswith(".glb") and "__MACOSX" not in name}
        if not paths:
            raise Damaged("holds no scan (*.glb)")
        same = Counter(path.name for path in paths.values())
        return {name: path.name if same[path.name] == 1 else "_".join(path.parts) for name, path in paths.items()}

    archive = folder.with_name("matterport.archive")
    url = f"{source or 'https://drive.google.com'}/uc?id={MATTERPORT_ID}"
    install(archive, folder, partial(fetch_by_gdown, url, archive), choose, check_glb)


def fetch_by_gdown(url: str, path: Path) -> None:
    """Like `fetch`, for Google Drive, which asks for a confirmation before large files."""
    import gdown
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)

    def parts() -> list[Path]:
        return [path, *path.parent.glob(f"{path.name}*.part")]

    options = {"resume": True, "retries": TRIES, "timeout": TIMEOUT, "use_cookies": False}
    options["quiet"] = not sys.stderr.isatty()
    resumable = (requests.ConnectionError, requests.Timeout, TooSlow)
    for attempt in (1, 2):
        try:
            with at_a_rate(lambda: sum(map(_size, parts())), 10 * RATE_SECONDS):  # gdown writes 0.5 MB at a time
                gdown.download(url, str(path), **options)
            return check_archive(path)
        except Exception as error:  # gdown raises almost anything for unknown pages and headers
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                raise  # the disk's error, not the file's
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempt == 1 and not isinstance(error, resumable) and any(file.exists() for file in parts()):
                for file in parts():  # they may be the reason: once more from the start
                    file.unlink(missing_ok=True)
                continue
            path.unlink(missing_ok=True)
            raise AssetError(f"{url}: {reason}; the same command tries again") from None


def check_glb(path: Path) -> None:
    """A binary glTF declares its own length."""
    with open(path, "rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[:4] != b"glTF" or struct.unpack("<I", head[8:])[0] != path.stat().st_size:
        raise Damaged(f"holds {path.name}, which is not a complete .glb file")


def maniskill2(folder: Path, source: str | None, wait: float, **_) -> None:
    """ManiSkill2's models for the rms_* tasks, with the URLs and hashes of its own downloader."""
    try:
        from mani_skill2 import ASSET_DIR
        from mani_skill2.utils import download_asset
    except ImportError as error:
        raise AssetError(
            f"maniskill2 needs mani_skill2 ({error}), which requires Python 3.11 and numpy below 1.24; "
            "the rms_* tasks do not run in this Python"
        ) from None
    download_asset.initialize_sources()
    for uid in MANISKILL2_UIDS:
        entry = download_asset.DATA_SOURCES[uid]
        url = entry["url"].replace(MANISKILL2, source) if source else entry["url"]
        name = url.rsplit("/", 1)[-1]
        place = folder / Path(entry.get("output_dir", ASSET_DIR)).relative_to(ASSET_DIR)
        checksum = entry.get("checksum")
        check = expect("its SHA-256", checksum, sha256) if checksum else check_archive
        get = partial(fetch, url, place / name, check, name, wait)
        if name.endswith(".zip"):
            target = place / entry.get("target_path", name.removesuffix(".zip"))
            install(place / name, target, get, partial(top_folder, f"{target.name}/"))
        elif (place / name).exists() and sha256(place / name) == checksum:
            report(f"{place / name}: there already")
        else:
            get()
            report(f"{place / name}: fetched")


def top_folder(top: str, names: Iterable[str]) -> dict[str, str]:
    """The members in one folder of an archive, under their names within it."""
    chosen = {name: name.removeprefix(top) for name in names if name.startswith(top)}
    if not chosen:
        raise Damaged(f"has no folder {top}")
    return chosen


def kinetics(folder: Path, videos: Path, short_side: int, **_) -> None:
    """Shrinks the videos under `videos`: mp4 (H.264) without sound, the shorter side at most `short_side` pixels.

    All frames are kept, whatever their times. A conversion is done if `folder`'s list says that it was made from this
    very file with this size; one whose original is gone is removed. Videos that cannot be decoded or are damaged are
    reported. envs/backgrounds.py decodes the results once per frame size.
    """
    if not videos.is_dir():
        raise UserError(f"--videos {videos}: no such folder; expected one with videos (Kinetics-400 driving_car, say)")
    files = [path for path in sorted(videos.rglob("*")) if path.is_file() and path.name[0] != "."]
    files = [path for path in files if not path.resolve().is_relative_to(folder.resolve())]
    originals = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not originals:
        raise UserError(f"--videos {videos}: no video there ({' '.join(sorted(VIDEO_SUFFIXES))})")
    others = Counter(path.suffix.lower() or path.name for path in files if path.suffix.lower() not in VIDEO_SUFFIXES)
    if others:
        report(f"{videos}: not taken for videos: {', '.join(f'{n} {suffix}' for suffix, n in others.items())}")
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: source for name, source in read_contents(folder).items() if (folder / name).exists()}
    for name in [name for name, (original, *_) in made.items() if not Path(original).exists()]:
        report(f"{folder / name}: removed, as its original {made.pop(name)[0]} is gone")
        (folder / name).unlink()
    converted = failed = damaged = 0
    for original in tqdm(originals, desc="kinetics", unit=" videos", disable=None):
        stat = original.stat()
        source = [str(original.resolve()), stat.st_size, stat.st_mtime_ns, short_side]
        if source in made.values():
            continue
        name = _free_name(original.relative_to(videos), source[0], made)
        try:
            note = _shrink(original, folder / name, short_side)
        except Damaged as error:
            failed += 1
            tqdm.write(f"{original}: left out, not a readable video ({error})", file=sys.stderr)
            continue
        if note:
            damaged += 1
            tqdm.write(f"{original}: {note}", file=sys.stderr)
        made[name] = source
        (folder / CONTENTS).write_text(json.dumps(made))
        converted += 1
    if failed == len(originals):
        raise UserError(f"--videos {videos}: none of the {failed} videos could be read")
    report(
        f"{folder}: {len(originals) - failed} videos, {converted} converted now ({damaged} damaged), "
        f"{failed} unreadable; use them with --resource_files '{folder}/**/*.mp4'"
    )


def _free_name(name: Path, original: str, made: dict[str, list]) -> str:
    """clip.mp4, or clip.avi.mp4, clip.avi.2.mp4 … where clip.mp4 was made from another original."""
    more = (f"{name}.{number}.mp4" for number in itertools.count(2))
    for candidate in itertools.chain([f"{name.with_suffix('.mp4')}", f"{name}.mp4"], more):
        if candidate not in made or made[candidate][0] == original:
            return candidate


def _shrink(original: Path, path: Path, short_side: int) -> str:
    """Converts a video; returns what was wrong with it, if anything. Raises Damaged if there is no frame."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from envs import videos

    stream = videos.find_stream(original)
    if stream is None:
        raise Damaged("it has no video stream")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    side = f"trunc(min({short_side}\\,min(iw\\,ih))/2)*2"
    scale = f"scale='if(gt(iw\\,ih)\\,-2\\,{side})':'if(gt(iw\\,ih)\\,{side}\\,-2)'"
    encoder = "-c:v libx264 -crf 18 -pix_fmt yuv420p -progress pipe:1 -f mp4".split()
    command = videos.command(original, stream, "-vf", scale, *encoder, str(part))
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        frames = int([0, *re.findall(r"^frame= *(\d+)$", run.stdout, re.MULTILINE)][-1])
        reason = [f"ffmpeg ended with status {run.returncode}", *run.stderr.strip().splitlines()][-1]
        if not frames or (run.returncode and videos.find_stream(part) is None):
            with contextlib.suppress(ValueError):
                next(videos.read_video(original))
                raise OSError(f"{part}: {reason}")  # the video is sound: its conversion could not be written
            raise Damaged(reason)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return videos.damage(frames, stream, run.returncode, run.stderr)


# --------------------------------------------------------------------------------------------------------- command line

SETS = {function.__name__: function for function in (dmcgb, davis, kinetics, matterport, maniskill2)}


def report(line: str) -> None:
    print(line, file=sys.stderr)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process, so that two never write the same file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--to {folder}: expected a folder that can be written ({error.strerror})") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"--to {folder}: another download into it is in progress") from None
    finally:
        os.close(handle)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="download_assets.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("sets", nargs="+", choices=SETS, metavar=f"{{{','.join(SETS)}}}")
    parser.add_argument("--to", type=Path, default=Path("assets"), help="folder of the assets, as in --assets (assets)")
    parser.add_argument("--videos", type=Path, help="kinetics: the folder with your videos")
    parser.add_argument("--short_side", type=int, default=128, help="kinetics: pixels of a video's shorter side (128)")
    parser.add_argument("--source", help="another URL to download from, such as a mirror's http://HOST/FOLDER")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds before a failed request is tried again (1)")
    args = parser.parse_args(argv)
    if "kinetics" in args.sets and args.videos is None:
        parser.error("kinetics needs --videos FOLDER, your own videos")
    if not 16 <= args.short_side <= 4096:
        parser.error(f"--short_side {args.short_side}: expected 16 to 4096 pixels")
    if not 0 <= args.wait <= 3600:
        parser.error(f"--wait {args.wait:g}: expected 0 to 3600 seconds")
    if args.source is not None:
        if not re.fullmatch(r"https?://[A-Za-z0-9][^\s?#]*", args.source):
            parser.error(f"--source {args.source}: expected a URL such as http://HOST/FOLDER")
        args.source = args.source.rstrip("/")
    return args


def main(argv: list[str] | None = None) -> None:
    try:
        args = parse(argv)
        with only_one(args.to):
            for name in args.sets:
                SETS[name](args.to / name, **vars(args))
    except (AssetError, OSError) as error:  # OSError: the disk is full or not writable
        report(f"download_assets.py: {' '.join(str(error).split())}")
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        report("download_assets.py: interrupted; the same command resumes from here")
        sys.exit(1)


if __name__ == "__main__":
    main()
