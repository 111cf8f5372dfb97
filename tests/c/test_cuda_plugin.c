/* test_cuda_plugin.c: the CUDA plugin is opened at first use, and what is missing is an error that
 * names it: the plugin where it was not built, else the driver. With a GPU, a sum on it. */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "mascon.h"

static void missing(const char *what) {
    int device = -1, count = -1;
    CHECK_STATUS(mc_device_parse("cuda", &device), MC_EDEVICE, what);
    CHECK(device == -1);
    CHECK_OK(mc_device_count("cuda", &count));
    CHECK(count == 0);
    CHECK_STATUS(mc_device_parse("cuda:3", &device), MC_EDEVICE, what);
}

#ifdef MASCON_CUDA_PLUGIN
static void with_plugin(void) {
    if (access("/dev/nvidiactl", F_OK) != 0) {
        TITLE("without an NVIDIA driver the CUDA plugin opens and says so");
        missing("device cuda: no NVIDIA driver (libcuda.so.1) on this machine");
        return;
    }
    TITLE("a GPU adds");
    int device = -1, count = 0;
    CHECK_OK(mc_device_count("cuda", &count));
    CHECK(count >= 1);
    CHECK_OK(mc_device_parse("cuda", &device));
    mc_tensor *a = mc_tensor_new(), *sum = mc_tensor_new();
    int64_t n = 1000;
    double value = 0;
    CHECK_OK(mc_empty(a, MC_FLOAT32, device, 1, &n));
    CHECK_OK(mc_fill(a, 2));
    CHECK_OK(mc_sum(sum, a, 0, NULL, 0));
    CHECK_OK(mc_item(sum, &value));
    CHECK(value == 2000);
    CHECK(strlen(mc_device_info(device, "name")) > 0);
    mc_tensor_free(a);
    mc_tensor_free(sum);
}
#endif

int main(void) {
#ifdef MASCON_CUDA_PLUGIN
    with_plugin();
#else
    TITLE("a build without the CUDA plugin says so");
    missing("device cuda: the CUDA plugin cannot be opened");
#endif
    return check_report();
}
