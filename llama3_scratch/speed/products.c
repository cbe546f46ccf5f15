/* Rows x [R, I] times a matrix [O, I] of short numbers: out[r][o] is the sum of x[r][i] w[o][i].

   The matrix is read once, as it lies in memory, 8 words of 32 bits at a time. A word holds n
   numbers (2 of bfloat16, 4 of 8 bits, 8 of 4 bits), the first in its low bits; shifts and masks
   take the k-th number out of all 8 words together. x comes in that order: for each 8 words, the 8
   inputs of their first numbers, then the 8 of their second numbers, and so on. So I is a multiple
   of 8 n. Sums are in float32, several side by side. */

#include <stdint.h>

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t words __attribute__((vector_size(32), aligned(4)));

enum { AHEAD = 64 }; /* asks memory for what is needed 2 KB later */

static inline floats as_floats(words v) { union { words w; floats f; } same = {v}; return same.f; }
static inline floats to_floats(words v) { return __builtin_convertvector(v, floats); }

static inline float sum(floats v) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/* bfloat16 is the upper half of a float32. */
void bfloat16(const words *w, const floats *x, float *out, long R, long O, long I, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++)
        for (long r = 0; r < R; r++) {
            const words *row = w + o * (I / 16);
            const floats *in = x + r * (I / 8);
            floats low = {0}, high = {0};
            for (long i = 0; i < I / 16; i++) {
                __builtin_prefetch(row + i + AHEAD);
                low += as_floats(row[i] << 16) * in[2 * i];
                high += as_floats(row[i] & (int32_t)0xffff0000) * in[2 * i + 1];
            }
            out[r * O + o] = sum(low + high);
        }
}

/* Codes of 8 bits that stand for scale (code - zero), scale and zero of the row; x_sums: [R]. */
void int8(const words *w, const float *scales, const uint8_t *zeros, const floats *x,
          const float *x_sums, float *out, long R, long O, long I, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++)
        for (long r = 0; r < R; r++) {
            const words *row = w + o * (I / 32);
            const floats *in = x + r * (I / 8);
            floats a = {0}, b = {0}, c = {0}, d = {0};
            for (long i = 0; i < I / 32; i++) {
                __builtin_prefetch(row + i + AHEAD);
                words v = row[i] ^ (int32_t)0x80808080; /* code - 128, as a signed byte */
                a += to_floats((v << 24) >> 24) * in[4 * i];
                b += to_floats((v << 16) >> 24) * in[4 * i + 1];
                c += to_floats((v << 8) >> 24) * in[4 * i + 2];
                d += to_floats(v >> 24) * in[4 * i + 3];
            }
            out[r * O + o] = scales[o] * (sum((a + b) + (c + d)) - (zeros[o] - 128) * x_sums[r]);
        }
}

/* Codes of 4 bits. A scale and a zero belong to 32 neighbours, or to 64 (level 1), 128 (level 2),
   ...; x_sums: [R, I/8], of the 8 inputs that meet the numbers of one word.
   A code is not shifted down but taken as 1, 16, 256, ... codes: x comes divided by that. */
void int4(const words *w, const float *scales, const uint8_t *zeros, const floats *x,
          const floats *x_sums, float *out, long R, long O, long I, int threads, int level) {
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++)
        for (long r = 0; r < R; r++) {
            const words *row = w + o * (I / 64);
            const float *scale = scales + o * (I / 32 >> level);
            const uint8_t *zero = zeros + o * (I / 32 >> level);
            const floats *in = x + r * (I / 8), *sums = x_sums + r * (I / 64);
            floats all = {0};
            for (long i = 0; i < I / 64; i++, in += 8) {
                __builtin_prefetch(row + i + AHEAD);
                words v = row[i];
                floats a = to_floats(v & 0xf) * in[0] + to_floats(v & 0xf0) * in[1];
                floats b = to_floats(v & 0xf00) * in[2] + to_floats(v & 0xf000) * in[3];
                a += to_floats(v & 0xf0000) * in[4] + to_floats(v & 0xf00000) * in[5];
                b += to_floats(v & 0xf000000) * in[6] + to_floats((v >> 28) & 0xf) * in[7];
                long left = 2 * i >> level, right = 2 * i + 1 >> level;
                float p = scale[left], q = scale[right], y = zero[left], z = zero[right];
                floats shift = (floats){y, y, y, y, z, z, z, z} * sums[i];
                all += (floats){p, p, p, p, q, q, q, q} * ((a + b) - shift);
            }
            out[r * O + o] = sum(all);
        }
}
