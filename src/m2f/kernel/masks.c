// Mask logits straight to runs of pixels: NumpyOperator.sample in C.

#include "kernel.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum {
    STRIP = 16,        // cell columns worked on together; ranges of rows are rounded to multiples of it
    RING = 2 * STRIP,  // cell columns held at the image's height
    BATCH = 4096,      // about as many sigmoids are computed together
    SUMMAND = 1024,    // sigmoids that are added up in single precision
};

#define BELOW -1e30f  // logit of the rows below the image: outside the mask

// RECORD of sampling.py: the mask of one query.
typedef struct {
    int64_t area, num_edges;
    double sigmoid_sum;
    int32_t box[4];  // x1 y1 x2 y2, half-open; zeros for an empty mask
} Mask;

typedef struct {
    int32_t *first, *last;  // [w]: first and last positive cell row of a cell column; first > last: none
    float *ring;            // [RING][pitch]: cell columns interpolated to all rows of the image
    float *values;          // logits of pixel columns, collected until there are BATCH
    uint8_t *inside;        // [pitch]: whether each logit of the current pixel column is above 0
    float *widened;         // [h * w]: logits of the current query, if they came in half precision
    int64_t pitch;
    int64_t doubts;         // doubtful pixels that the budget still allows
} Scratch;

INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Returns exp(-x) for x > 0, and exp(-40) = 4e-18 for a pixel outside the mask. The product of four such numbers is
// still a normal number.
INLINE float exp_inside(float x, int fma) {
    x = x > 0 ? x : 40;
    return exp_of_minus(x < 40 ? x : 40, fma);
}

// Returns the sum of 1 - sigmoid = e / (1 + e), e = exp(-value), over values above 0. `values` has room to round the
// count up. Four fractions are added before the division, which costs as much as everything else. A float adds up at
// most SUMMAND values, so that rounding loses at most 2e-6 of them.
INLINE double sum_of_rest(float *values, int64_t count, int fma) {
    double total = 0;
    memset(values + count, 0, 4 * STRIP * sizeof *values);
    for (const float *end = values + count; values < end; values += SUMMAND) {
        int64_t quarter = ceil_to(min64(SUMMAND, end - values), 4 * STRIP) / 4;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < quarter; i++) {
            float a = exp_inside(values[i], fma), b = exp_inside(values[i + quarter], fma);
            float c = exp_inside(values[i + 2 * quarter], fma), d = exp_inside(values[i + 3 * quarter], fma);
            float ab = 1 + (a + b) + a * b, cd = 1 + (c + d) + c * d;
            float above_ab = (a + b) + 2 * a * b, above_cd = (c + d) + 2 * c * d;
            sum += (above_ab * cd + above_cd * ab) / (ab * cd);
        }
        total += sum;
    }
    return total;
}

// Finds the positive rows of each cell column. Returns the largest logit; 0 if none is positive; NaN if one may be NaN.
INLINE float positive_rows(const float *logits, int64_t h, int64_t w, int32_t *first, int32_t *last) {
    for (int64_t c = 0; c < w; c++) {
        first[c] = (int32_t)h;
        last[c] = -1;
    }
    int32_t largest_bits = 0;  // positive floats are in the order of their bits, NaN after infinity
    for (int32_t r = 0; r < h; r++) {
        const float *row = logits + r * w;
        int32_t row_bits = 0;
        for (int64_t c = 0; c < w; c++) row_bits = bits_of(row[c]) > row_bits ? bits_of(row[c]) : row_bits;
        if (!row_bits) continue;
        largest_bits = row_bits > largest_bits ? row_bits : largest_bits;
        for (int64_t c = 0; c < w; c++) {
            int32_t begun = row[c] > 0 && first[c] > r;
            first[c] = begun ? r : first[c];
            last[c] = row[c] > 0 ? r : last[c];
        }
    }
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    return largest;
}

// Computes interpolate.rounding: how close to 0 the sign of a pixel is in doubt. `largest`: result of positive_rows.
static float rounding(const float *logits, int64_t cells, float largest) {
    if (!(largest < INFINITY)) {
        largest = 0;
        for (int64_t i = 0; i < cells; i++) largest = logits[i] > largest && logits[i] < INFINITY ? logits[i] : largest;
    }
    return largest * 0x1p-18f + FLT_MIN;
}

// Interpolates cell columns [c0, c0 + STRIP) along the rows, to pixels [y0, y1) of the ring, multiples of STRIP.
INLINE void fill_ring(const float *logits, const Axis *rows, int64_t w, int64_t c0, int64_t y0, int64_t y1,
                      Scratch *s) {
    int64_t width = min64(STRIP, w - c0);
    float *ring = s->ring + c0 % RING * s->pitch;
    for (int64_t y = y0; y < y1; y += STRIP) {
        float block[STRIP][STRIP] = {0};  // [rows][cell columns]
        int64_t height = min64(STRIP, rows->size_out - y);
        for (int64_t i = 0; i < height; i++) {
            for (int64_t t = 0; t < rows->taps; t++) {
                const float *cells = logits + rows->source[t * rows->size_out + y + i] * w + c0;
                float weight = rows->weight[t * rows->size_out + y + i];
                if (width == STRIP)
                    for (int64_t j = 0; j < STRIP; j++) block[i][j] += cells[j] * weight;
                else
                    for (int64_t j = 0; j < width; j++) block[i][j] += cells[j] * weight;
            }
        }
        for (int64_t i = height; i < STRIP; i++)
            for (int64_t j = 0; j < STRIP; j++) block[i][j] = BELOW;
        for (int64_t j = 0; j < STRIP; j++)
            for (int64_t i = 0; i < STRIP; i++) ring[j * s->pitch + y + i] = block[i][j];
    }
}

// Computes the logits of pixel column x in rows [y0, y1), and whether they are above 0. Returns the smallest absolute
// value of a logit.
INLINE float interpolate_column(const Axis *columns, int64_t x, int64_t y0, int64_t y1, int64_t taps, const Scratch *s,
                                float *restrict values) {
    const float *cells[4];
    float weight[4], closest;
    for (int64_t t = 0; t < taps; t++) {
        cells[t] = s->ring + columns->source[t * columns->size_out + x] % RING * s->pitch + y0;
        weight[t] = columns->weight[t * columns->size_out + x];
    }
    uint8_t *restrict inside = s->inside;
    int32_t closest_bits = INT32_MAX;
    for (int64_t i = 0; i < y1 - y0; i++) {
        float value = cells[0][i] * weight[0] + cells[1][i] * weight[1];
        if (taps == 4) {
            value += cells[2][i] * weight[2];
            value += cells[3][i] * weight[3];
        }
        values[i] = value;
        int32_t size_bits = bits_of(value) & INT32_MAX;
        closest_bits = size_bits < closest_bits ? size_bits : closest_bits;
    }
    for (int64_t i = 0; i < y1 - y0; i++) inside[i] = values[i] > 0;
    memcpy(&closest, &closest_bits, sizeof closest);
    return closest;
}

// Computes the doubtful pixels of a pixel column in PyTorch's order of roundings: see interpolate.doubtful. Returns
// their number: a doubtful pixel takes 100 times as long as another.
static int64_t decide_column(const float *logits, const Axis *rows, const Axis *columns, int64_t x, int64_t y0, int64_t y1,
                          float reach, float *values, uint8_t *inside) {
    int64_t count = min64(y1, rows->size_out) - y0, decided = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabsf(values[i]) <= reach || values[i] == INFINITY)) continue;
        values[i] = pytorch_pixel(logits, rows, columns, y0 + i, x);
        inside[i] = values[i] > 0;
        decided++;
    }
    return decided;
}

INLINE uint64_t eight_at(const uint8_t *inside) {
    uint64_t word;
    memcpy(&word, inside, 8);
    return word;
}

// Appends the edges of a pixel column's rows [*y0, *y1), whose first pixel is at `origin`, and narrows the range to the
// mask. A run that reaches the bottom continues at the top of the next column: an end that meets a start is removed.
INLINE int64_t column_edges(const uint8_t *inside, int64_t origin, int64_t *y0, int64_t *y1, uint32_t *edges,
                            int64_t count) {
    int64_t length = *y1 - *y0, first = -1, last = -1;
    uint64_t before = 0;
    for (int64_t i = 0; i < length + 8; i += 8) {  // one round more, for a run that is still open
        uint64_t same = before ? 0x0101010101010101 : 0;
        while (i + STRIP <= length && eight_at(inside + i) == same && eight_at(inside + i + 8) == same) i += STRIP;
        uint64_t word = i < length ? eight_at(inside + i) : 0;
        uint64_t change = word ^ (word << 8 | before);  // bytes are 0 or 1, the lowest comes first
        before = word >> 56;
        for (; change; change &= change - 1) {
            last = *y0 + i + (__builtin_ctzll(change) >> 3);
            first = first < 0 ? last : first;
            uint32_t edge = (uint32_t)(origin + last);
            if (count && edges[count - 1] == edge) count--;
            else edges[count++] = edge;
        }
    }
    *y0 = first;
    *y1 = last;
    return count;
}

// Finds the rows of the image that read a positive cell of columns [c0, c1), in multiples of STRIP. Returns whether
// there are any.
INLINE int rows_reading(const Scratch *s, const Axis *rows, int64_t c0, int64_t c1, int64_t *y0, int64_t *y1) {
    int64_t first = rows->size_in, last = -1;
    for (int64_t c = c0; c < c1; c++) {
        first = min64(first, s->first[c]);
        last = max64(last, s->last[c]);
    }
    if (first > last) return 0;
    *y0 = floor_to(rows->begin[first], STRIP);
    *y1 = ceil_to(rows->end[last], STRIP);
    return rows->begin[first] < rows->end[last];
}

// Samples the mask of one query. Returns the number of edges, or -1 if there may be too little room for edges, or too
// many doubtful pixels.
INLINE int64_t sample_query(const float *logits, const Axis *rows, const Axis *columns, int64_t taps, int fma,
                            Scratch *s, Mask *mask, uint32_t *edges, int64_t capacity) {
    int64_t w = columns->size_in, height = rows->size_out, width = columns->size_out;
    int64_t count = 0, filled = 0, batched = 0, x1 = width, x2 = 0, top = height, bottom = 0, y0, y1;
    double rest = 0;
    memset(mask, 0, sizeof *mask);
    float largest = positive_rows(logits, rows->size_in, w, s->first, s->last);
    if (largest == 0) return 0;
    float reach = rounding(logits, rows->size_in * w, largest);
    for (int64_t x = 0; x < width; x++) {
        int64_t low = columns->source[x], high = columns->source[(taps - 1) * width + x];
        if (!rows_reading(s, rows, low, high + 1, &y0, &y1)) continue;
        if (count + (y1 - y0) + 2 > capacity) return -1;
        for (filled = max64(filled, floor_to(low, STRIP)); filled <= high; filled += STRIP) {
            int64_t strip_y0, strip_y1;  // of all pixel columns that read these cell columns, 3 each at most
            if (rows_reading(s, rows, max64(0, filled - 2), min64(w, filled + STRIP + 2), &strip_y0, &strip_y1))
                fill_ring(logits, rows, w, filled, strip_y0, strip_y1, s);
        }
        float *values = s->values + batched, closest = interpolate_column(columns, x, y0, y1, taps, s, values);
        if (columns->padded && (closest <= reach || !(largest < INFINITY)))
            s->doubts -= decide_column(logits, rows, columns, x, y0, y1, reach, values, s->inside);
        if (s->doubts < 0) return -1;
        int64_t first = y0;
        count = column_edges(s->inside, x * height, &first, &y1, edges, count);
        if (first < 0) continue;
        x1 = min64(x1, x), x2 = x + 1, top = min64(top, first), bottom = max64(bottom, y1);
        batched += y1 - y0;
        if (batched < BATCH) continue;
        rest += sum_of_rest(s->values, batched, fma);
        batched = 0;
    }
    if (!count) return 0;
    int64_t area = 0;
    for (int64_t i = 0; i < count; i += 2) area += edges[i + 1] - edges[i];
    rest += sum_of_rest(s->values, batched, fma);
    *mask = (Mask){area, count, (double)area - rest, {(int32_t)x1, (int32_t)top, (int32_t)x2, (int32_t)bottom}};
    return count;
}

// Returns the logits of a query in single precision.
INLINE const float *logits_of(const void *logits, int half, int64_t query, int64_t cells, const Scratch *s) {
    if (!half) return (const float *)logits + query * cells;
    const uint16_t *halves = (const uint16_t *)logits + query * cells;
    for (int64_t i = 0; i < cells; i++) s->widened[i] = single(halves[i]);
    return s->widened;
}

INLINE int64_t sample(const void *logits, int half, const int64_t *queries, int64_t n, const Axis *rows, const Axis *columns,
                      Mask *masks, uint32_t *edges, int64_t capacity, int64_t *doubts, int fma) {
    int64_t w = columns->size_in, cells = rows->size_in * w, pitch = ceil_to(rows->size_out, STRIP);
    if (pitch % (2 * STRIP) == 0) pitch += STRIP;  // columns a power of two apart would share cache sets
    int64_t values = BATCH + pitch + 4 * STRIP;
    int64_t floats = RING * pitch + values + 2 * w + (half ? cells : 0);
    float *memory = aligned_alloc(64, (size_t)ceil_to(floats * 4 + pitch, 64));
    if (!memory) return -1;
    Scratch s = {.ring = memory, .pitch = pitch, .doubts = *doubts};
    s.values = s.ring + RING * pitch;
    s.first = (int32_t *)(s.values + values);
    s.last = s.first + w;
    s.widened = (float *)(s.last + w);
    s.inside = (uint8_t *)(s.widened + (half ? cells : 0));
    int64_t used = 0, done = 0;
    for (; done < n; done++) {
        const float *query = logits_of(logits, half, queries[done], cells, &s);
        Mask *mask = masks + done;
        int64_t count = columns->taps == 2
            ? sample_query(query, rows, columns, 2, fma, &s, mask, edges + used, capacity - used)
            : sample_query(query, rows, columns, 4, fma, &s, mask, edges + used, capacity - used);
        if (count < 0) break;
        used += count;
    }
    free(memory);
    *doubts = s.doubts;
    return done;
}

#define LEVEL(name, fma, target)                                                                                    \
    target static int64_t sample_##name(const void *logits, int half, const int64_t *queries, int64_t n,            \
                                        const Axis *rows, const Axis *columns, Mask *masks, uint32_t *edges,        \
                                        int64_t capacity, int64_t *doubts) {                                        \
        return sample(logits, half, queries, n, rows, columns, masks, edges, capacity, doubts, fma);                      \
    }

EACH_LEVEL(LEVEL)

// Returns the highest level that this processor runs: 0 baseline, 1 AVX2 (x86-64-v3), 2 AVX-512 (x86-64-v4).
EXPORT int64_t m2f_level(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return 2;
    if (__builtin_cpu_supports("x86-64-v3")) return 1;
#endif
    return 0;
}

// Samples the masks of n queries of logits [Q][h][w], which are floats, or of half precision. The edges of each mask follow those of the mask before. Doubtful
// pixels are subtracted from `doubts`. Returns how many masks were done before `edges` was full or `doubts` fell below
// 0, or -1 without memory.
EXPORT int64_t m2f_sample(int64_t level, const void *logits, int64_t half, const int64_t *queries, int64_t n,
                          const Axis *rows, const Axis *columns, Mask *masks, uint32_t *edges, int64_t capacity,
                          int64_t *doubts) {
#define SAMPLE(name, fma, target) sample_##name,
    __typeof__(sample_baseline) *const levels[] = {EACH_LEVEL(SAMPLE)};
    return levels[level](logits, half != 0, queries, n, rows, columns, masks, edges, capacity, doubts);
}
