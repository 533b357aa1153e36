#!/usr/bin/env bash
# Makes .venv with the pinned requirements.txt, and installs missing system libraries or prints the command that does.
#
#   bash setup/install_env.sh          fast if nothing is missing; repairs an interrupted installation
#   PYTHON=/path/to/python3.12 bash setup/install_env.sh      with that Python (3.11 to 3.14) when .venv is made
#
# System packages are installed if apt-get exists and may be used (as root, or with sudo without a password). Python
# packages are installed by uv where it exists, otherwise by pip; uv also brings a Python where the system's does not serve.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

report() { echo "install_env: $*" >&2; }
die() { report "$*"; exit 1; }

# Concurrent runs install once: the others wait here for the first.
exec 9<"$root/requirements.txt"
flock 9

# --------------------------------------------------------------------------------------------------------------- system

usable() {  # usable PYTHON: is 3.11 to 3.14, and can make a virtual environment
    local modules="sys, ensurepip, venv"
    if [ -n "$uv" ]; then modules=sys; fi
    [ "$("$1" -P -c "import $modules; print((3, 11) <= sys.version_info < (3, 15))" 2>/dev/null)" = True ]
}

find_python() {
    local candidate candidates=("${PYTHON:-}")
    if [ -z "${PYTHON:-}" ]; then
        mapfile -t candidates < <(type -aP python3.11 python3.12 python3.13 python3.14 python3)
    fi
    for candidate in "${candidates[@]}"; do
        if usable "$candidate"; then command -v "$candidate"; return 0; fi
    done
    return 1
}

uv_python() {  # a Python of uv's own, which needs no system package
    [ -n "$uv" ] && [ -z "${PYTHON:-}" ] || return 1
    report "this system has no Python 3.11 to 3.14: uv installs one"
    "$uv" python install --quiet --no-bin 3.11 >&2 && "$uv" python find --managed-python 3.11
}

loads() {  # loads LIBRARY...: the dynamic linker finds each of them
    local name
    if [ -n "$base" ]; then
        "$base" -P -c 'import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]' "$@" 2>/dev/null
    else
        for name; do ldconfig -p | grep -F "$name " >/dev/null || return 1; done
    fi
}

apt_install() {  # apt_install WHAT PACKAGE...: what is missing, and the packages that provide it
    local what=$1 as_root=()
    shift
    if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then as_root=(sudo -n); fi
    if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && [ ${#as_root[@]} = 0 ]; }; then
        die "missing on this system: $what. Install it, on Debian and Ubuntu with" \
            "'sudo apt-get update && sudo apt-get install -y --no-install-recommends $*', then run this again"
    fi
    report "missing on this system: $what; installing $*"
    "${as_root[@]}" apt-get update -qq >&2 || true  # one dead source is not fatal
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >&2 || die "apt-get could not install $* (see above)"
}

PATH=$PATH:/usr/sbin:/sbin  # ldconfig
uv=$(command -v uv) || uv=
if usable "$python"; then base=$python; else base=$(find_python) || base=$(uv_python) || base=; fi
missing=() packages=()
needs() { missing+=("$1"); shift; packages+=("$@"); }
if [ -z "$base" ] && [ -n "${PYTHON:-}" ]; then
    die "PYTHON=$PYTHON: expected a Python 3.11 to 3.14 that can make virtual environments"
fi
[ -n "$base" ] || needs "Python 3.11 to 3.14 with venv" python3 python3-venv
loads libGL.so.1 libgthread-2.0.so.0 || needs "libGL and GLib (for OpenCV)" libgl1 libglib2.0-0
loads libEGL.so.1 || loads libOSMesa.so.8 || needs "EGL or OSMesa (renders without a screen)" libegl1 libgl1-mesa-dri
if [ ${#missing[@]} -gt 0 ]; then
    apt_install "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')" "${packages[@]}"
    [ -n "$base" ] || base=$(find_python) || die "this system's python3 is not 3.11 to 3.14; install uv, which brings one," \
        "or one of them with venv, and name it: PYTHON=/path/to/python3.12 bash setup/install_env.sh"
fi

# ---------------------------------------------------------------------------------------------------------------- .venv

# `.unfinished` is written first and the stamp last: a .venv with `.unfinished` was interrupted and is recreated;
# one with neither is the user's own, and packages are installed into it.
stamp="$venv/.installed"
unfinished="$venv/.unfinished"
wanted=$(cat "$root/requirements.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1)

if [ ! -e "$unfinished" ] && [ "$base" = "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

if [ "$base" = "$python" ] && [ -e "$unfinished" ]; then
    base=$(find_python) || base=$(uv_python) || die "the Python that .venv was made with is gone"
fi
if [ "$base" != "$python" ]; then
    if [ -e "$unfinished" ] || [ -e "$stamp" ]; then
        report ".venv is left from an interrupted installation or has lost its Python; recreating it"
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +
    elif [ -e "$python" ]; then
        die "$venv holds $("$python" --version 2>&1), but Python 3.11 to 3.14 is needed: move that folder away"
    fi
    mkdir -p "$venv"
    touch "$unfinished"
    report "making .venv with $("$base" --version) ($base)"
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --allow-existing --python "$base" "$venv" >&2
    else
        "$base" -P -m venv "$venv"
    fi
fi
rm -f "$stamp"
touch "$unfinished"
report "installing requirements.txt (a few minutes, the first time)"
install() {
    if [ -n "$uv" ]; then
        "$uv" --directory "$root" pip install --quiet --python "$python" "$@" >&2
    else
        "$python" -P -m pip install --quiet --no-input "$@" >&2
    fi
}
[ -n "$uv" ] || "$python" -P -m pip --version >/dev/null 2>&1 || "$python" -P -m ensurepip >&2  # uv had made .venv
# The lock holds all that is needed, and dm_control would ask for labmaze, which is not and has no recent wheels. Only what
# torch pins itself, its libraries for GPUs, is left to torch.
torch=$(grep -o '^torch==[^ ]*' "$root/requirements.txt") || torch=
{ install --no-deps -r "$root/requirements.txt" && { [ -z "$torch" ] || install "$torch"; }; } ||
    die "could not install requirements.txt (see above); the same command tries again"

# ------------------------------------------------------------------------------------------------------------ rendering

renders() {  # renders BACKEND: MuJoCo can render with it
    MUJOCO_GL=$1 PYOPENGL_PLATFORM=$1 "$python" -P - 2>&1 <<'END'
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any(), "an empty image"
END
}

if ! renders egl >/dev/null && ! renders osmesa >/dev/null; then
    osmesa=()
    if apt-cache show libosmesa6 >/dev/null 2>&1; then osmesa=(libosmesa6); fi  # Debian 14 has none
    apt_install "rendering without a screen (EGL and OSMesa exist but do not work)" libegl1 libgl1-mesa-dri "${osmesa[@]}"
    renders egl >/dev/null || renders osmesa >/dev/null ||
        die "MuJoCo renders neither with EGL nor with OSMesa: $(renders egl | tail -1)"
fi

# On a CPU, layers in C++ make updates faster; on a GPU, PyTorch compiles, against Python's headers. All works without.
headers=$("$python" -P -c 'import sysconfig; print(sysconfig.get_path("include"))')
command -v "${CXX:-c++}" >/dev/null || (apt_install "a C++ compiler (makes updates faster)" g++) ||
    report "no C++ compiler (see above): updates run without compiled layers"
[ -e "$headers/Python.h" ] ||
    (apt_install "Python's headers (make updates on a GPU faster)" "$(basename "$headers")-dev") ||
    report "no headers of Python (see above): updates on a GPU run without compiled layers"

# Realistic ManiSkill renders with Vulkan; everything else works without it.
if "$python" -P -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("sapien"))'; then
    PYTHON="$python" bash "$root/setup/install_vulkan.sh" >&2 ||
        report "no Vulkan (see above): the rms_* tasks do not run here, everything else does"
fi

echo "$wanted" >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
rm -f "$unfinished"
report "done: $venv"
