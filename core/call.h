/* call.h: how an op in ops/ reaches a backend.
 *
 *     mc_status mc_exp(mc_tensor *out, const mc_tensor *a) {
 *         mci_call c = mci_begin("exp", MCI_OP_exp, 1);
 *         mci_in(&c, 0, a);                                  -- every input first
 *         if (!mci_ok(&c)) return mci_end(&c, NULL);         -- before reading a's view
 *         mci_out(&c, 0, out, a->v.dtype, a->v.ndim, a->v.shape);
 *         return mci_end(&c, NULL);
 *     }
 *
 * The first failure sticks: later calls do nothing and mci_end returns it, after emptying the
 * outputs that this call has filled. Inputs must be defined and on one device.
 */
#ifndef MCI_CALL_H
#define MCI_CALL_H

#include "backend.h"
#include "status.h"
#include "tensor.h"

enum { MCI_MAX_OPERANDS = 12 };

typedef struct mci_call {
    const char *name; /* as in messages */
    int op;
    int n_out;  /* inputs follow the outputs in t */
    int device; /* -1 until the first operand */
    mc_status status;
    int apart;        /* 1: an output may not be an input's very memory either (set by the op) */
    const char *each; /* one of many calls: what messages count ("parameter"), else NULL ... */
    int64_t number;   /* ... and which it is, from 1 */
    unsigned fresh;   /* bit i: output i was filled by this call */
    unsigned written; /* bit i: output i was filled before and is written in place */
    mc_tensor *out[4];
    const mci_view *t[MCI_MAX_OPERANDS];
} mci_call;

mci_call mci_begin(const char *name, int op, int n_out);
/* Input i; NULL or empty is an error. */
void mci_in(mci_call *c, int i, const mc_tensor *t);
/* Input i that may be absent (NULL). */
void mci_in_optional(mci_call *c, int i, const mc_tensor *t);
/* Output i: an empty handle gets a fresh contiguous tensor on the call's device; a filled one must
 * have this dtype, shape and device. A filled output that overlaps an input without being
 * the same view, or shares memory with another output, is an error. */
void mci_out(mci_call *c, int i, mc_tensor *t, int dtype, int ndim, const int64_t *shape);
/* Output i that is read and written: must be filled. Optional when `optional` and t is NULL. */
void mci_inout(mci_call *c, int i, mc_tensor *t, int optional);
/* Records a failure if there is none yet; message as mci_fail, the op's name is put before it. */
void mci_bad(mci_call *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline int mci_ok(const mci_call *c) {
    return c->status == MC_OK;
}
static inline int mci_is_fresh(const mci_call *c, int i) {
    return (int)((c->fresh >> i) & 1U);
}
/* Runs the kernel, bumps versions of outputs written in place; on failure empties fresh outputs. */
mc_status mci_end(mci_call *c, const void *params);
/* The same for n calls of one op whose outputs all were there before (mci_inout). Nothing runs when
 * one is wrong: the first of those gives the status. Else the backend's `many` runs them, or they
 * run in turn: where it has none, and, unless `in_order` says that its `many` keeps their order,
 * where one writes what another uses. */
mc_status mci_end_many(mci_call *c, int64_t n, const void *params, int in_order);

/* "[2, 3]" into one of a few rotating buffers of the thread. */
const char *mci_shape_text(int ndim, const int64_t *shape);
const char *mci_shape_of(const mc_tensor *t);
/* Broadcast of two shapes, numpy's rules: 1 and the result, or 0 when they do not fit. */
int mci_broadcast(int na, const int64_t *a, int nb, const int64_t *b, int *n, int64_t *shape);
int mci_same_shape(const mc_tensor *a, const mc_tensor *b);
/* Checks with standard wording, "op: a is float32 and b is int64; convert with ...": */
void mci_want_same_dtype(mci_call *c, const char *a_name, const mc_tensor *a, const char *b_name,
                         const mc_tensor *b);
void mci_want_float(mci_call *c, const char *a_name,
                    const mc_tensor *a); /* float64, 32, 16, bfloat16 */
void mci_want_index(mci_call *c, const char *a_name, const mc_tensor *a); /* int32, int64 */
void mci_want_shape(mci_call *c, const char *a_name, const mc_tensor *a, int ndim,
                    const int64_t *shape);
/* A number that is to take an integer tensor's dtype must be one of its values. */
void mci_want_number(mci_call *c, double s, int dtype);
/* float64 for float64, else float32: the dtype of statistics and moments. */
int mci_stat_dtype(int dtype);

#endif
