#!/usr/bin/env bash
# Installs what Realistic ManiSkill (SAPIEN) needs to render without a GPU: the Vulkan loader, Mesa's software driver with
# descriptor indexing, and the small layer in setup/vulkan. Does nothing if a GPU supports Vulkan or nothing is missing,
# and can be run again. PYTHON names the Python (3.10 or later) that looks for devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
layer=setup/vulkan/build/libhrssm_semaphore_layer.so

die() {
    echo "install_vulkan.sh: $*" >&2
    exit 1
}

missing=$("$python" envs/vulkan.py)  # of loader, driver, layer
[ -n "$missing" ] || exit 0
needs() { grep -qx "$1" <<<"$missing"; }

packages=()
if needs loader; then packages+=(libvulkan1); fi
if needs driver; then packages+=(mesa-vulkan-drivers); fi
if needs layer; then
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    [ -e /usr/include/vulkan/vk_layer.h ] || packages+=(libvulkan-dev)
fi

# Debian 12's own Mesa lacks descriptor indexing: the driver comes from its backports, from the configured mirror.
source_list=/etc/apt/sources.list.d/bookworm-backports.list
backports() {  # the line for $source_list; nothing if the backports are configured already
    local targets mirror
    targets=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages')
    if grep -q ' bookworm-backports main$' <<<"$targets"; then return; fi
    mirror=$(awk '$2 == "bookworm" && $3 == "main" { print $1; exit }' <<<"$targets")
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-DEBIAN_MIRROR} bookworm-backports main"
}

if [ ${#packages[@]} -gt 0 ]; then
    command -v apt-get >/dev/null ||
        die "install with this system's package manager: ${packages[*]} (Mesa 23.1 or later); then run this again"
    suite=()
    if needs driver && [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
        suite=(-t bookworm-backports)
    fi
    install=(apt-get -q install -y --no-install-recommends ${suite[@]+"${suite[@]}"} "${packages[@]}")
    root=(env DEBIAN_FRONTEND=noninteractive)
    if [ "$(id -u)" != 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "install_vulkan.sh: system packages are missing that this user may not install. As root run:" >&2
            line=$([ ${#suite[@]} = 0 ] || backports)
            if [ -n "$line" ]; then echo "  echo '$line' > $source_list" >&2; fi
            echo "  apt-get update && ${install[*]}" >&2
            exit 1
        fi
        root=(sudo -n "${root[@]}")
    fi
    "${root[@]}" apt-get -q update || die "apt-get update failed (see above)"
    line=$([ ${#suite[@]} = 0 ] || backports)
    if [ -n "$line" ]; then
        case $line in *DEBIAN_MIRROR*) die "apt knows no bookworm main: add it to its sources, then run this again" ;; esac
        echo "$line" | "${root[@]}" tee "$source_list" >/dev/null
        "${root[@]}" apt-get -q update || die "apt-get update failed with $source_list (see above)"
    fi
    "${root[@]}" "${install[@]}" -o DPkg::Lock::Timeout=300 || die "apt could not install ${packages[*]} (see above)"
fi

if needs layer; then
    mkdir -p "$(dirname "$layer")"
    cc -std=c11 -O2 -Wall -Wextra -fPIC -fvisibility=hidden -shared setup/vulkan/semaphore_layer.c -o "$layer.tmp" -pthread
    mv "$layer.tmp" "$layer"  # never incomplete under its name
fi

missing=$("$python" envs/vulkan.py)
[ -z "$missing" ] ||
    die "still missing: ${missing//$'\n'/, } (driver: Mesa's lavapipe with VK_EXT_descriptor_indexing, Mesa 23.1 or later)"
