/* graph.h: what the rest of the core tells a graph that is being recorded. */
#ifndef MCI_GRAPH_H
#define MCI_GRAPH_H

#include "tensor.h"

/* 1 while a graph is recorded, on any device. */
extern int mci_recording;

/* An op of the graph reads the storage, or writes it in place: it will at each replay. */
void mci_graph_use(mci_storage *storage, int written);
/* MC_EUNSUPPORTED while a graph is recorded on the device: `what` would read or write host values.
 */
mc_status mci_graph_forbids(int device, const char *what);

#endif
