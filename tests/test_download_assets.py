"""setup/download_assets.py against a real local HTTP server that breaks off, truncates and corrupts responses."""

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_videos import LEVELS, encode

from envs import backgrounds

SCRIPT = Path(__file__).parent.parent / "setup" / "download_assets.py"


class Server(ThreadingHTTPServer):
    """Serves `files` {path: bytes} with Range; `faults` {path: [fault, ...]} lists what goes wrong, one per request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.sent = {}, {}, [], 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        pass  # the client was killed

    def ranges(self, path):
        return [start for name, start in self.requests if name == path]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.lstrip("/")
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.server.requests.append((path, start))
        fault = (self.server.faults.get(path) or [""]).pop(0)
        content = self.server.files.get(path)
        if fault.isdigit():
            return self.send_error(int(fault))
        if fault.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect "))
            return self.end_headers()
        if fault in ("drip", "drip headers"):  # a byte every half second, until the client gives up
            answer = b"HTTP/1.0 200 OK\r\nContent-Length: 900000\r\n\r\n"
            self.wfile.write(b"" if fault == "drip headers" else answer)
            for byte in answer * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(0.5)
        if content is None:
            return self.send_error(404)
        if fault == "page":  # what a login page or a proxy does
            content, start = b"<html>sign in</html>", 0
        if fault == "changed":
            content = bytes(255 - byte for byte in content)
        if fault in ("whole", "whole, short"):
            start = 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = content[start:]
        self.send_response(206 if start else 200)
        if start and fault == "odd range":
            self.send_header("Content-Range", "bytes all/of it")
        elif start:
            first = start + (7 if fault == "other range" else 0)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if fault.startswith("length "):
            self.send_header("Content-Length", fault.removeprefix("length "))
        elif fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("short", "whole, short"):  # the response ends before its declared length
            body = body[: len(body) // 2]
        if fault == "stuck":  # sends nothing more until the client is gone
            self.wfile.write(body[:4096])
            self.server.sent += 4096
            self.connection.recv(1)
            return
        if fault == "slow":
            for i in range(0, len(body), 4096):
                self.wfile.write(body[i : i + 4096])
                self.server.sent += 4096
                time.sleep(0.002)
            return
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def dmcgb(tmp_path, server):
    """The script next to our own manifest, and a server with its files: dmcgb.start or dmcgb.run."""
    return Dmcgb(tmp_path, server)


class Dmcgb:
    def __init__(self, folder, server):
        self.assets, self.server = folder / "as sets", server
        self.files = {
            "color_easy.pt": noise(20_000, 1),
            "video_easy/video0.mp4": noise(900_000, 2),
            "video_hard/video3.mp4": noise(300_000, 3),
        }
        server.files.update(self.files)
        self.script = folder / "setup" / SCRIPT.name
        self.script.parent.mkdir()
        shutil.copy(SCRIPT, self.script)
        manifest = {"source": "", "commit": "", "folder": "", "files": {k: blob_id(v) for k, v in self.files.items()}}
        (self.script.parent / "dmcgb_manifest.json").write_text(json.dumps(manifest))

    def start(self):
        command = [sys.executable, str(self.script), "dmcgb", "--to", str(self.assets), "--source", self.server.url]
        command += ["--wait", "0.02"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self):
        process = self.start()
        out, error = process.communicate(timeout=900)
        assert "Traceback" not in error
        return process.returncode, out + error

    def on_disk(self):
        root = self.assets / "dmcgb"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_fetches_verifies_and_skips_what_is_there(dmcgb):
    code, said = dmcgb.run()
    assert code == 0 and "3 files, 3 fetched now" in said
    assert dmcgb.on_disk() == dmcgb.files
    count = len(dmcgb.server.requests)
    code, said = dmcgb.run()
    assert code == 0 and "0 fetched now" in said
    assert len(dmcgb.server.requests) == count


def test_a_damaged_file_on_disk_is_fetched_again(dmcgb):
    dmcgb.run()
    path = dmcgb.assets / "dmcgb" / "video_hard" / "video3.mp4"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    code, said = dmcgb.run()
    assert code == 0 and "video3.mp4: does not match the manifest" in said and "1 fetched now" in said
    assert dmcgb.on_disk() == dmcgb.files


@pytest.mark.parametrize(
    "faults",
    [
        ["short", "short", "short"],  # each resumes where the previous one ended
        ["503", "429"],
        ["page"],
        ["changed"],
        ["short", "whole"],  # a server that ignores Range sends all of it again
        ["short", "other range"],
        ["short", "changed"],  # the beginning of one file and the end of another
        ["no length"],
        ["length many"],
        ["length -5"],
        ["short", "odd range"],
        ["redirect http://[", "redirect http://127.0.0.1:port/", "redirect http://a b/"],
        ["short", "503", "short", "whole, short", "changed", "short"],
    ],
    ids=", ".join,
)
def test_recovers_from_bad_responses(dmcgb, faults):
    name = "video_easy/video0.mp4"
    dmcgb.server.faults[name] = list(faults)
    code, said = dmcgb.run()
    assert code == 0, said
    assert dmcgb.on_disk() == dmcgb.files  # and no .part is left
    assert not dmcgb.server.faults[name]


def test_resumes_with_only_the_missing_files(dmcgb):
    name = "video_easy/video0.mp4"
    dmcgb.server.faults[name] = ["short", "short"]
    assert dmcgb.run()[0] == 0
    assert dmcgb.server.ranges(name) == [0, 450_000, 675_000]


@pytest.mark.parametrize("held", [1, 450_000, 900_000], ids=["a byte", "half", "all"])
def test_resumes_from_a_part_of_an_earlier_call(dmcgb, held):
    name = "video_easy/video0.mp4"
    part = dmcgb.assets / "dmcgb" / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(dmcgb.files[name][:held])
    assert dmcgb.run()[0] == 0
    assert dmcgb.on_disk() == dmcgb.files
    assert dmcgb.server.ranges(name) == [held]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 900_000, b"x" * 1_000_000], ids=["short", "equal", "longer"])
def test_a_part_of_another_file_is_dropped(dmcgb, left):
    part = dmcgb.assets / "dmcgb" / "video_easy" / "video0.mp4.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert dmcgb.run()[0] == 0
    assert dmcgb.on_disk() == dmcgb.files


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (["404"], "404"),
        (["changed"] * 3, "its git blob id is"),
        (["page"] * 3, "its git blob id is"),
        (["500"] * 5, "500"),
        (["whole, short"] * 20, "450000 of 900000 bytes"),
        (["redirect file:///etc/passwd"], "302"),
        (["redirect /video_easy/video0.mp4"] * 30, "302"),
        (["redirect http://["] * 5, "Invalid IPv6 URL"),
    ],
    ids=["missing", "wrong hash", "page", "500", "always short", "to a file", "in a circle", "to no address"],
)
def test_gives_up_in_one_line_and_leaves_no_wrong_file(dmcgb, faults, says):
    name = "video_easy/video0.mp4"
    dmcgb.server.faults[name] = faults
    code, said = dmcgb.run()
    last = said.strip().splitlines()[-1]
    assert code == 1
    assert last.startswith("download_assets.py: ") and name in last and says in last
    assert name not in dmcgb.on_disk()
    dmcgb.server.faults.clear()
    assert dmcgb.run()[0] == 0
    assert dmcgb.on_disk() == dmcgb.files


def test_kill_9_at_random_moments_and_restart(dmcgb):
    """At every moment, every file with a final name is complete; the restarts end with all of them."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        dmcgb.server.faults = {name: ["slow"] * 9 for name in dmcgb.files}
        process = dmcgb.start()
        moment = dmcgb.server.sent + rng.integers(1, 190_000)
        while dmcgb.server.sent < moment:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for name, content in dmcgb.on_disk().items():
            if not name.endswith(".part"):
                assert content == dmcgb.files[name]
    code, _ = dmcgb.run()
    assert code == 0 and dmcgb.on_disk() == dmcgb.files
    assert any(start > 0 for _, start in dmcgb.server.requests)


@pytest.mark.parametrize("fault", ["drip", "drip headers"])
@pytest.mark.parametrize("name", ["davis", "matterport"])
def test_a_very_slow_server_is_given_up(server, tmp_path, capsys, monkeypatch, fault, name):
    from setup import download_assets

    monkeypatch.setattr(download_assets, "RATE_SECONDS", 0.2 if name == "davis" else 0.06)
    file = "DAVIS-2017-trainval-480p.zip" if name == "davis" else DRIVE
    server.faults[file] = [fault] * 9
    with pytest.raises(SystemExit) as stop:
        download_assets.main([name, "--to", str(tmp_path), "--source", server.url, "--wait", "0.01"])
    assert stop.value.code == 1
    assert "fewer than 1000 bytes per second" in capsys.readouterr().err.splitlines()[-1]
    assert len(server.requests) == (5 if name == "davis" else 1)


def test_ctrl_c_prints_how_to_resume(dmcgb):
    dmcgb.server.faults = {name: ["stuck"] for name in dmcgb.files}
    process = dmcgb.start()
    while dmcgb.server.sent == 0:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 1 and "the same command resumes" in said and "Traceback" not in said


def test_two_downloads_into_one_folder(dmcgb):
    dmcgb.server.faults = {name: ["slow"] for name in dmcgb.files}
    first = dmcgb.start()
    while not dmcgb.server.requests:
        time.sleep(0.01)
    code, said = dmcgb.run()
    assert code == 2 and "another download into it is in progress" in said
    first.communicate(timeout=900)
    assert first.returncode == 0 and dmcgb.on_disk() == dmcgb.files


def test_no_server(dmcgb):
    dmcgb.server.url = "http://127.0.0.1:9"  # nobody listens there
    code, said = dmcgb.run()
    assert code == 1 and "Connection refused" in said.splitlines()[-1]


def test_a_folder_that_cannot_be_written(dmcgb, tmp_path):
    dmcgb.assets = tmp_path / "file"
    dmcgb.assets.write_text("")
    code, said = dmcgb.run()
    assert code == 2 and f"--to {dmcgb.assets}: expected a folder" in said


def test_the_manifest_is_the_whole_benchmark():
    manifest = json.loads((SCRIPT.parent / "dmcgb_manifest.json").read_text())
    names = {"color_easy.pt", "color_hard.pt"}
    names |= {f"video_easy/video{i}.mp4" for i in range(10)} | {f"video_hard/video{i}.mp4" for i in range(100)}
    assert set(manifest["files"]) == names
    assert all(len(blob) == 40 for blob in manifest["files"].values())


# ------------------------------------------------------------------------------------------------------ the other sets


def run(*flags, **settings):
    command = [sys.executable, str(SCRIPT), *([] if "--wait" in flags else ["--wait", "0.02"]), *map(str, flags)]
    process = subprocess.run(command, capture_output=True, text=True, **settings)
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stderr


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def davis_files(sequences=60):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(256, size=(48, 85, 3), dtype=np.uint8))[1].tobytes()
    train = [f"train{i:02d}" for i in range(sequences)]
    files = {"DAVIS/ImageSets/2017/train.txt": "\n".join(train) + "\n", "DAVIS/README.md": "about"}
    for name in [*train, "validation0"]:
        for frame in range(2):
            files[f"DAVIS/JPEGImages/480p/{name}/{frame:05d}.jpg"] = jpeg
            files[f"DAVIS/Annotations/480p/{name}/{frame:05d}.png"] = b"mask"
    return files


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_davis_keeps_the_training_frames(server, tmp_path):
    files = davis_files()
    server.files["DAVIS-2017-trainval-480p.zip"] = zipped(files)
    server.faults["DAVIS-2017-trainval-480p.zip"] = ["short", "page", "short"]
    code, said = run("davis", "--to", tmp_path, "--source", server.url)
    assert code == 0, said
    wanted = {name for name in files if "JPEGImages/480p/train" in name or name.endswith("train.txt")}
    assert len(wanted) == 121 and tree(tmp_path / "davis") == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["davis"]  # the archive is gone
    count = len(server.requests)
    assert "there already" in run("davis", "--to", tmp_path, "--source", server.url)[1]
    assert len(server.requests) == count
    lost = tmp_path / "davis" / "DAVIS/JPEGImages/480p/train07/00001.jpg"
    lost.unlink()
    assert run("davis", "--to", tmp_path, "--source", server.url)[0] == 0
    assert lost.exists() and len(server.requests) > count


def test_davis_interrupted_while_unpacking_fetches_nothing_again(server, tmp_path):
    (tmp_path / "DAVIS-2017-trainval-480p.zip").write_bytes(zipped(davis_files()))
    half = tmp_path / "davis.part" / "DAVIS/JPEGImages/480p/train00"
    half.mkdir(parents=True)
    (half / "junk.jpg").write_text("")
    assert run("davis", "--to", tmp_path, "--source", server.url)[0] == 0
    assert not server.requests and "junk.jpg" not in str(tree(tmp_path)) and not (tmp_path / "davis.part").exists()


@pytest.mark.parametrize("sequences", [0, 59])
def test_davis_with_sequences_missing(server, tmp_path, sequences):
    server.files["DAVIS-2017-trainval-480p.zip"] = zipped(davis_files(sequences))
    code, said = run("davis", "--to", tmp_path, "--source", server.url)
    assert code == 1 and f"holds {sequences} training sequences, expected 60" in said
    assert not (tmp_path / "davis").exists()


def test_a_users_folder_is_left_alone(server, tmp_path):
    (tmp_path / "davis").mkdir()
    (tmp_path / "davis" / "mine.txt").write_text("mine")
    code, said = run("davis", "--to", tmp_path, "--source", server.url)
    assert code == 2 and "move it away" in said and (tmp_path / "davis" / "mine.txt").read_text() == "mine"


def glb(seed):
    return b"glTF" + struct.pack("<II", 2, 512) + noise(500, seed)


def tarred(files, compression="gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


DRIVE = "uc?id=1SLh1WOmYn5qzoDUygtlQ89SS8aBSenP0"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_matterport_through_gdown(server, tmp_path, pack):
    files = {"./m/a.glb": glb(1), "m/b/room.glb": glb(2), "m/c/room.glb": glb(3), "m/n.txt": b"", "__MACOSX/x.glb": b""}
    server.files[DRIVE] = pack(files)
    server.faults[DRIVE] = ["short"]
    code, said = run("matterport", "--to", tmp_path, "--source", server.url)
    assert code == 0, said
    assert tree(tmp_path / "matterport") == {"a.glb", "m_b_room.glb", "m_c_room.glb"}
    assert (tmp_path / "matterport" / "m_c_room.glb").read_bytes() == glb(3)
    assert [path.name for path in tmp_path.iterdir()] == ["matterport"]
    count = len(server.requests)
    assert "there already" in run("matterport", "--to", tmp_path, "--source", server.url)[1]
    assert len(server.requests) == count


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>quota exceeded</html>", "not a zip or tar archive"),
        (zipped({"a.txt": b""}), "no scan"),
        (zipped({"a.glb": glb(0)[:-9]}), "a.glb, which is not a complete .glb file"),
        (zipped({"a.glb": glb(0)}).replace(glb(0)[40:60], b"-" * 20), "damaged archive"),
    ],
    ids=["page", "no scan", "cut scan", "CRC"],
)
def test_matterport_damaged(server, tmp_path, content, says):
    server.files[DRIVE] = content
    code, said = run("matterport", "--to", tmp_path, "--source", server.url)
    assert code == 1 and says in said.strip().splitlines()[-1]
    assert not (tmp_path / "matterport").exists()
    server.files[DRIVE] = zipped({"a.glb": glb(1)})
    assert run("matterport", "--to", tmp_path, "--source", server.url)[0] == 0


def encrypted() -> bytes:
    """A zip whose member says that it is encrypted."""
    data = bytearray(zipped({"a.glb": glb(0)}))
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + flags] |= 1
    return bytes(data)


def with_method(method: int) -> bytes:
    """A zip whose compression is not the one that it declares."""
    data = bytearray(zipped({"a.glb": glb(0)}))
    for magic, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(magic) + place] = method
    return bytes(data)


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(99) + data[len(data) // 2 + 99 :]


LEFT_BEHIND = {
    "xz": damaged(tarred({"m/a.glb": glb(1), "m/b.glb": glb(2)}, "xz")),
    "bz2": damaged(tarred({"m/a.glb": glb(1), "m/b.glb": glb(2)}, "bz2")),
    "gz": damaged(tarred({"m/a.glb": glb(1), "m/b.glb": glb(2)}, "gz")),
    "cut xz": tarred({"m/a.glb": glb(1)}, "xz")[:-99],
    "encrypted": encrypted(),
    "lzma": with_method(14),
    "bzip2": with_method(12),
    "deflate": with_method(8),
    "unknown": with_method(99),
    "long name": zipped({"x" * 300 + ".glb": glb(1)}),
    "nothing": b"",
}


@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_a_damaged_archive_on_disk_is_fetched_again(server, tmp_path, case):
    (tmp_path / "matterport.archive").write_bytes(LEFT_BEHIND[case])
    server.files[DRIVE] = zipped({"a.glb": glb(1)})
    command = ("matterport", "--to", tmp_path, "--source", server.url)
    code, said = run(*command)
    assert code == 1 and "it was removed, and the same command fetches it again" in said.splitlines()[-1]
    assert run(*command)[0] == 0
    assert tree(tmp_path / "matterport") == {"a.glb"}


@pytest.mark.parametrize("train", [b"\xff\xfe train00\n", b"", b"../../x\n" * 60])
def test_a_damaged_list_on_disk_is_fetched_again(server, tmp_path, train):
    files = davis_files()
    server.files["DAVIS-2017-trainval-480p.zip"] = zipped(files)
    (tmp_path / "DAVIS-2017-trainval-480p.zip").write_bytes(zipped({**files, "DAVIS/ImageSets/2017/train.txt": train}))
    command = ("davis", "--to", tmp_path, "--source", server.url)
    assert run(*command)[0] == 1
    assert run(*command)[0] == 0


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"a": []}', b"[" * 100_000])
def test_a_folder_whose_list_is_damaged_is_not_complete(tmp_path, content):
    from setup import download_assets

    (tmp_path / "a").write_bytes(b"")
    (tmp_path / ".contents.json").write_text('{"a": 0}')
    assert download_assets.is_whole(tmp_path)
    (tmp_path / ".contents.json").write_bytes(content)
    assert not download_assets.is_whole(tmp_path)


def test_random_damage_to_an_archive_raises_no_other_error(tmp_path):
    from setup import download_assets

    rng = np.random.default_rng(0)
    files = {"m/a.glb": glb(1), "m/b.glb": glb(2)}
    path = tmp_path / "archive"
    for good in (zipped(files), *(tarred(files, kind) for kind in ("", "gz", "bz2", "xz"))):
        found = 0
        for _ in range(60):
            data = bytearray(good)
            for place in rng.integers(len(good), size=rng.integers(1, 4)):
                data[place] ^= 1 << rng.integers(8)
            path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
            try:
                download_assets.check_archive(path)
            except download_assets.Damaged:
                found += 1
        assert found > 5  # a plain tar has checksums for its headers only


def test_matterport_refused(server, tmp_path):
    code, said = run("matterport", "--to", tmp_path, "--source", server.url)
    assert code == 1 and "404" in said.strip().splitlines()[-1]


def test_an_archive_writes_nothing_outside_its_folder(tmp_path):
    from setup import download_assets

    (tmp_path / "a.zip").write_bytes(zipped({"../evil.txt": b"x"}))
    with pytest.raises(download_assets.Damaged, match="outside its folder"):
        download_assets.unpack(tmp_path / "a.zip", tmp_path / "deep" / "a", {"../evil.txt": "../evil.txt"})
    assert not list(tmp_path.rglob("evil.txt"))


def test_maniskill2(server, tmp_path, monkeypatch):
    """ManiSkill2's own URLs and paths. Its hashes reject our small stand-ins, which pass with matching ones."""
    download_asset = pytest.importorskip("mani_skill2.utils.download_asset", reason="mani_skill2 is for Python 3.11")
    from setup import download_assets

    kits = zipped({"assembling_kits/kits/1.json": b"{}", "assembling_kits/models/a.obj": b"o"})
    obstacles = noise(1000)
    server.files["assembling_kits_v1.zip"] = kits
    server.files["avoid_obstacles/panda_train_2k.json.gz"] = obstacles
    server.files["partnet_mobility/dataset/5021.zip"] = zipped({"5021/mobility.urdf": b"<robot/>", "5021/a/b.obj": b""})
    command = ["maniskill2", "--to", str(tmp_path), "--source", server.url]
    code, said = run(*command)
    assert code == 1 and "its SHA-256 is" in said and not (tmp_path / "maniskill2" / "assembling_kits").exists()

    original = download_asset.initialize_sources

    def with_stand_ins():
        original()
        download_asset.DATA_SOURCES["assembling_kits"]["checksum"] = hashlib.sha256(kits).hexdigest()
        download_asset.DATA_SOURCES["panda_avoid_obstacles"]["checksum"] = hashlib.sha256(obstacles).hexdigest()

    monkeypatch.setattr(download_asset, "initialize_sources", with_stand_ins)
    server.faults["partnet_mobility/dataset/5021.zip"] = ["short"]
    download_assets.main(command)
    wanted = {
        "assembling_kits/kits/1.json",
        "assembling_kits/models/a.obj",
        "avoid_obstacles/panda_train_2k.json.gz",
        "partnet_mobility/dataset/5021/mobility.urdf",
        "partnet_mobility/dataset/5021/a/b.obj",
    }
    assert tree(tmp_path / "maniskill2") == wanted
    count = len(server.requests)
    download_assets.main(command)
    assert len(server.requests) == count


# ------------------------------------------------------------------------------------------------------------- kinetics


def video(path, height, width, frames=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), codec, 10, (width, height))
    for i in range(frames):
        writer.write(np.full((height, width, 3), i * 20, np.uint8))
    writer.release()


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1])
    return np.stack(frames)


def test_kinetics_makes_videos_small(tmp_path):
    videos, out = tmp_path / "my videos", tmp_path / "assets" / "kinetics"
    video(videos / "wide.mp4", 240, 426)
    video(videos / "sub" / "tall.mp4", 301, 200)
    video(videos / "same.mp4", 96, 96)
    video(videos / "same.avi", 240, 320)
    (videos / "broken.mp4").write_bytes(noise(4000))
    (videos / "empty.mkv").write_bytes(b"")
    (videos / "notes.txt").write_text("no video")
    command = ["kinetics", "--videos", videos, "--to", tmp_path / "assets"]
    code, said = run(*command)
    assert code == 0, said
    assert "broken.mp4: left out" in said and "empty.mkv: left out" in said
    assert "not taken for videos: 1 .txt" in said
    assert "4 videos, 4 converted now (0 damaged), 2 unreadable" in said
    assert tree(out) == {"wide.mp4", "sub/tall.mp4", "same.mp4", "same.mp4.mp4"}
    frames = frames_of(out / "wide.mp4")
    assert frames.shape == (8, 128, 228, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), np.arange(8) * 20, atol=6)
    assert frames_of(out / "sub" / "tall.mp4").shape[2] == 128
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert "0 converted now" in run(*command)[1]
    assert made == {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    os.utime(videos / "wide.mp4", (time.time() - 9, time.time() - 9))  # another original, even if it is an older one
    assert "1 converted now" in run(*command)[1]


def test_kinetics_knows_what_a_conversion_was_made_from(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "kinetics"
    command = ["kinetics", "--videos", videos, "--to", tmp_path]
    video(videos / "clip.mp4", 240, 320, frames=8)
    assert run(*command)[0] == 0
    video(videos / "clip.avi", 240, 320, frames=5)  # sorts before the one that is converted already
    assert "1 converted now" in run(*command)[1]
    assert {len(frames_of(out / name)) for name in tree(out)} == {8, 5}
    assert "2 converted now" in run(*command, "--short_side", 64)[1]
    assert {frames_of(out / name).shape[1] for name in tree(out)} == {64} and len(tree(out)) == 2
    (videos / "clip.avi").unlink()
    code, said = run(*command, "--short_side", 64)
    assert code == 0 and "0 converted now" in said and f"its original {videos / 'clip.avi'} is gone" in said
    assert [len(frames_of(out / name)) for name in tree(out)] == [8]
    other = tmp_path / "others"  # another folder adds to the first one's
    video(other / "clip.mp4", 240, 320, frames=3)
    assert "1 converted now" in run("kinetics", "--videos", other, "--to", tmp_path)[1]
    assert {len(frames_of(out / name)) for name in tree(out)} == {8, 3}


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts", "a.mts", "a.3gp", "a.ogv", "a.mkv", "a.webm"])
def test_kinetics_keeps_every_frame_of_every_kind_of_file(name, tmp_path):
    """Also where frames last differently long, in the containers that allow it."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    codec = {".3gp": ["mpeg4"], ".ogv": ["libtheora"], ".webm": ["libvpx"]}.get(path.suffix, ["libx264"])
    variable = ["-vf", "setpts=(N+4*floor(N/3))/10/TB", "-fps_mode", "vfr"] if path.suffix in (".mkv", ".webm") else []
    encode(path, LEVELS, *variable, "-c:v", *codec, "-q:v", "5", "-b:v", "2M")
    code, said = run("kinetics", "--videos", path.parent, "--to", tmp_path)
    assert code == 0 and "1 videos, 1 converted now (0 damaged), 0 unreadable" in said
    np.testing.assert_allclose(frames_of(tmp_path / "kinetics" / "a.mp4").mean((1, 2, 3)), LEVELS, atol=5)


def test_kinetics_tells_damaged_videos(tmp_path):
    path = encode(tmp_path / "in" / "a.mkv", np.tile(LEVELS, 5), "-c:v", "libx264", "-g", "5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, said = run("kinetics", "--videos", path.parent, "--to", tmp_path)
    count = len(frames_of(tmp_path / "kinetics" / "a.mp4"))
    assert code == 0 and f"a.mkv: damaged, {count} of about 100 frames" in said and "(1 damaged)" in said
    assert 30 < count < 70


def test_kinetics_on_a_full_disk(tmp_path):
    """A limit on the size of files stands in for it: the conversion is not taken for a done one."""
    encode(tmp_path / "in" / "a.mp4", np.random.default_rng(0).integers(0, 256, (60, 96, 160, 3)), "-c:v", "libx264")
    command = [sys.executable, str(SCRIPT), "kinetics", "--videos", str(tmp_path / "in"), "--to", str(tmp_path)]
    process = subprocess.run(["bash", "-c", f"ulimit -f 200; {shlex.join(command)}"], capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.splitlines()[-1].startswith("download_assets.py: ")
    assert "a.mp4.part" in process.stderr and "left out" not in process.stderr
    assert not list((tmp_path / "kinetics").glob("*.*p*"))


def test_kinetics_feeds_the_video_source(tmp_path):
    video(tmp_path / "in" / "a.mp4", 240, 426)
    code, said = run("kinetics", "--videos", tmp_path / "in", "--to", tmp_path / "assets")
    assert code == 0, said
    pattern = said.strip().splitlines()[-1].split("--resource_files '")[1].rstrip("'")
    source = backgrounds.make_source("video", (64, 64), resource_files=pattern, cache=tmp_path / "cache")
    assert len(source) == 8 and source.next().shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["kinetics"], "needs --videos"),
        (["kinetics", "--videos", "nowhere"], "nowhere: no such folder"),
        (["kinetics", "--videos", "."], "no video there"),
        (["kinetics", "--videos", ".", "--short_side", "3"], "--short_side 3: expected 16"),
        (["davis", "--source", "nonsense"], "--source nonsense: expected a URL such as http"),
        (["davis", "--source", "file:///data"], "--source file:///data: expected"),
        (["davis", "--source", "http://[", "--to", "x"], "--source http://[: expected"),
        (["davis", "--source", "http://host/a b"], "--source http://host/a b: expected"),
        (["davis", "--wait", "-1"], "--wait -1: expected 0 to 3600 seconds"),
        (["davis", "--wait", "nan"], "--wait nan: expected"),
        (["davis", "--wait", "soon"], "--wait: invalid float value"),
        (["dmcbg"], "dmcbg"),
        ([], "required"),
    ],
)
def test_bad_flags(tmp_path, flags, says):
    code, said = run(*flags, cwd=tmp_path)
    assert code == 2 and says in said and said.startswith("download_assets.py: ") and said.count("\n") == 1
    assert not list(tmp_path.rglob("*.part"))


def test_kinetics_with_no_readable_video(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(noise(1000))
    code, said = run("kinetics", "--videos", tmp_path / "in", "--to", tmp_path / "out")
    assert code == 2 and "none of the 1 videos could be read" in said
