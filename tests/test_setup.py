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
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from run.config import check_config, load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

# Stands in for training: prints its flags and handles a signal.
DREAMER = """import os
import signal
import sys
import time

import tiny

print("version", tiny.__version__, "cwd", os.getcwd(), "flags", sys.argv[1:], flush=True)
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(7)))
    print("ready", flush=True)
    while True:  # not signal.pause, which a signal just before it does not end
        time.sleep(0.05)
"""


class Project:
    """The setup scripts in a folder with a space, where requirements.txt asks for our own package `tiny`."""

    def __init__(self, folder):
        self.root = folder / "my project"
        for name in ("setup/install_env.sh", "setup/run.sh", "setup/test.sh", ".ci/run"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
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
        command = ["bash", str(self.root / script), *flags]
        return subprocess.Popen(
            command,
            cwd=cwd or self.root,
            env={**self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, script, *flags, **settings):
        process = self.start(script, *flags, **settings)
        out, error = process.communicate(timeout=900)
        return process.returncode, out, error


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A project that two concurrent runs installed."""
    project = Project(tmp_path_factory.mktemp("setup"))
    processes = [project.start("setup/run.sh", "--task", f"a {i}", cwd="/") for i in range(2)]
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


QUICKSTART = ["--configs", "dmc_vision", "small", "quickstart"]


@pytest.mark.parametrize(
    "flags, added",
    [
        ([], QUICKSTART),
        (["--seed", "1"], QUICKSTART),
        (["--logdir", "a --task b"], QUICKSTART),
        (["--task", "dmc_walker_walk"], []),
        (["--task=a"], []),
        (["--configs", "debug"], []),
        (["--eval_only"], []),
        (["--help"], []),
    ],
)
def test_without_flags_that_choose_it_trains_the_quickstart(installed, flags, added):
    code, out, _ = installed.run("setup/run.sh", *flags)
    assert code == 0 and f"flags {[*flags, *added]}" in out


def test_the_quickstart_has_a_task_and_a_folder_of_its_own():
    config = load_config(QUICKSTART)
    assert config.task == "dmc_walker_stand_video" and config.logdir == "./log/quickstart"
    check_config(config)


def test_an_existing_installation_is_left_alone(installed):
    stamp = installed.root / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    code, _, error = installed.run("setup/run.sh", "--seed", "1", cwd=installed.root.parent)
    assert code == 0 and error == ""
    assert stamp.stat().st_mtime_ns == before


def test_signals_reach_the_run(installed):
    process = installed.start("setup/run.sh", "wait")
    assert "version" in process.stdout.readline() and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "saved\n" and process.wait() == 7


@pytest.fixture(scope="module")
def tested(installed):
    """The project with ruff and one test that passes and one that fails."""
    link = installed.root / ".venv" / "bin" / "ruff"
    link.symlink_to(Path(sysconfig.get_path("scripts")) / "ruff")
    (installed.root / "tests").mkdir()
    tests = "def test_good():\n    pass\n\n\ndef test_bad():\n    assert 0\n"
    (installed.root / "tests" / "test_it.py").write_text(tests)
    return installed


@pytest.mark.parametrize("command", ["setup/test.sh", ".ci/run"])
def test_all_tests_are_run(tested, command):
    code, out, error = tested.run(command, cwd="/")
    assert code == 1 and "1 failed, 1 passed" in out.splitlines()[-1], out + error


def test_flags_choose_tests(tested):
    code, out, error = tested.run("setup/test.sh", "-k", "good")
    assert code == 0 and " 1 passed in" in out.splitlines()[-1], out + error


@pytest.mark.parametrize("command", ["setup/test.sh", ".ci/run"])
def test_the_style_is_checked(tested, command):
    unused = tested.root / "unused.py"
    unused.write_text("import os\n")
    try:
        code, out, _ = tested.run(command)
    finally:
        unused.unlink()
    assert code == 1 and "F401" in out and "passed" not in out


def test_other_requirements_are_installed_into_the_same_venv(project):
    """Here one without our stamp, such as the user's own."""
    (project.root / ".venv" / ".installed").unlink()
    (project.root / ".venv" / "mine").write_text("mine")
    project.require("2.0")
    code, out, error = project.run("setup/run.sh")
    assert code == 0, error
    assert "version 2.0" in out and "making .venv" not in error
    assert (project.root / ".venv" / "mine").read_text() == "mine"


def test_an_interrupted_installation_is_repaired(tmp_path):
    """Killed at several moments, with all of its children; then one that completes."""
    project = Project(tmp_path)
    for delay in (0.3, 4.0):
        process = project.start("setup/install_env.sh")
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (project.root / ".venv").mkdir(exist_ok=True)
    (project.root / ".venv" / ".unfinished").touch()
    site = project.root / ".venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True, exist_ok=True)
    (site / "tiny.py").write_text("half a fi")  # a kill within pip leaves this
    for path in (project.root / ".venv" / "bin").glob("python*"):  # the removal of a system's Python leaves this
        path.unlink()
    code, out, error = project.run("setup/run.sh")
    assert code == 0, error
    assert "recreating it" in error and "version 1.0" in out
    assert not (project.root / ".venv" / ".unfinished").exists()


def test_an_unavailable_requirement(project):
    wheel = project.root / "tiny-9-py3-none-any.whl"
    (project.root / "requirements.txt").write_text(f"tiny @ {wheel.as_uri()}\n")
    code, out, error = project.run("setup/run.sh")
    assert code == 1 and out == ""
    assert error.splitlines()[-1].startswith("install_env: could not install requirements.txt")
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
    pythons = [path.name for path in Path("/usr/bin").glob("python3*")]
    code, out, error = project.run("setup/run.sh", PATH=without("apt-get", "sudo", *pythons), PYTHON="")
    assert code == 1 and out == ""
    (line,) = error.splitlines()
    assert line.startswith("install_env: missing on this system: Python 3.11 to 3.14 with venv")
    assert "'sudo apt-get update && sudo apt-get install -y --no-install-recommends python3 python3-venv" in line
    assert not (project.root / ".venv").exists()


def test_a_missing_compiler_is_reported_and_not_an_error(project, without):
    (project.root / ".venv" / ".installed").unlink()
    code, out, error = project.run("setup/run.sh", PATH=without("c++", "apt-get", "sudo"))
    assert code == 0 and "version 1.0" in out
    assert "install -y --no-install-recommends g++" in error and "updates run without compiled layers" in error


def test_missing_headers_of_python_are_reported_and_not_an_error(project, without, tmp_path):
    (project.root / ".venv" / ".installed").unlink()
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sysconfig\npath = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name, *a, **k: '/none/python3.99' if name == 'include' else path(name, *a, **k)\n"
    )
    places = os.pathsep.join([str(site), project.environment["PYTHONPATH"]])
    code, out, error = project.run("setup/run.sh", PATH=without("apt-get", "sudo"), PYTHONPATH=places)
    assert code == 0 and "version 1.0" in out
    assert "install -y --no-install-recommends python3.99-dev" in error
    assert "updates on a GPU run without compiled layers" in error


def pythons() -> list[tuple[tuple[int, int], str]]:
    """Pythons of this machine that make virtual environments, one of each version: (version, path)."""
    places = [sys.executable, *Path("/usr/bin").glob("python3.*"), *Path.home().glob(".pyenv/versions/*/bin/python3.*")]
    found = {}
    for path in filter(lambda path: re.fullmatch(r"python(3\.\d+)?", Path(path).name), places):
        code = "import sys, ensurepip, venv; print(sys.version_info[1])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.returncode == 0:
            found.setdefault((3, int(done.stdout)), str(path))
    return sorted(found.items())


def test_every_python_of_this_machine_is_used_or_refused(tmp_path):
    """What follows the packages, a check that MuJoCo renders, needs those of the Python that runs the tests."""
    assert sys.version_info[:2] in dict(pythons())
    for (_, minor), python in pythons():
        project = Project(tmp_path / str(minor))
        code, _, error = project.run("setup/install_env.sh", PYTHON=python)
        if 11 <= minor <= 14:
            assert f"making .venv with Python 3.{minor}." in error
            subprocess.run([project.root / ".venv" / "bin" / "python", "-Ic", "import tiny"], check=True)
        else:
            assert code == 1 and not (project.root / ".venv").exists()
            assert error.splitlines()[-1].startswith(f"install_env: PYTHON={python}: expected a Python 3.11 to 3.14")


@pytest.mark.parametrize("python", ["/nowhere/python3.11", "/bin/true"])
def test_a_python_that_cannot_be_used(tmp_path, python):
    project = Project(tmp_path)
    code, _, error = project.run("setup/install_env.sh", PYTHON=python)
    assert code == 1 and f"PYTHON={python}: expected a Python 3.11 to 3.14" in error
    assert not (project.root / ".venv").exists()


def test_modules_of_the_callers_folder_are_not_imported(tmp_path):
    project = Project(tmp_path)
    for name in ("ensurepip", "venv", "pip", "ctypes", "mujoco"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the caller')\n")
    code, out, error = project.run("setup/run.sh", cwd=tmp_path)
    assert code == 0 and "version 1.0" in out, error


# ------------------------------------------------------------------------------------------------------------------- uv


@pytest.fixture
def with_uv(without, tmp_path):
    """A PATH with uv and the system's commands but its Pythons, and without a way to install them."""
    link = tmp_path / "uv" / "uv"
    link.parent.mkdir()
    link.symlink_to(Path(sysconfig.get_path("scripts")) / "uv")
    path = without("apt-get", "sudo", *(path.name for path in Path("/usr/bin").glob("python3*")))
    return f"{link.parent}:{path}"


def test_uv_installs_where_it_exists(tmp_path, with_uv):
    project = Project(tmp_path)
    code, out, error = project.run("setup/run.sh", PATH=with_uv)
    assert code == 0 and "version 1.0" in out, error
    assert "\nuv = " in (project.root / ".venv" / "pyvenv.cfg").read_text()
    project.require("2.0")
    code, out, error = project.run("setup/run.sh", PATH=with_uv)
    assert code == 0 and "version 2.0" in out, error
    project.require("3.0")
    code, out, error = project.run("setup/run.sh")  # pip installs this time
    assert code == 0 and "version 3.0" in out, error


def test_uv_brings_a_python_where_the_system_has_none(tmp_path, with_uv):
    """Here one that it need not download: the Python that runs the tests, as if uv had installed it."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("uv is asked for Python 3.11, and this is another one")
    project = Project(tmp_path)
    name = f"cpython-{sys.version.split()[0]}-linux-{os.uname().machine}-gnu"
    (tmp_path / "pythons" / name).mkdir(parents=True)
    for folder in ("bin", "lib", "include"):
        (tmp_path / "pythons" / name / folder).symlink_to(Path(sys.base_prefix) / folder)
    places = {"PATH": with_uv, "PYTHON": "", "UV_PYTHON_INSTALL_DIR": str(tmp_path / "pythons")}
    code, out, error = project.run("setup/run.sh", **places)
    assert code == 0 and "version 1.0" in out, error
    assert f"making .venv with Python {sys.version.split()[0]} ({tmp_path / 'pythons'}" in error
    code, out, error = project.run("setup/run.sh", **places)
    assert code == 0 and error == ""


# ----------------------------------------------------------------------------------------------------------------- lock


def requirements(name: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def holds(requirement: Requirement, python: str, extras: set[str] = frozenset()) -> bool:
    """Whether a requirement is one for that Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.2"}
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))


def locked(python: str) -> dict[str, str]:
    """The lock for that Python: versions by canonical names."""
    pins = {}
    for pin in requirements("requirements.txt"):
        if holds(pin, python):
            (specifier,) = pin.specifier
            assert specifier.operator == "==" and "*" not in specifier.version, f"{pin}: not one version"
            assert canonicalize_name(pin.name) not in pins, f"{pin}: a second version for Python {python}"
            pins[canonicalize_name(pin.name)] = specifier.version
    return pins


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_holds_what_is_required_and_nothing_else(python):
    """Packages are followed as far as the installed versions are the locked ones: all, on the Python that runs it."""
    pins, reached = locked(python), set()
    ours = python == f"3.{sys.version_info.minor}"
    todo = [("setup/requirements.in", requirement, set()) for requirement in requirements("setup/requirements.in")]
    while todo:
        parent, requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        if not holds(requirement, python, extras) or (parent == "torch" and re.match("nvidia|cuda|triton", name)):
            continue
        if name == "labmaze" and python in ("3.13", "3.14"):
            assert name not in pins
            continue
        message = f"Python {python}: {parent} requires {requirement}; requirements.txt has {pins.get(name)}"
        assert name in pins and requirement.specifier.contains(pins[name], prereleases=True), message
        if (name, *requirement.extras) in reached:
            continue
        reached.add((name, *requirement.extras))
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            installed = None
        assert installed == pins[name] or not ours, f"{name} {pins[name]} is locked, {installed} is installed"
        if installed == pins[name]:
            todo += [(name, Requirement(line), requirement.extras) for line in requires(name) or []]
    needless = pins.keys() - {name for name, *_ in reached}
    assert not (ours and needless), f"nothing requires {needless}"


def test_every_package_that_is_imported_is_required():
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    files = [path for path in files if not path.parts[0].startswith(".")]
    ours = {path.stem for path in files} | {path.parent.name for path in files} | {"slowly"}  # which a test writes
    optional = {"wandb"}  # used where the user has installed it
    imported = set()
    for path in files:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    required = {canonicalize_name(requirement.name) for requirement in requirements("setup/requirements.in")}
    packages = packages_distributions() | {"skvideo": ["scikit-video"]}  # not installed on Python 3.12
    foreign = imported - ours - optional - sys.stdlib_module_names
    assert {"torch", "numpy", "dm_control", "cv2"} <= foreign
    for name in sorted(foreign):
        providers = {canonicalize_name(package) for package in packages.get(name, [name])}
        assert providers & required, f"{name} is imported, and none of {providers} is in setup/requirements.in"
