#!/usr/bin/env bash
# Makes .venv with the pinned requirements.txt, and installs missing system libraries or prints the command that does.
#
#   bash setup/install_env.sh          fast if nothing is missing; repairs an interrupted installation
#   PYTHON=/path/to/python3.12 bash setup/install_env.sh      with that Python (3.11 or 3.12) when .venv is made
#
# System packages are installed if apt-get exists and may be used (as root, or with sudo without a password).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "install_env: $*" >&2; }
die() { say "$*"; exit 1; }

# Concurrent runs install once: the others wait here for the first.
exec 9<"$root/requirements.txt"
flock 9

# --------------------------------------------------------------------------------------------------------------- system

usable() {  # usable PYTHON: is 3.11 or 3.12, and can make a virtual environment
    [ "$("$1" -c 'import sys, ensurepip, venv; print(sys.version_info[:2] in ((3, 11), (3, 12)))' 2>/dev/null)" = True ]
}

find_python() {
    local candidate candidates=(python3.11 /usr/bin/python3.11 python3.12 /usr/bin/python3.12 python3)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if usable "$candidate"; then command -v "$candidate"; return 0; fi
    done
    return 1
}

loads() {  # loads LIBRARY...: the dynamic linker finds each of them
    local name
    if [ -n "$base" ]; then
        "$base" -c 'import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]]' "$@" 2>/dev/null
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
    say "missing on this system: $what; installing $*"
    "${as_root[@]}" apt-get update -qq >&2 || true  # one dead source is not fatal
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >&2 || die "apt-get could not install $* (see above)"
}

PATH=$PATH:/usr/sbin:/sbin  # ldconfig
if usable "$python"; then base=$python; else base=$(find_python) || base=; fi
missing=() packages=()
needs() { missing+=("$1"); shift; packages+=("$@"); }
if [ -z "$base" ] && [ -n "${PYTHON:-}" ]; then
    die "PYTHON=$PYTHON: expected a Python 3.11 or 3.12 that can make virtual environments"
fi
[ -n "$base" ] || needs "Python 3.11 or 3.12 with venv" python3 python3-venv
loads libGL.so.1 libgthread-2.0.so.0 || needs "libGL and GLib (for OpenCV)" libgl1 libglib2.0-0
command -v ffmpeg >/dev/null || needs "ffmpeg (decodes videos)" ffmpeg
loads libEGL.so.1 || loads libOSMesa.so.8 || needs "EGL or OSMesa (renders without a screen)" libegl1 libgl1-mesa-dri
if [ ${#missing[@]} -gt 0 ]; then
    apt_install "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')" "${packages[@]}"
    [ -n "$base" ] || base=$(find_python) || die "this system's python3 is neither 3.11 nor 3.12; install one of them" \
        "(with venv) and name it: PYTHON=/path/to/python3.12 bash setup/install_env.sh"
fi

# ---------------------------------------------------------------------------------------------------------------- .venv

# `.unfinished` is written first and the stamp last: a .venv with `.unfinished` was interrupted and is recreated;
# one with neither is the user's own, and packages are installed into it.
stamp="$venv/.installed"
unfinished="$venv/.unfinished"
wanted=$(cat "$root/requirements.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1)

if [ ! -e "$unfinished" ] && [ "$base" = "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

if [ "$base" = "$python" ] && [ -e "$unfinished" ]; then
    base=$(find_python) || die "the Python 3.11 or 3.12 that .venv was made with is gone"
fi
if [ "$base" != "$python" ]; then
    if [ -e "$unfinished" ] || [ -e "$stamp" ]; then
        say ".venv is left from an interrupted installation or has lost its Python; recreating it"
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .unfinished -exec rm -rf {} +
    elif [ -e "$python" ]; then
        die "$venv holds $("$python" --version 2>&1), but Python 3.11 or 3.12 is needed: move that folder away"
    fi
    mkdir -p "$venv"
    touch "$unfinished"
    say "making .venv with $("$base" --version) ($base)"
    "$base" -m venv "$venv"
fi
rm -f "$stamp"
touch "$unfinished"
say "installing requirements.txt (a few minutes, the first time)"
"$python" -m pip install --quiet --no-input -r "$root/requirements.txt" >&2 ||
    die "pip could not install requirements.txt (see above); the same command tries again"
"$python" -m pip check >&2 || die "the installed packages are incompatible (see above)"


# ------------------------------------------------------------------------------------------------------------ rendering

renders() {  # renders BACKEND: MuJoCo can render with it
    MUJOCO_GL=$1 PYOPENGL_PLATFORM=$1 "$python" - 2>&1 <<'END'
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
    apt_install "rendering without a screen (EGL and OSMesa exist but do not work)" libegl1 libgl1-mesa-dri libosmesa6
    renders egl >/dev/null || renders osmesa >/dev/null ||
        die "MuJoCo renders neither with EGL nor with OSMesa: $(renders egl | tail -1)"
fi

# On a CPU, layers in C++ make updates faster; on a GPU, Triton compiles. Everything works without a compiler.
command -v "${CXX:-c++}" >/dev/null || (apt_install "a C++ compiler (makes updates faster)" g++) ||
    say "no C++ compiler (see above): updates run without compiled layers"

# Realistic ManiSkill renders with Vulkan; everything else works without it.
if "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("sapien"))'; then
    PYTHON="$python" bash "$root/setup/install_vulkan.sh" >&2 ||
        say "no Vulkan (see above): the rms_* tasks do not run here, everything else does"
fi

echo "$wanted" >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
rm -f "$unfinished"
say "done: $venv"
