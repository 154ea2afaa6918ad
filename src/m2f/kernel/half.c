// Half precision to single precision: NumpyKernel.widen in C.

#include "kernel.h"

#define LEVEL(name, fma, target)                                                                \
    target static void widen_##name(const uint16_t *halves, float *restrict out, int64_t n) {   \
        for (int64_t i = 0; i < n; i++) out[i] = single(halves[i]);                             \
    }

EACH_LEVEL(LEVEL)

// Converts n numbers.
EXPORT void m2f_widen(int64_t level, const uint16_t *halves, float *out, int64_t n) {
#define WIDEN(name, fma, target) widen_##name,
    __typeof__(widen_baseline) *const levels[] = {EACH_LEVEL(WIDEN)};
    levels[level](halves, out, n);
}
