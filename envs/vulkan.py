"""Vulkan for SAPIEN on a machine without a GPU: the devices, what is missing, and the environment variables.

SAPIEN needs a Vulkan device with descriptor indexing and VK_KHR_external_semaphore_fd. Mesa's software device,
lavapipe, has the first in releases after Debian 12's; the layer in setup/vulkan adds the second. On a machine
with a GPU, nothing changes.

Needs only the standard library: setup/install_vulkan.sh runs it as a script, before anything is installed. It prints
what is missing (loader, driver, layer), one per line.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
from typing import NamedTuple

LAYER = "VK_LAYER_HRSSM_external_semaphore"
LAYER_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "setup" / "vulkan"
LAYER_LIBRARY = LAYER_FOLDER / "build" / "libhrssm_semaphore_layer.so"
DRIVER_FOLDERS = ("/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/usr/share/vulkan/icd.d")
INSTALL = "bash setup/install_vulkan.sh"
INDEXING, SEMAPHORE = "VK_EXT_descriptor_indexing", "VK_KHR_external_semaphore_fd"


class Device(NamedTuple):
    """A Vulkan device: its name, whether it is a GPU (not a software device), its extensions."""

    name: str
    gpu: bool
    extensions: frozenset[str]


class _InstanceInfo(ctypes.Structure):  # VkInstanceCreateInfo
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _Properties(ctypes.Structure):  # the head of VkPhysicalDeviceProperties, and room for the rest of it
    _fields_ = [
        ("numbers", ctypes.c_uint32 * 4),
        ("kind", ctypes.c_uint32),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_byte * 2048),
    ]


class _Extension(ctypes.Structure):  # VkExtensionProperties
    _fields_ = [("name", ctypes.c_char * 256), ("version", ctypes.c_uint32)]


CPU_DEVICE = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU


def devices() -> list[Device] | None:
    """The Vulkan devices that a program sees under the current environment variables; None without a Vulkan loader."""
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return None
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(_InstanceInfo(type=1)), None, ctypes.byref(instance)):
        return []  # no driver
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        handles = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        found = []
        for handle in map(ctypes.c_void_p, handles):
            properties = _Properties()
            vulkan.vkGetPhysicalDeviceProperties(handle, ctypes.byref(properties))
            vulkan.vkEnumerateDeviceExtensionProperties(handle, None, ctypes.byref(count), None)
            extensions = (_Extension * count.value)()
            vulkan.vkEnumerateDeviceExtensionProperties(handle, None, ctypes.byref(count), extensions)
            names = frozenset(extension.name.decode() for extension in extensions)
            found.append(Device(properties.name.decode(), properties.kind != CPU_DEVICE, names))
        return found
    finally:
        vulkan.vkDestroyInstance(instance, None)


def missing(found: list[Device] | None) -> list[str]:
    """The parts (loader, driver, layer) that are still missing for SAPIEN to render on one of the devices."""
    if any(device.gpu or {INDEXING, SEMAPHORE} <= device.extensions for device in found or ()):
        return []
    parts = [] if found is not None else ["loader"]
    if not any(INDEXING in device.extensions for device in found or ()):
        parts.append("driver")
    source = LAYER_FOLDER / "semaphore_layer.c"
    if not LAYER_LIBRARY.exists() or LAYER_LIBRARY.stat().st_mtime < source.stat().st_mtime:
        parts.append("layer")
    return parts


def prepare() -> bool:
    """Sets the environment variables with which SAPIEN renders on the CPU, if there is no GPU.

    Call it before importing sapien. Returns whether the CPU renders. Raises ImportError if nothing can.
    """
    found = devices()
    if any(device.gpu for device in found or ()):
        return False
    if absent := missing(found):
        seen = ", ".join(device.name for device in found or ()) or "none"
        raise ImportError(
            f"rms_* tasks render with Vulkan: no GPU here supports it (devices: {seen}), and for "
            f"rendering on the CPU, these are missing: {', '.join(absent)}. Install them with `{INSTALL}`"
        )
    if not {"VK_ICD_FILENAMES", "VK_DRIVER_FILES"} & os.environ.keys():
        files = [file for folder in DRIVER_FOLDERS for file in sorted(pathlib.Path(folder).glob("lvp_icd*.json"))]
        if files:
            os.environ["VK_ICD_FILENAMES"] = ":".join(map(str, files))
    if not any({INDEXING, SEMAPHORE} <= device.extensions for device in found):
        for variable, value in (("VK_LAYER_PATH", str(LAYER_FOLDER)), ("VK_INSTANCE_LAYERS", LAYER)):
            os.environ[variable] = ":".join(filter(None, [value, os.environ.get(variable)]))
    return True


if __name__ == "__main__":
    print("\n".join(missing(devices())))
