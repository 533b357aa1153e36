#!/usr/bin/env bash
# What Realistic ManiSkill (SAPIEN) needs to render on a machine without a GPU: the Vulkan loader, Mesa's software driver with
# descriptor indexing, and the small layer in setup/vulkan. Does nothing where a GPU offers Vulkan or where all is there; can be
# run again. PYTHON names the Python (3.10 or later) that looks for devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
layer=setup/vulkan/build/libhrssm_semaphore_layer.so

missing=$("$python" envs/vulkan.py)
[ -n "$missing" ] || exit 0
needs() { grep -qx "$1" <<<"$missing"; }

# The packages that are not there yet.
packages=()
if needs loader; then packages+=(libvulkan1); fi
if needs driver; then packages+=(mesa-vulkan-drivers); fi
if needs layer; then
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    [ -e /usr/include/vulkan/vk_layer.h ] || packages+=(libvulkan-dev)
fi

# Debian 12's own Mesa lacks descriptor indexing: there the driver comes from its backports.
suite=()
backports=
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
if needs driver && [ "$codename" = bookworm ]; then
    suite=(-t bookworm-backports)
    targets=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages')
    if ! grep -q ' bookworm-backports main$' <<<"$targets"; then
        mirror=$(awk '$2 == "bookworm" && $3 == "main" { print $1; exit }' <<<"$targets")
        backports="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main"
    fi
fi

if [ ${#packages[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "install_vulkan.sh: install with this system's package manager, then run it again: ${packages[*]}" \
            "(Mesa 23.1 or later)" >&2
        exit 1
    fi
    list=/etc/apt/sources.list.d/bookworm-backports.list
    root=()
    if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
    if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        echo "install_vulkan.sh: system packages are missing and may not be installed by this user. As root run:" >&2
        if [ -n "$backports" ]; then echo "  echo '$backports' > $list" >&2; fi
        echo "  apt-get update && apt-get install -y --no-install-recommends ${suite[*]} ${packages[*]}" >&2
        exit 1
    fi
    if [ -n "$backports" ]; then echo "$backports" | "${root[@]}" tee "$list" >/dev/null; fi
    "${root[@]}" apt-get -q update
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 ${suite[@]+"${suite[@]}"} "${packages[@]}"
fi

if needs layer; then
    mkdir -p "$(dirname "$layer")"
    cc -std=c11 -O2 -Wall -Wextra -fPIC -fvisibility=hidden -shared setup/vulkan/semaphore_layer.c -o "$layer.tmp" -lpthread
    mv "$layer.tmp" "$layer"  # never half written under its name
fi

missing=$("$python" envs/vulkan.py)
if [ -n "$missing" ]; then
    echo "install_vulkan.sh: still missing after the installation: ${missing//$'\n'/, }" \
        "(driver: Mesa's lavapipe with VK_EXT_descriptor_indexing, Mesa 23.1 or later)" >&2
    exit 1
fi
