/* test_emulator.h: a device array for the tests of the emulator. */
#ifndef TEST_EMULATOR_H
#define TEST_EMULATOR_H

#include <vector>

#include "../../cuda/common.cuh"
#include "../../cuda/ptx.cuh"
#include "../c/check.h"

template <typename T>
struct device_array {
    T *data = nullptr;
    size_t n;
    explicit device_array(const std::vector<T> &x) : n(x.size()) {
        cudaMalloc(&data, n * sizeof(T));
        cudaMemcpy(data, x.data(), n * sizeof(T), cudaMemcpyHostToDevice);
    }
    device_array(size_t count, T value) : device_array(std::vector<T>(count, value)) {}
    device_array(const device_array &) = delete;
    ~device_array() { cudaFree(data); }
    std::vector<T> host() const {
        std::vector<T> x(n);
        cudaMemcpy(x.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost);
        return x;
    }
};

int test_captures(); /* streams, events and graphs: test_captures.cpp; 0 when all is well */

#endif
