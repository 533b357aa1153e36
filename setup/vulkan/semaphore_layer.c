// A Vulkan layer for machines without a GPU. SAPIEN enables VK_KHR_external_semaphore_fd on every device, though it only uses
// it with CUDA; Mesa's software device (lavapipe) lacks it, so vkCreateDevice fails. This layer adds the extension to the
// list of software devices that lack it, and removes it again before such a device is created.
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define LAYER "VK_LAYER_HRSSM_external_semaphore"
#define EXTENSION VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME
#define EXPORT __attribute__((visibility("default")))

// The rest of the chain after this layer, per instance and device. All handles of an instance (of a device) begin with the
// same pointer, the loader's dispatch table: it is the key.
typedef struct Chain {
    void *key;
    struct Chain *rest;
    // Of instances. The functions are queried once, at creation: later the loader returns this layer's own functions.
    VkInstance instance;
    PFN_vkGetInstanceProcAddr instance_proc;
    PFN_vkDestroyInstance destroy;
    PFN_vkGetPhysicalDeviceProperties properties;
    PFN_vkEnumerateDeviceExtensionProperties extensions;
    // Of devices.
    PFN_vkGetDeviceProcAddr device_proc;
} Chain;

static Chain *chains;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *key_of(void *handle) { return *(void **)handle; }

static bool remember(Chain entry) {
    Chain *chain = malloc(sizeof *chain);
    if (!chain) return false;
    pthread_mutex_lock(&lock);
    entry.rest = chains;
    *chain = entry;
    chains = chain;
    pthread_mutex_unlock(&lock);
    return true;
}

static Chain lookup(void *key, bool forget) {
    Chain found = {0};
    pthread_mutex_lock(&lock);
    for (Chain **at = &chains; *at; at = &(*at)->rest) {
        if ((*at)->key != key) continue;
        Chain *chain = *at;
        found = *chain;
        if (forget) *at = chain->rest, free(chain);
        break;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

// A software device without the extension.
static bool lacks_extension(VkPhysicalDevice device) {
    Chain next = lookup(key_of(device), false);
    VkPhysicalDeviceProperties properties;
    next.properties(device, &properties);
    if (properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU) return false;
    uint32_t count = 0;
    if (next.extensions(device, NULL, &count, NULL) != VK_SUCCESS) return false;
    VkExtensionProperties *list = calloc(count + 1, sizeof *list);
    bool lacks = list && next.extensions(device, NULL, &count, list) == VK_SUCCESS;
    for (uint32_t i = 0; lacks && i < count; i++) lacks = strcmp(list[i].extensionName, EXTENSION) != 0;
    free(list);
    return lacks;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_extensions(VkPhysicalDevice device, const char *layer, uint32_t *count,
                                                           VkExtensionProperties *list) {
    if (layer && strcmp(layer, LAYER) == 0) return *count = 0, VK_SUCCESS;
    PFN_vkEnumerateDeviceExtensionProperties enumerate = lookup(key_of(device), false).extensions;
    if (layer || !lacks_extension(device)) return enumerate(device, layer, count, list);
    uint32_t room = *count;
    VkResult result = enumerate(device, NULL, count, list);
    if (result != VK_SUCCESS) return result;
    if (list && *count == room) return VK_INCOMPLETE;
    if (list) {
        list[*count] = (VkExtensionProperties){.specVersion = VK_KHR_EXTERNAL_SEMAPHORE_FD_SPEC_VERSION};
        strcpy(list[*count].extensionName, EXTENSION);
    }
    ++*count;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator, VkDevice *device) {
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    PFN_vkGetDeviceProcAddr next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;  // the next layer finds its own link

    VkDeviceCreateInfo stripped = *info;
    const char **names = calloc(info->enabledExtensionCount + 1, sizeof *names);
    if (!names) return VK_ERROR_OUT_OF_HOST_MEMORY;
    if (lacks_extension(physical)) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
            if (strcmp(info->ppEnabledExtensionNames[i], EXTENSION) != 0) names[kept++] = info->ppEnabledExtensionNames[i];
        stripped.ppEnabledExtensionNames = names;
        stripped.enabledExtensionCount = kept;
    }
    VkInstance instance = lookup(key_of(physical), false).instance;
    VkResult result = ((PFN_vkCreateDevice)next(instance, "vkCreateDevice"))(physical, &stripped, allocator, device);
    free(names);
    if (result == VK_SUCCESS && !remember((Chain){.key = key_of(*device), .device_proc = next_device})) {
        ((PFN_vkDestroyDevice)next_device(*device, "vkDestroyDevice"))(*device, allocator);
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    }
    return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_device(VkDevice device, const VkAllocationCallbacks *allocator) {
    if (!device) return;
    Chain chain = lookup(key_of(device), true);
    ((PFN_vkDestroyDevice)chain.device_proc(device, "vkDestroyDevice"))(device, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateInstance)next(NULL, "vkCreateInstance"))(info, allocator, instance);
    if (result != VK_SUCCESS) return result;
    Chain chain = {
        .key = key_of(*instance),
        .instance = *instance,
        .instance_proc = next,
        .destroy = (PFN_vkDestroyInstance)next(*instance, "vkDestroyInstance"),
        .properties = (PFN_vkGetPhysicalDeviceProperties)next(*instance, "vkGetPhysicalDeviceProperties"),
        .extensions = (PFN_vkEnumerateDeviceExtensionProperties)next(*instance, "vkEnumerateDeviceExtensionProperties"),
    };
    if (remember(chain)) return VK_SUCCESS;
    chain.destroy(*instance, allocator);
    return VK_ERROR_OUT_OF_HOST_MEMORY;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance instance, const VkAllocationCallbacks *allocator) {
    if (!instance) return;
    lookup(key_of(instance), true).destroy(instance, allocator);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name) {
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (PFN_vkVoidFunction)get_device_proc;
    if (strcmp(name, "vkDestroyDevice") == 0) return (PFN_vkVoidFunction)destroy_device;
    Chain chain = lookup(key_of(device), false);
    return chain.device_proc ? chain.device_proc(device, name) : NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance, const char *name) {
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
    } own[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance_proc},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_proc},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
        {"vkDestroyInstance", (PFN_vkVoidFunction)destroy_instance},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
        {"vkDestroyDevice", (PFN_vkVoidFunction)destroy_device},
        {"vkEnumerateDeviceExtensionProperties", (PFN_vkVoidFunction)enumerate_extensions},
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(name, own[i].name) == 0) return own[i].function;
    Chain chain = instance ? lookup(key_of(instance), false) : (Chain){0};
    return chain.instance_proc ? chain.instance_proc(instance, name) : NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
    if (interface->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = get_instance_proc;
    interface->pfnGetDeviceProcAddr = get_device_proc;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
