// The cells that a pixel reads: geometry.py and interpolate.py in C.

#include "kernel.h"

enum { SMALL = 128 };  // interpolate._SMALL

// Computes geometry.bilinear_taps for output i.
static void bilinear_tap(int64_t size_in, int64_t size_out, int64_t i, int32_t source[2], float weight[2]) {
    float scale = (float)size_in / (float)size_out;
    float centre = (float)(((double)i + 0.5) * scale - 0.5);
    centre = centre > 0 ? centre : 0;
    source[0] = (int32_t)min64((int64_t)centre, size_in - 1);
    source[1] = (int32_t)min64(source[0] + (size_in != size_out), size_in - 1);
    float fraction = centre - (float)source[0];
    weight[1] = fraction < 1 ? fraction : 1;
    weight[0] = 1 - weight[1];
}

// Computes geometry.mask_taps into an axis (cells -> original) whose arrays have room for 4 taps.
EXPORT void m2f_mask_taps(int64_t padded, int64_t valid, Axis *axis) {
    int64_t cells = axis->size_in, original = axis->size_out;
    axis->taps = cells == padded || valid == original ? 2 : 4;
    axis->padded = padded, axis->valid = valid;
    for (int64_t i = 0; i < original; i++) {
        int32_t source[4], pixel[2];
        float weight[4], share[2];
        if (cells == padded) {
            bilinear_tap(valid, original, i, source, weight);
        } else if (valid == original) {
            bilinear_tap(cells, padded, i, source, weight);
        } else {
            bilinear_tap(valid, original, i, pixel, share);
            for (int64_t t = 0; t < 4; t += 2) {
                bilinear_tap(cells, padded, pixel[t / 2], source + t, weight + t);
                weight[t] *= share[t / 2], weight[t + 1] *= share[t / 2];
            }
        }
        for (int64_t t = 0; t < axis->taps; t++) {
            axis->source[t * original + i] = source[t];
            axis->weight[t * original + i] = weight[t];
        }
    }
}

// Computes `begin` and `end` from `source`.
EXPORT void m2f_outputs_reading(Axis *axis) {
    const int32_t *lowest = axis->source, *highest = lowest + (axis->taps - 1) * axis->size_out;
    for (int64_t cell = 0, begin = 0, end = 0; cell < axis->size_in; cell++) {
        while (begin < axis->size_out && highest[begin] < cell) begin++;
        while (end < axis->size_out && lowest[end] <= cell) end++;
        axis->begin[cell] = (int32_t)begin;
        axis->end[cell] = (int32_t)end;
    }
}

// Computes interpolate._multiply_add; the same on every level.
static float multiply_add_once(float a, float b, float c) { return (float)((double)a * b + c); }

// Computes interpolate._bilinear: averages two cells above and two below. `small`: the output is a small one.
static float bilinear(const float above[2], const float below[2], const float down[2], const float across[2],
                      int small) {
    if (small) {
        float value = multiply_add_once(above[0], down[0] * across[0], above[1] * (down[0] * across[1]));
        value = multiply_add_once(below[0], down[1] * across[0], value);
        return multiply_add_once(below[1], down[1] * across[1], value);
    }
    float upper = multiply_add_once(above[0], across[0], above[1] * across[1]);
    float lower = multiply_add_once(below[0], across[0], below[1] * across[1]);
    return multiply_add_once(upper, down[0], lower * down[1]);
}

float pytorch_pixel(const float *logits, const Axis *rows, const Axis *columns, int64_t y, int64_t x) {
    int64_t w = columns->size_in;
    int32_t ys[2], xs[2], r[2], c[2];  // rows and columns: ys, xs of the padded input, r, c of the cells
    float down[2], across[2], cell_down[2], cell_across[2], between[2][2];
    bilinear_tap(rows->valid, rows->size_out, y, ys, down);
    bilinear_tap(columns->valid, columns->size_out, x, xs, across);
    for (int i = 0; i < 2; i++) {
        bilinear_tap(rows->size_in, rows->padded, ys[i], r, cell_down);
        for (int j = 0; j < 2; j++) {
            bilinear_tap(w, columns->padded, xs[j], c, cell_across);
            float above[2] = {logits[r[0] * w + c[0]], logits[r[0] * w + c[1]]};
            float below[2] = {logits[r[1] * w + c[0]], logits[r[1] * w + c[1]]};
            between[i][j] = bilinear(above, below, cell_down, cell_across, rows->padded + columns->padded <= SMALL);
        }
    }
    return bilinear(between[0], between[1], down, across, rows->size_out + columns->size_out <= SMALL);
}
