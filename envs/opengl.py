"""Selects MuJoCo's OpenGL backend for rendering without a screen."""

import ctypes
import ctypes.util
import os


def pick() -> str:
    """Sets MUJOCO_GL to egl if that works, else to osmesa, else to off, unless it is set; returns it.

    Call it before importing dm_control, which picks its renderer at import.
    """
    if not os.environ.get("MUJOCO_GL"):
        fallback = "osmesa" if ctypes.util.find_library("OSMesa") else "off"
        os.environ["MUJOCO_GL"] = "egl" if _egl_works() else fallback
    return os.environ["MUJOCO_GL"]


def _egl_works() -> bool:
    """Whether some EGL device can be opened without a screen and offers desktop OpenGL.

    Through ctypes rather than PyOpenGL, which fixes its platform at the first import.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            egl.eglGetProcAddress(b"eglQueryDevicesEXT")
        )
        get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
            egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
        )
    except (OSError, TypeError, AttributeError):  # no library, or a function missing from it
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    platform_device = 0x313F
    # EGL_SURFACE_TYPE: EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE: EGL_OPENGL_BIT, EGL_NONE
    attributes = (ctypes.c_int * 5)(0x3033, 0x0001, 0x3040, 0x0008, 0x3038)
    for device in devices[: count.value]:
        display = ctypes.c_void_p(get_display(platform_device, device, None))
        if not display or not egl.eglInitialize(display, None, None):
            continue
        configs = ctypes.c_int()
        chosen = egl.eglChooseConfig(display, attributes, None, 0, ctypes.byref(configs))
        egl.eglTerminate(display)
        if chosen and configs.value:
            return True
    return False
