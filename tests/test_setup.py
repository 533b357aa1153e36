"""The installation and the two commands, in a separate project with a small requirements.txt.

Other packages that the scripts check (MuJoCo, by rendering) come from the environment that runs the tests.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

# Stands in for training: prints its flags and handles a signal.
DREAMER = """import os
import signal
import sys

import tiny

print("version", tiny.__version__, "cwd", os.getcwd(), "flags", sys.argv[1:], flush=True)
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(7)))
    print("ready", flush=True)
    signal.pause()
"""


class Project:
    """The setup scripts in a folder with a space, where requirements.txt asks for our own package `tiny`."""

    def __init__(self, folder):
        self.root = folder / "my project"
        (self.root / "setup").mkdir(parents=True)
        for name in ("install_env.sh", "run.sh", "test.sh"):
            shutil.copy(ROOT / "setup" / name, self.root / "setup")
        (self.root / "dreamer.py").write_text(DREAMER)
        self.require("1.0")
        self.environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "PYTHON": sys.executable}

    def require(self, version):
        wheel = self.root / f"tiny-{version}-py3-none-any.whl"
        info = f"tiny-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("tiny.py", f"__version__ = '{version}'\n")
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        (self.root / "requirements.txt").write_text(f"tiny @ {wheel.as_uri()}\n")

    def start(self, script, *flags, cwd=None, **environment):
        command = ["bash", str(self.root / "setup" / script), *flags]
        return subprocess.Popen(
            command, cwd=cwd or self.root, env={**self.environment, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )

    def run(self, script, *flags, **settings):
        process = self.start(script, *flags, **settings)
        out, error = process.communicate(timeout=900)
        return process.returncode, out, error


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A project that two concurrent runs installed."""
    project = Project(tmp_path_factory.mktemp("setup"))
    processes = [project.start("run.sh", "--task", f"a {i}", cwd="/") for i in range(2)]
    answers = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sum("making .venv" in error and "done: " in error for _, error in answers) == 1
    for i, (out, _) in enumerate(answers):
        assert f"version 1.0 cwd / flags ['--task', 'a {i}']" in out
    return project


@pytest.fixture
def project(installed, tmp_path):
    """The test's own copy of an installed project."""
    project = Project(tmp_path)
    shutil.copytree(installed.root / ".venv", project.root / ".venv", symlinks=True)
    shutil.copy(installed.root / "requirements.txt", project.root)
    return project


def test_it_trains_the_quickstart_with_the_flags(installed):
    code, out, _ = installed.run("run.sh")
    assert code == 0 and "flags ['--configs', 'dmc_vision', 'small', 'quickstart']" in out
    code, out, _ = installed.run("run.sh", "--seed", "1")
    assert code == 0 and "flags ['--seed', '1', '--configs', 'dmc_vision', 'small', 'quickstart']" in out


@pytest.mark.parametrize("flags", [["--task", "dmc_walker_walk"], ["--task=a"], ["--configs", "debug"], ["--help"]])
def test_flags_that_choose_replace_the_quickstart(installed, flags):
    code, out, _ = installed.run("run.sh", *flags, "--seed", "1")
    assert code == 0 and f"flags {[*flags, '--seed', '1']}" in out


def test_an_existing_installation_is_left_alone(installed):
    stamp = installed.root / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    code, _, error = installed.run("run.sh", "--seed", "1", cwd=installed.root.parent)
    assert code == 0 and error == ""
    assert stamp.stat().st_mtime_ns == before


def test_signals_reach_the_run(installed):
    process = installed.start("run.sh", "wait")
    assert "version" in process.stdout.readline() and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "saved\n" and process.wait() == 7


def test_all_tests_and_the_style_are_checked(installed):
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    link = installed.root / ".venv" / "bin" / "ruff"
    if not link.exists():
        link.symlink_to(ruff)
    (installed.root / "tests").mkdir(exist_ok=True)
    test = installed.root / "tests" / "test_it.py"
    test.write_text("def test_good():\n    pass\n\n\ndef test_bad():\n    assert False\n")
    code, out, _ = installed.run("test.sh", "-k", "bad", cwd="/")
    assert code == 1 and "1 failed" in out.splitlines()[-1]
    test.write_text("import os\n")
    code, out, _ = installed.run("test.sh")
    assert code == 1 and "F401" in out and "passed" not in out


def test_other_requirements_are_installed_into_the_same_venv(project):
    """Here one without our stamp, such as the user's own."""
    (project.root / ".venv" / ".installed").unlink()
    (project.root / ".venv" / "mine").write_text("mine")
    project.require("2.0")
    code, out, error = project.run("run.sh")
    assert code == 0, error
    assert "version 2.0" in out and "making .venv" not in error
    assert (project.root / ".venv" / "mine").read_text() == "mine"


def test_an_interrupted_installation_is_repaired(tmp_path):
    """Killed at several moments, with all of its children; then one that completes."""
    project = Project(tmp_path)
    for delay in (0.3, 4.0):
        process = project.start("install_env.sh")
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (project.root / ".venv").mkdir(exist_ok=True)
    (project.root / ".venv" / ".unfinished").touch()
    site = project.root / ".venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True, exist_ok=True)
    (site / "tiny.py").write_text("half a fi")  # as left by a kill within pip
    for path in (project.root / ".venv" / "bin").glob("python*"):  # and by the removal of a system's Python
        path.unlink()
    code, out, error = project.run("run.sh")
    assert code == 0, error
    assert "recreating it" in error and "version 1.0" in out
    assert not (project.root / ".venv" / ".unfinished").exists()


def test_an_unavailable_requirement(project):
    wheel = project.root / "tiny-9-py3-none-any.whl"
    (project.root / "requirements.txt").write_text(f"tiny @ {wheel.as_uri()}\n")
    code, out, error = project.run("run.sh")
    assert code == 1 and out == ""
    assert error.splitlines()[-1].startswith("install_env: pip could not install requirements.txt")
    assert not (project.root / ".venv" / ".installed").exists()


@pytest.fixture
def without(tmp_path):
    """without(NAMES): a PATH that has the system's commands but these."""

    def path(*names):
        commands = tmp_path / "commands"
        commands.mkdir()
        for folder in ("/usr/bin", "/bin"):
            for command in Path(folder).iterdir():
                if command.name not in names and not (commands / command.name).is_symlink():
                    (commands / command.name).symlink_to(command)
        return str(commands)

    return path


def test_missing_system_packages_are_listed_where_they_may_not_be_installed(tmp_path, without):
    project = Project(tmp_path)
    code, out, error = project.run("run.sh", PATH=without("ffmpeg", "apt-get", "sudo"))
    assert code == 1 and out == ""
    assert "ffmpeg (decodes videos)" in error and "sudo apt-get update && sudo apt-get install" in error
    assert not (project.root / ".venv").exists()


def test_a_missing_compiler_is_reported_and_not_an_error(project, without):
    (project.root / ".venv" / ".installed").unlink()
    code, out, error = project.run("run.sh", PATH=without("c++", "apt-get", "sudo"))
    assert code == 0 and "version 1.0" in out
    assert "install -y --no-install-recommends g++" in error and "updates run without compiled layers" in error


@pytest.mark.parametrize("python", ["/nowhere/python3.11", "/bin/true"])
def test_a_python_that_cannot_be_used(tmp_path, python):
    project = Project(tmp_path)
    code, _, error = project.run("install_env.sh", PYTHON=python)
    assert code == 1 and f"PYTHON={python}: expected a Python 3.11 or 3.12" in error
    assert not (project.root / ".venv").exists()


def test_ci_runs_all_tests():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "exec bash setup/test.sh\n" in (ROOT / ".ci" / "run").read_text()


def test_every_package_that_is_imported_is_pinned():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = [re.fullmatch(r'([\w.-]+)==[\w.]+(; python_version (<|>=) "3.12")?', line) for line in lines if line]
    assert all(pins)
    pinned = {match[1].lower().replace("-", "_") for match in pins}
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    imported = set()
    for file in files.splitlines():
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    packages = packages_distributions()  # what is neither a package here nor pinned is a module of the project
    used = {package.lower().replace("-", "_") for name in imported for package in packages.get(name, [])}
    assert {"torch", "numpy", "dm_control", "opencv_python"} <= used
    assert used <= pinned
