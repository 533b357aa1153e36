// A Vulkan layer for machines without a GPU. SAPIEN enables VK_KHR_external_semaphore_fd on every device, though it only uses
// it with CUDA; Mesa's software device (lavapipe) lacks it, so vkCreateDevice fails. This layer adds the extension to the
// list of software devices, and removes it again before such a device is created. envs/vulkan.py activates it where no
// device has the extension.
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define LAYER "VK_LAYER_HRSSM_external_semaphore"
#define EXTENSION VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME
#define EXPORT __attribute__((visibility("default")))

// The functions of what comes after this layer: they take any instance or device, so all have the same ones. They are
// queried when an instance is created: later the loader returns this layer's own functions.
static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;
static PFN_vkGetPhysicalDeviceProperties next_properties;
static PFN_vkEnumerateDeviceExtensionProperties next_extensions;
static PFN_vkCreateDevice next_create_device;

static int is_software(VkPhysicalDevice device) {
    VkPhysicalDeviceProperties properties;
    next_properties(device, &properties);
    return properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_extensions(VkPhysicalDevice device, const char *layer, uint32_t *count,
                                                           VkExtensionProperties *list) {
    if (layer && strcmp(layer, LAYER) == 0) return *count = 0, VK_SUCCESS;
    uint32_t room = *count;
    VkResult result = next_extensions(device, layer, count, list);
    if (layer || result != VK_SUCCESS || !is_software(device)) return result;
    if (list && *count == room) return VK_INCOMPLETE;
    if (list) {
        list[*count] = (VkExtensionProperties){.specVersion = VK_KHR_EXTERNAL_SEMAPHORE_FD_SPEC_VERSION};
        strcpy(list[*count].extensionName, EXTENSION);
    }
    ++*count;
    return VK_SUCCESS;
}

// The loader's link of a chain, from its pNext list; every layer moves it on for the next one.
#define FIND_LINK(type, kind)                                                                                    \
    type *link = (type *)info->pNext;                                                                            \
    while (link && !(link->sType == (kind) && link->function == VK_LAYER_LINK_INFO)) link = (type *)link->pNext; \
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator, VkDevice *device) {
    FIND_LINK(VkLayerDeviceCreateInfo, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO)
    next_device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    VkDeviceCreateInfo stripped = *info;
    const char **names = calloc(info->enabledExtensionCount + 1, sizeof *names);
    if (!names) return VK_ERROR_OUT_OF_HOST_MEMORY;
    stripped.enabledExtensionCount = 0;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (strcmp(info->ppEnabledExtensionNames[i], EXTENSION) != 0 || !is_software(physical))
            names[stripped.enabledExtensionCount++] = info->ppEnabledExtensionNames[i];
    stripped.ppEnabledExtensionNames = names;
    VkResult result = next_create_device(physical, &stripped, allocator, device);
    free(names);
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance) {
    FIND_LINK(VkLayerInstanceCreateInfo, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO)
    next_instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateInstance)next_instance_proc(NULL, "vkCreateInstance"))(info, allocator, instance);
    if (result != VK_SUCCESS) return result;
#define QUERY(name) (PFN_##name) next_instance_proc(*instance, #name)
    next_properties = QUERY(vkGetPhysicalDeviceProperties);
    next_extensions = QUERY(vkEnumerateDeviceExtensionProperties);
    next_create_device = QUERY(vkCreateDevice);
    return VK_SUCCESS;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name) {
    return next_device_proc(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance, const char *name) {
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
    } own[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance_proc},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_proc},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
        {"vkEnumerateDeviceExtensionProperties", (PFN_vkVoidFunction)enumerate_extensions},
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(name, own[i].name) == 0) return own[i].function;
    return next_instance_proc ? next_instance_proc(instance, name) : NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
    if (interface->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = get_instance_proc;
    interface->pfnGetDeviceProcAddr = get_device_proc;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
