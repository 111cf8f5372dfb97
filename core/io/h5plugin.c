/* h5plugin.c: the plugin's entry and its table of functions.
 *
 * libmascon.so opens the plugin at the first save. A process that forks while one of its threads
 * makes a file's structure would leave libhdf5 locked in the child for good, so forks wait for the
 * call that runs.
 */
#include <pthread.h>

#include "h5room.h"

static const mci_hdf5_api table = {
    .abi = MCI_HDF5_ABI,
    .create = mci_h5_create,
    .group = mci_h5_group,
    .dataset = mci_h5_dataset,
    .link = mci_h5_link,
    .view_stack = mci_h5_view_stack,
    .view_select = mci_h5_view_select,
    .attr = mci_h5_attr,
    .size = mci_h5_size,
    .digest = mci_h5_digest,
    .close = mci_h5_close,
    .abandon = mci_h5_abandon,
};

__attribute__((visibility("default"))) const mci_hdf5_api *mascon_hdf5_api(
    const mci_hdf5_services *services);

/* The caller sees to it that one thread at a time is here. */
const mci_hdf5_api *mascon_hdf5_api(const mci_hdf5_services *services) {
    static int watches_forks;
    if (services->abi != MCI_HDF5_ABI) {
        services->fail(MC_EINTERNAL, "hdf5: libmascon_hdf5.so has ABI %d, libmascon.so has %u",
                       MCI_HDF5_ABI, services->abi);
        return NULL;
    }
    if (mci_h5_setup(services) != MC_OK) return NULL;
    if (!watches_forks)
        watches_forks = pthread_atfork(mci_h5_enter, mci_h5_leave, mci_h5_leave) == 0;
    return &table;
}
