// Mask logits to runs of pixels, and runs to COCO's RLE and back: the hot path of m2f/masks.py and m2f/rle.py,
// which hold the same steps in numpy. Loaded by m2f/native.py through ctypes, so it knows nothing of Python.
//
// What runs per pixel is plain C that compilers turn into SIMD. It is compiled once per instruction set, and the
// caller says which one to run. Sums and products are not contracted to FMA: every level then makes the same masks,
// bit for bit, as the numpy path.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum {
    STRIP = 16,        // cell columns worked on together, and what ranges of rows are rounded to
    RING = 2 * STRIP,  // cell columns held at the image's height
    BATCH = 4096,      // pixels whose sigmoids are computed together, about
    SUMMAND = 1024,    // pixels whose sigmoids are added up in single precision
};

// One axis of the operator from cells to pixels, see geometry.Taps.
typedef struct {
    int64_t size_in, size_out, taps;  // taps is 2 or 4
    int32_t *source;                  // [taps][size_out], ascending along size_out, the last tap the highest
    float *weight;                    // [taps][size_out]
    int32_t *begin, *end;             // [size_in]: the half-open range of outputs that read a cell
} Axis;

// One query's mask.
typedef struct {
    int64_t area, num_edges;
    double sigmoid_sum;
    int32_t box[4];  // x1 y1 x2 y2, half-open; zeros when empty
} Mask;

typedef struct {
    int32_t *first, *last;  // [w]: cell rows of a cell column that hold a positive logit; first > last: none
    float *ring;            // [RING][pitch]: cell columns interpolated to all rows of the image
    float *values;          // logits of pixel columns, until there are BATCH
    uint8_t *inside;        // [pitch]: whether those of the column at hand are above 0
    int64_t pitch;
} Scratch;

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t floor_to(int64_t a, int64_t step) { return a / step * step; }
INLINE int64_t ceil_to(int64_t a, int64_t step) { return (a + step - 1) / step * step; }

// a x b + c: one instruction where the level has it, two elsewhere (a library call would not vectorise).
INLINE float multiply_add(float a, float b, float c, int fma) { return fma ? __builtin_fmaf(a, b, c) : a * b + c; }

// exp(-x) for 0 <= x <= 86. 2^t = 2^n x 2^f, n whole, |f| <= 1/2: the polynomial is fitted to 2^f, 8e-8 relative.
INLINE float exp_of_minus(float x, int fma) {
    const float rounder = 12582912.0f;  // 1.5 x 2^23: adding it rounds to a whole number, which the low bits then hold
    float t = x * -1.44269504f, shifted = t + rounder, f = t - (shifted - rounder);
    float p = 1.3276429e-3f;
    p = multiply_add(p, f, 9.6755419e-3f, fma);
    p = multiply_add(p, f, 5.5507135e-2f, fma);
    p = multiply_add(p, f, 2.4022120e-1f, fma);
    p = multiply_add(p, f, 6.9314694e-1f, fma);
    p = multiply_add(p, f, 1.0f, fma);
    uint32_t whole, bits;
    memcpy(&whole, &shifted, 4);
    memcpy(&bits, &p, 4);
    bits += whole << 23;
    memcpy(&p, &bits, 4);
    return p;
}

// exp(-x) for x > 0, and next to nothing for what is not in the mask: exp(-40) is 4e-18, and products of four such are
// still normal numbers.
INLINE float exp_inside(float x, int fma) {
    x = x > 0 ? x : 40;
    return exp_of_minus(x < 40 ? x : 40, fma);
}

INLINE float sigmoid(float x, int fma) {
    float size = x < 0 ? -x : x, e = exp_of_minus(size < 86 ? size : 86, fma);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// A logit as label_maps._finite has it: infinity is sure and still 0 by a weight of 0, NaN is far outside.
INLINE float made_finite(float x) { return x - x == 0 ? x : x > 0 ? 1e4f : -1e4f; }

// Sum of 1 - sigmoid = e / (1 + e), e = exp(-value), over values above 0; there is room to round their count up.
// Four fractions are added before they are divided: a division costs as much as all the rest. A float adds up so few
// that it rounds away 2e-6 of them at most.
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

// Where each cell column is positive; returns whether any is.
INLINE int positive_rows(const float *logits, int64_t h, int64_t w, int32_t *first, int32_t *last) {
    for (int64_t c = 0; c < w; c++) {
        first[c] = (int32_t)h;
        last[c] = -1;
    }
    int any = 0;
    for (int32_t r = 0; r < h; r++) {
        const float *row = logits + r * w;
        int32_t positive = 0;
        for (int64_t c = 0; c < w; c++) positive |= row[c] > 0;
        if (!positive) continue;
        any = 1;
        for (int64_t c = 0; c < w; c++) {
            int32_t begun = row[c] > 0 && first[c] > r;
            first[c] = begun ? r : first[c];
            last[c] = row[c] > 0 ? r : last[c];
        }
    }
    return any;
}

// Interpolate cell columns [c0, c0 + STRIP) along the rows: pixels [y0, y1) of the ring, whole strips of them.
INLINE void fill_ring(const float *logits, const Axis *rows, int64_t w, int64_t c0, int64_t y0, int64_t y1,
                      Scratch *s) {
    int64_t width = min64(STRIP, w - c0);
    float *ring = s->ring + c0 % RING * s->pitch;
    for (int64_t y = y0; y < y1; y += STRIP) {
        float block[STRIP][STRIP] = {0};  // [rows][cell columns]; nothing is below the image
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
        for (int64_t j = 0; j < STRIP; j++)
            for (int64_t i = 0; i < STRIP; i++) ring[j * s->pitch + y + i] = block[i][j];
    }
}

// The logits of pixel column x in rows [y0, y1), whole strips, and whether they are above 0.
INLINE void interpolate_column(const Axis *columns, int64_t x, int64_t y0, int64_t y1, int64_t taps,
                               const Scratch *s, float *restrict values) {
    const float *cells[4];
    float weight[4];
    for (int64_t t = 0; t < taps; t++) {
        cells[t] = s->ring + columns->source[t * columns->size_out + x] % RING * s->pitch + y0;
        weight[t] = columns->weight[t * columns->size_out + x];
    }
    uint8_t *restrict inside = s->inside;
    for (int64_t i = 0; i < y1 - y0; i++) {
        float value = cells[0][i] * weight[0] + cells[1][i] * weight[1];
        if (taps == 4) {
            value += cells[2][i] * weight[2];
            value += cells[3][i] * weight[3];
        }
        values[i] = value;
    }
    for (int64_t i = 0; i < y1 - y0; i++) inside[i] = values[i] > 0;
}

INLINE uint64_t eight_at(const uint8_t *inside) {
    uint64_t word;
    memcpy(&word, inside, 8);
    return word;
}

// Append the edges of a pixel column's rows [*y0, *y1), whose first pixel is at `origin`, and narrow the range to the
// mask. A run that reaches the bottom goes on at the top of the next column: an end that meets a start is taken back.
INLINE int64_t column_edges(const uint8_t *inside, int64_t origin, int64_t *y0, int64_t *y1, uint32_t *edges,
                            int64_t count) {
    int64_t length = *y1 - *y0, first = -1, last = -1;
    uint64_t before = 0;
    for (int64_t i = 0; i < length + 8; i += 8) {  // once more, for a run that is still open
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

// Rows of the image, whole strips of them, that read a positive cell of columns [c0, c1). Returns whether any do.
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

// One query. Returns the edges used, or -1 when there may be no room for more.
INLINE int64_t sample_query(const float *logits, const Axis *rows, const Axis *columns, int64_t taps, int fma,
                            Scratch *s, Mask *mask, uint32_t *edges, int64_t capacity) {
    int64_t w = columns->size_in, height = rows->size_out, width = columns->size_out;
    int64_t count = 0, filled = 0, batched = 0, x1 = width, x2 = 0, top = height, bottom = 0, y0, y1;
    double rest = 0;
    memset(mask, 0, sizeof *mask);
    if (!positive_rows(logits, rows->size_in, w, s->first, s->last)) return 0;
    for (int64_t x = 0; x < width; x++) {
        int64_t low = columns->source[x], high = columns->source[(taps - 1) * width + x];
        if (!rows_reading(s, rows, low, high + 1, &y0, &y1)) continue;
        if (count + (y1 - y0) + 2 > capacity) return -1;
        for (filled = max64(filled, floor_to(low, STRIP)); filled <= high; filled += STRIP) {
            int64_t strip_y0, strip_y1;  // of all pixel columns that read one of these cell columns: they span 3 cells
            if (rows_reading(s, rows, max64(0, filled - 2), min64(w, filled + STRIP + 2), &strip_y0, &strip_y1))
                fill_ring(logits, rows, w, filled, strip_y0, strip_y1, s);
        }
        interpolate_column(columns, x, y0, y1, taps, s, s->values + batched);
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

INLINE int64_t sample(const float *logits, const int64_t *queries, int64_t n, const Axis *rows, const Axis *columns,
                      Mask *masks, uint32_t *edges, int64_t capacity, int fma) {
    int64_t w = columns->size_in, pitch = ceil_to(rows->size_out, STRIP);
    if (pitch % (2 * STRIP) == 0) pitch += STRIP;  // columns of the ring a power of two apart would share cache sets
    int64_t values = BATCH + pitch + 4 * STRIP;
    float *memory = aligned_alloc(64, (size_t)ceil_to((RING * pitch + values + 2 * w) * 4 + pitch, 64));
    if (!memory) return -1;
    Scratch s = {.ring = memory, .pitch = pitch};
    s.values = s.ring + RING * pitch;
    s.first = (int32_t *)(s.values + values);
    s.last = s.first + w;
    s.inside = (uint8_t *)(s.last + w);
    int64_t used = 0, done = 0;
    for (; done < n; done++) {
        const float *query = logits + queries[done] * rows->size_in * w;
        Mask *mask = masks + done;
        int64_t count = columns->taps == 2
            ? sample_query(query, rows, columns, 2, fma, &s, mask, edges + used, capacity - used)
            : sample_query(query, rows, columns, 4, fma, &s, mask, edges + used, capacity - used);
        if (count < 0) break;
        used += count;
    }
    free(memory);
    return done;
}

// A row of cells at the image's width.
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

// Mask probabilities of n queries at rows [y0, y1) of the image: [n][y1 - y0][width].
INLINE int64_t probabilities(const float *logits, const int64_t *queries, int64_t n, const Axis *rows,
                             const Axis *columns, int64_t y0, int64_t y1, float *out, int fma) {
    int64_t w = columns->size_in, width = columns->size_out, height = rows->size_out;
    float *wide = malloc((size_t)(4 * width) * sizeof *wide);  // cell rows at the image's width, by cell row modulo 4
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

// Which of n queries has the largest score x probability at each pixel, the first among equals: k + 1 where it is in
// its own mask (probability >= 1/2), -(k + 1) where it is not. Adds the pixels of each query's mask to `areas`.
INLINE void compete(const float *probability, int64_t n, int64_t pixels, const float *scores, int32_t *winners,
                    int64_t *areas) {
    for (int64_t begin = 0; begin < pixels; begin += BATCH) {
        int64_t count = min64(BATCH, pixels - begin);
        int32_t *winner = winners + begin;
        float best[BATCH];
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

// All of it for one instruction set.
#define LEVEL(name, fma, target)                                                                                    \
    target static int64_t sample_##name(const float *logits, const int64_t *queries, int64_t n, const Axis *rows,   \
                                        const Axis *columns, Mask *masks, uint32_t *edges, int64_t capacity) {      \
        return sample(logits, queries, n, rows, columns, masks, edges, capacity, fma);                              \
    }                                                                                                               \
    target static int64_t probabilities_##name(const float *logits, const int64_t *queries, int64_t n,              \
                                               const Axis *rows, const Axis *columns, int64_t y0, int64_t y1,       \
                                               float *out) {                                                        \
        return probabilities(logits, queries, n, rows, columns, y0, y1, out, fma);                                  \
    }                                                                                                               \
    target static void compete_##name(const float *probability, int64_t n, int64_t pixels, const float *scores,     \
                                      int32_t *winners, int64_t *areas) {                                           \
        compete(probability, n, pixels, scores, winners, areas);                                                    \
    }

LEVEL(baseline, 0, )
#ifdef __x86_64__
LEVEL(avx2, 1, __attribute__((target("arch=x86-64-v3"))))
#ifdef __clang__
LEVEL(avx512, 1, __attribute__((target("arch=x86-64-v4"), min_vector_width(512))))
#else
LEVEL(avx512, 1, __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))))
#endif
#else
#define sample_avx2 sample_baseline
#define sample_avx512 sample_baseline
#define probabilities_avx2 probabilities_baseline
#define probabilities_avx512 probabilities_baseline
#define compete_avx2 compete_baseline
#define compete_avx512 compete_baseline
#endif

// The highest level this processor runs: 0 baseline, 1 AVX2 (x86-64-v3), 2 AVX-512 (x86-64-v4).
EXPORT int64_t m2f_level(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return 2;
    if (__builtin_cpu_supports("x86-64-v3")) return 1;
#endif
    return 0;
}

// Sample the masks of n queries of logits [Q][h][w]. Returns how many were done before `edges` was full, or -1 without
// memory. The edges of each mask follow those of the mask before.
EXPORT int64_t m2f_sample(int64_t level, const float *logits, const int64_t *queries, int64_t n, const Axis *rows,
                          const Axis *columns, Mask *masks, uint32_t *edges, int64_t capacity) {
    __typeof__(sample_baseline) *const levels[] = {sample_baseline, sample_avx2, sample_avx512};
    return levels[level](logits, queries, n, rows, columns, masks, edges, capacity);
}

// Mask probabilities of n queries at rows [y0, y1) of the image: [n][y1 - y0][width]. Returns n, or -1 without memory.
EXPORT int64_t m2f_probabilities(int64_t level, const float *logits, const int64_t *queries, int64_t n,
                                 const Axis *rows, const Axis *columns, int64_t y0, int64_t y1, float *out) {
    __typeof__(probabilities_baseline) *const levels[] = {probabilities_baseline, probabilities_avx2, probabilities_avx512};
    return levels[level](logits, queries, n, rows, columns, y0, y1, out);
}

// Give each of `pixels` to one of n queries, by their probabilities [n][pixels] and scores: see `compete`.
EXPORT void m2f_compete(int64_t level, const float *probability, int64_t n, int64_t pixels, const float *scores,
                        int32_t *winners, int64_t *areas) {
    __typeof__(compete_baseline) *const levels[] = {compete_baseline, compete_avx2, compete_avx512};
    levels[level](probability, n, pixels, scores, winners, areas);
}

// One output of `align_corners=False` bilinear interpolation, rounded as torch does in float32.
static void bilinear_tap(int64_t size_in, int64_t size_out, int64_t i, int32_t source[2], float weight[2]) {
    float scale = (float)size_in / (float)size_out, centre = ((float)i + 0.5f) * scale - 0.5f;
    centre = centre > 0 ? centre : 0;
    source[0] = (int32_t)min64((int64_t)centre, size_in - 1);
    source[1] = (int32_t)min64(source[0] + 1, size_in - 1);
    float fraction = centre - (float)source[0];
    weight[1] = fraction < 1 ? fraction : 1;
    weight[0] = 1 - weight[1];
}

// geometry.mask_taps: fills an axis (cells -> original) whose arrays have room for 4 taps.
EXPORT void m2f_mask_taps(int64_t padded, int64_t valid, Axis *axis) {
    int64_t cells = axis->size_in, original = axis->size_out;
    axis->taps = cells == padded || valid == original ? 2 : 4;
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

// Fill in `begin` and `end` from the sources.
EXPORT void m2f_outputs_reading(Axis *axis) {
    const int32_t *lowest = axis->source, *highest = lowest + (axis->taps - 1) * axis->size_out;
    for (int64_t cell = 0, begin = 0, end = 0; cell < axis->size_in; cell++) {
        while (begin < axis->size_out && highest[begin] < cell) begin++;
        while (end < axis->size_out && lowest[end] <= cell) end++;
        axis->begin[cell] = (int32_t)begin;
        axis->end[cell] = (int32_t)end;
    }
}

// Pixels that two masks share.
EXPORT int64_t m2f_intersection(const uint32_t *a, int64_t num_a, const uint32_t *b, int64_t num_b) {
    int64_t shared = 0;
    for (int64_t i = 0, j = 0; i < num_a && j < num_b;) {
        int64_t begin = max64(a[i], b[j]), end = min64(a[i + 1], b[j + 1]);
        shared += max64(0, end - begin);
        if (a[i + 1] < b[j + 1]) i += 2;
        else j += 2;
    }
    return shared;
}

// COCO's compressed RLE of one mask, as cocoapi's rleToString writes it: at most 7 characters for each of the
// num_edges + 1 counts. Returns the characters written.
EXPORT int64_t m2f_encode(const uint32_t *edges, int64_t num_edges, int64_t num_pixels, char *characters) {
    int64_t position = 0, before[2] = {0, 0}, length = 0;  // the last two counts
    for (int64_t i = 0; i <= num_edges; i++) {
        int64_t edge = i < num_edges ? edges[i] : num_pixels, count = edge - position;
        if (i && i == num_edges && !count) break;  // no run of zeros at the end
        int64_t value = i > 2 ? count - before[i % 2] : count;
        before[i % 2] = count, position = edge;
        for (int more = 1; more;) {
            int64_t low = value & 31;
            value >>= 5;
            more = low & 16 ? value != -1 : value != 0;
            characters[length++] = (char)(48 + low + (more ? 32 : 0));
        }
    }
    return length;
}

// Read the next count; returns its value, or INT64_MIN for what is not RLE.
static int64_t next_value(const uint8_t *characters, int64_t length, int64_t *at) {
    int64_t value = 0;
    for (int shift = 0; *at < length && shift < 45; shift += 5) {
        int64_t code = (int64_t)characters[(*at)++] - 48;
        if (code < 0 || code > 63) return INT64_MIN;
        value |= (code & 31) << shift;
        if (code & 32) continue;
        return code & 16 ? value - (INT64_C(32) << shift) : value;
    }
    return INT64_MIN;
}

// Decode COCO's compressed RLE to [height][stride] bytes of zeros, a byte a pixel, or a bit (`packed`, the first is the
// highest). Only the rows where a column changes are marked; then each row takes over from the row above.
// Returns the pixels that the RLE covers, or -1 for what is not RLE; only height x width is a mask.
EXPORT int64_t m2f_decode(const uint8_t *characters, int64_t length, int64_t height, int64_t width, int64_t packed,
                          uint8_t *pixels, int64_t stride) {
    int64_t at = 0, position = 0, before[2] = {0, 0}, left = stride, right = 0;
    for (int64_t i = 0; at < length; i++) {
        int64_t count = next_value(characters, length, &at);
        if (count == INT64_MIN) return -1;
        count += i > 2 ? before[i % 2] : 0;
        if (count < 0 || count > height * width - position) return -1;
        before[i % 2] = count;
        int64_t end = position + count;
        while (i % 2 && position < end) {
            int64_t x = position / height, y = position % height, y_end = min64(height, y + end - position);
            uint8_t bit = packed ? 128 >> x % 8 : 1;
            uint8_t *column = pixels + (packed ? x / 8 : x);
            column[y * stride] ^= bit;
            if (y_end < height) column[y_end * stride] ^= bit;
            left = min64(left, column - pixels), right = column - pixels + 1;
            position += y_end - y;
        }
        position = end;
    }
    for (uint8_t *row = pixels + stride; row < pixels + height * stride; row += stride)
        for (int64_t b = left; b < right; b++) row[b] ^= row[b - stride];
    return position;
}
