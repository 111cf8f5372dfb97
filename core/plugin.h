/* plugin.h: opens the libraries that stand beside libmascon.so (oneDNN, CBLAS, HDF5, CUDA) at first
 * use. */
#ifndef MCI_PLUGIN_H
#define MCI_PLUGIN_H

#include "backend.h"

/* Opens libmascon_<name>.so beside libmascon.so and finds `symbol` in it. NULL on failure, with the
 * loader's reason in `reason` (size bytes). Does not touch the thread's error message. Stays open
 * for the process. */
void *mci_plugin_symbol(const char *name, const char *symbol, char *reason, size_t size);
const mci_services *mci_plugin_services(void);

#endif
