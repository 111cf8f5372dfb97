#include "plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "status.h"

void *mci_plugin_symbol(const char *name, const char *symbol, char *reason, size_t size) {
    /* The plugins stand beside this library, wherever it was loaded from. */
    Dl_info self;
    char path[PATH_MAX];
    if (!dladdr((const void *)(uintptr_t)&mci_plugin_symbol, &self) || !self.dli_fname) {
        snprintf(reason, size, "the place of libmascon.so is unknown");
        return NULL;
    }
    const char *slash = strrchr(self.dli_fname, '/');
    int folder = slash ? (int)(slash - self.dli_fname) + 1 : 0;
    int n = snprintf(path, sizeof path, "%.*slibmascon_%s.so", folder, self.dli_fname, name);
    if (n < 0 || n >= (int)sizeof path) {
        snprintf(reason, size, "the path of libmascon_%s.so is too long", name);
        return NULL;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *found = library ? dlsym(library, symbol) : NULL;
    if (!found) {
        const char *why = dlerror();
        snprintf(reason, size, "%s", why ? why : "symbol not found");
    }
    return found;
}

const mci_services *mci_plugin_services(void) {
    static const mci_services services = {.abi = MCI_BACKEND_ABI, .fail = mci_fail};
    return &services;
}
