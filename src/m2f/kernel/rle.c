// Runs of pixels to COCO's RLE and back, and the overlap of two masks: NumpyKernel.encode, decode_into and intersection
// in C.

#include "kernel.h"

// Returns the number of pixels that two masks share.
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

// Writes COCO's compressed RLE of one mask, as cocoapi's rleToString does: at most 7 characters for each of the
// num_edges + 1 counts. Returns the number of characters.
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

// Reads the next count. Returns its value, or INT64_MIN for what is not RLE.
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

// Decodes COCO's compressed RLE into [height][stride] bytes of zeros: one byte a pixel, or, if `packed`, one bit, the
// highest first. First only the rows where a column changes are marked; then each row takes over from the row above.
// Returns the number of pixels that the RLE covers (height x width for a mask), or -1 for what is not RLE or no size.
EXPORT int64_t m2f_decode(const uint8_t *characters, int64_t length, int64_t height, int64_t width, int64_t packed,
                          uint8_t *pixels, int64_t stride) {
    int64_t at = 0, position = 0, before[2] = {0, 0}, left = stride, right = 0;
    if (height < 1 || width < 1) return -1;  // the product of two negative sides would pass for room
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
