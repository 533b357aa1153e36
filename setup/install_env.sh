#!/usr/bin/env bash
# Makes .venv with the pinned requirements.txt and installs the system libraries that are missing, or says which command does.
#
#   bash setup/install_env.sh          quick when all is there; mends an installation that was interrupted
#   PYTHON=/path/to/python3.12 bash setup/install_env.sh      with that Python (3.11 or 3.12) when .venv is made
#
# System packages are installed where apt-get and the right to use it (root, or sudo without a password) are there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "install_env: $*" >&2; }
die() { say "$*"; exit 1; }

# Runs that start together install once: the others wait here for the first.
exec 9<"$root/requirements.txt"
flock 9

# ---------------------------------------------------------------------------------------------------------------- system

as_root=()
may_install() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then return 0; fi
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo -n); return 0; fi
    return 1
}

updated=no
apt_install() {  # apt_install WHY PACKAGE...
    local why=$1
    shift
    may_install || die "$why; install with: sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
    say "$why; installing $*"
    if [ $updated = no ]; then "${as_root[@]}" apt-get update -q >&2 && updated=yes; fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 ||
        die "$why, and apt-get could not install $*"
}

usable() {  # usable PYTHON: is 3.11 or 3.12, and can make a virtual environment
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 /usr/bin/python3.11 python3.12 /usr/bin/python3.12 python3}; do
        if usable "$candidate"; then command -v "$candidate"; return 0; fi
    done
    return 1
}

loads() {  # loads LIBRARY...: the dynamic linker finds each of them
    "$python" -c 'import ctypes, sys
for name in sys.argv[1:]: ctypes.CDLL(name)' "$@" 2>/dev/null
}

renders() {  # renders BACKEND: MuJoCo draws a picture with it
    MUJOCO_GL=$1 PYOPENGL_PLATFORM=$1 "$python" - >/dev/null 2>&1 <<'END'
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().any()
END
}

# ---------------------------------------------------------------------------------------------------------------- .venv

# The stamp is written last, and `.unfinished` first: a .venv that has `.unfinished` was interrupted and is made anew, one
# that has neither is the user's own and is filled as it is.
stamp="$venv/.installed"
unfinished="$venv/.unfinished"
wanted=$(cat "$root/requirements.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1)

if [ ! -e "$unfinished" ] && [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$python" -c ''; then
    complete=yes
else
    complete=no
fi

if [ $complete = no ]; then
    if [ -e "$unfinished" ] || { [ -e "$stamp" ] && ! usable "$python"; }; then
        say "an earlier installation was interrupted; making .venv anew"
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +
    fi
    rm -f "$stamp"
    if [ ! -x "$python" ]; then
        mkdir -p "$venv"
        touch "$unfinished"
        if ! base=$(find_python); then
            [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is no Python 3.11 or 3.12 that can make virtual environments"
            apt_install "no Python 3.11 or 3.12 that can make virtual environments" python3 python3-venv
            base=$(find_python) || die "this system's python3 is not 3.11 or 3.12; install one of them (with venv) and set PYTHON to it"
        fi
        say "making .venv with $("$base" --version) ($base)"
        "$base" -m venv "$venv"
    fi
    touch "$unfinished"
    usable "$python" || die "$venv holds $("$python" --version 2>&1); Python 3.11 or 3.12 is needed: move that folder away"
    say "installing requirements.txt (minutes, the first time)"
    "$python" -m pip install --quiet --no-input -r "$root/requirements.txt" >&2 ||
        die "pip could not install requirements.txt (its message is above); the same command tries again"
    "$python" -m pip check >&2 || die "the installed packages do not fit together (see above)"
fi

# ------------------------------------------------------------------------------------------------------------- libraries

if ! loads libGL.so.1 libgthread-2.0.so.0; then
    apt_install "OpenCV's libraries (libGL.so.1, libgthread-2.0.so.0) are missing" libgl1 libglib2.0-0
fi
if ! command -v ffmpeg >/dev/null; then
    apt_install "ffmpeg, which decodes videos, is missing" ffmpeg
fi
if ! loads libEGL.so.1 && ! loads libOSMesa.so.8; then
    apt_install "a library that draws without a screen (EGL or OSMesa) is missing" libegl1 libgl1-mesa-dri
fi

if [ $complete = no ]; then
    if ! renders egl && ! renders osmesa; then
        apt_install "MuJoCo draws neither with EGL nor with OSMesa" libegl1 libgl1-mesa-dri libosmesa6
        renders egl || renders osmesa || die "MuJoCo still draws neither with EGL nor with OSMesa; see its message: MUJOCO_GL=egl $python -m envs"
    fi
    # Realistic ManiSkill draws with Vulkan; everything else works without it.
    if [ -f "$root/setup/install_vulkan.sh" ] && "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("sapien"))'; then
        bash "$root/setup/install_vulkan.sh" >&2 || say "no Vulkan (see above): rms_* tasks will not run here, everything else will"
    fi
    rm -f "$unfinished"
    echo "$wanted" >"$stamp.tmp"
    mv "$stamp.tmp" "$stamp"
    say "done: $venv"
fi
