// Mask probabilities at the image's size, and the winner of each pixel: NumpyOperator.probabilities and
// NumpyKernel.compete in C.

#include "kernel.h"

#include <stdlib.h>

enum { BLOCK = 4096 };  // pixels that are worked on together

INLINE float sigmoid(float x, int fma) {
    float size = x < 0 ? -x : x, e = exp_of_minus(size < 86 ? size : 86, fma);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// Replaces infinity by a logit whose sigmoid is 0 or 1, and that a weight of 0 still turns into 0; NaN is far outside.
INLINE float made_finite(float x) { return x - x == 0 ? x : x > 0 ? 1e4f : -1e4f; }

// Interpolates a row of cells to the image's width.
INLINE void widen(const float *cells, const Axis *columns, float *row) {
    for (int64_t t = 0; t < columns->taps; t++) {
        const int32_t *source = columns->source + t * columns->size_out;
        const float *weight = columns->weight + t * columns->size_out;
        if (t == 0)
            for (int64_t x = 0; x < columns->size_out; x++) row[x] = made_finite(cells[source[x]]) * weight[x];
        else
            for (int64_t x = 0; x < columns->size_out; x++) row[x] += made_finite(cells[source[x]]) * weight[x];
    }
}

// Computes mask probabilities of n queries at rows [y0, y1) of the image: [n][y1 - y0][width].
INLINE int64_t probabilities(const float *logits, const int64_t *queries, int64_t n, const Axis *rows,
                             const Axis *columns, int64_t y0, int64_t y1, float *out, int fma) {
    int64_t w = columns->size_in, width = columns->size_out, height = rows->size_out;
    float *wide = malloc((size_t)(4 * width) * sizeof *wide);  // cell row r at the image's width, at r modulo 4
    if (!wide) return -1;
    for (int64_t i = 0; i < n; i++) {
        const float *query = logits + queries[i] * rows->size_in * w;
        int64_t held[4] = {-1, -1, -1, -1};
        for (int64_t y = y0; y < y1; y++, out += width) {
            for (int64_t t = 0; t < rows->taps; t++) {
                int64_t r = rows->source[t * height + y];
                float weight = rows->weight[t * height + y], *row = wide + r % 4 * width;
                if (held[r % 4] != r) widen(query + r * w, columns, row);
                held[r % 4] = r;
                if (t == 0)
                    for (int64_t x = 0; x < width; x++) out[x] = row[x] * weight;
                else
                    for (int64_t x = 0; x < width; x++) out[x] += row[x] * weight;
            }
            for (int64_t x = 0; x < width; x++) out[x] = sigmoid(out[x], fma);
        }
    }
    free(wide);
    return n;
}

// Finds the query k with the largest score x probability at each pixel, the first among equals: k + 1 inside the
// query's own mask (probability >= 1/2), -(k + 1) outside. Adds the pixels of each query's mask to `areas`.
INLINE void compete(const float *probability, int64_t n, int64_t pixels, const float *scores, int32_t *winners,
                    int64_t *areas) {
    for (int64_t begin = 0; begin < pixels; begin += BLOCK) {
        int64_t count = min64(BLOCK, pixels - begin);
        int32_t *winner = winners + begin;
        float best[BLOCK];
        for (int64_t i = 0; i < count; i++) best[i] = -1, winner[i] = 0;
        for (int32_t k = 0; k < n; k++) {
            const float *mine = probability + k * pixels + begin;
            int32_t area = 0;
            for (int64_t i = 0; i < count; i++) {
                float value = mine[i] * scores[k];
                int32_t name = mine[i] >= 0.5f ? k + 1 : -(k + 1);
                area += mine[i] >= 0.5f;
                winner[i] = value > best[i] ? name : winner[i];
                best[i] = value > best[i] ? value : best[i];
            }
            areas[k] += area;
        }
    }
}

// Both functions for one instruction set.
#define LEVEL(name, fma, target)                                                                                    \
    target static int64_t probabilities_##name(const float *logits, const int64_t *queries, int64_t n,              \
                                               const Axis *rows, const Axis *columns, int64_t y0, int64_t y1,       \
                                               float *out) {                                                        \
        return probabilities(logits, queries, n, rows, columns, y0, y1, out, fma);                                  \
    }                                                                                                               \
    target static void compete_##name(const float *probability, int64_t n, int64_t pixels, const float *scores,     \
                                      int32_t *winners, int64_t *areas) {                                           \
        compete(probability, n, pixels, scores, winners, areas);                                                    \
    }

EACH_LEVEL(LEVEL)

// Computes mask probabilities of n queries at rows [y0, y1) of the image: [n][y1 - y0][width]. Returns n, or -1
// without memory.
EXPORT int64_t m2f_probabilities(int64_t level, const float *logits, const int64_t *queries, int64_t n,
                                 const Axis *rows, const Axis *columns, int64_t y0, int64_t y1, float *out) {
#define PROBABILITIES(name, fma, target) probabilities_##name,
    __typeof__(probabilities_baseline) *const levels[] = {EACH_LEVEL(PROBABILITIES)};
    return levels[level](logits, queries, n, rows, columns, y0, y1, out);
}

// Gives each of `pixels` to one of n queries, by their probabilities [n][pixels] and scores: see `compete`.
EXPORT void m2f_compete(int64_t level, const float *probability, int64_t n, int64_t pixels, const float *scores,
                        int32_t *winners, int64_t *areas) {
#define COMPETE(name, fma, target) compete_##name,
    __typeof__(compete_baseline) *const levels[] = {EACH_LEVEL(COMPETE)};
    levels[level](probability, n, pixels, scores, winners, areas);
}
