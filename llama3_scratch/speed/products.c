/* Rows x [R, I] times a matrix [O, I] of short numbers: out[r][o] is the sum of x[r][i] w[o][i].

   The matrix is read once, as it lies in memory, 32 bytes at a time: as 8 words of 32 bits that
   hold 2 numbers of bfloat16 each, or as 16 shorts of 16 bits that hold n codes each (2 of 8 bits,
   4 of 4 bits), the first in the low bits. Masks and shifts take one number out of all of them.

   x and out are bfloat16 or, where a function is told that they are `wide`, float32.

   Codes are whole numbers, and a CPU multiplies those best: x is rounded to whole numbers of 16
   bits, `steps`, times a power of two for each 32 inputs, `scale`. What bfloat16 holds is exact in
   that form down to 1/128 of the largest of the 32. So sums of 32 are exact; the rest is float32. */

#include <math.h>
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float floats __attribute__((vector_size(32), aligned(4)));
typedef int32_t words __attribute__((vector_size(32), aligned(4)));
typedef int16_t shorts __attribute__((vector_size(32), aligned(4)));
typedef uint16_t unsigneds __attribute__((vector_size(32), aligned(4)));

enum { AHEAD = 64 }; /* asks memory for what is needed 2 KB later */
static const int32_t UPPER = -65536; /* the upper 16 of 32 bits */

static inline floats as_floats(words v) { union { words w; floats f; } same = {v}; return same.f; }
static inline int32_t as_bits(float v) { union { float f; int32_t b; } same = {v}; return same.b; }
static inline float from_bits(int32_t v) { union { int32_t b; float f; } same = {v}; return same.f; }
static inline floats to_floats(words v) { return __builtin_convertvector(v, floats); }

static inline float sum(floats v) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/* bfloat16 is the upper half of a float32, of which the nearest is taken, of two the even one. */
static inline void store(void *out, long i, float value, int wide) {
    int32_t bits = as_bits(value);
    if (wide) ((float *)out)[i] = value;
    else ((int16_t *)out)[i] = value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

static inline float load(const void *x, long i, int wide) {
    return wide ? ((const float *)x)[i] : from_bits(((const int16_t *)x)[i] * 65536);
}

/* a0 b0 + a1 b1, a2 b2 + a3 b3, ... */
static inline words pairs(unsigneds codes, shorts steps) {
#ifdef __AVX2__
    return (words)_mm256_madd_epi16((__m256i)codes, (__m256i)steps);
#else
    words a = (words)codes, b = (words)steps;
    return (a & 0xffff) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* 8 bytes -> 8 words */
static inline words widened(const uint8_t *v) {
#ifdef __AVX2__
    return (words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)v));
#else
    return (words){v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
#endif
}

/* n rows of x at once: each number of the matrix is taken out of its word once for all of them. */
static inline __attribute__((always_inline)) void together(
    const words *row, const words *in, void *out, long start, long O, long I, const long n) {
    floats low[4] = {0}, high[4] = {0};
    for (long i = 0; i < I / 16; i++) {
        __builtin_prefetch(row + i + AHEAD);
        floats even = as_floats(row[i] << 16), odd = as_floats(row[i] & UPPER);
        for (long r = 0; r < n; r++) {
            words both = in[r * (I / 16) + i];
            low[r] += even * as_floats(both << 16);
            high[r] += odd * as_floats(both & UPPER);
        }
    }
    for (long r = 0; r < n; r++) store(out, start + r * O, sum(low[r] + high[r]), 0);
}

void bfloat16(const words *w, const words *x, void *out, long R, long O, long I, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++) {
        const words *row = w + o * (I / 16);
        long r = 0;
        for (; r + 4 <= R; r += 4) together(row, x + r * (I / 16), out, r * O + o, O, I, 4);
        for (; r + 2 <= R; r += 2) together(row, x + r * (I / 16), out, r * O + o, O, I, 2);
        if (r < R) together(row, x + r * (I / 16), out, r * O + o, O, I, 1);
    }
}

/* x -> steps, in the order of the codes; scales, 4 copies of one for 32 inputs; sums of groups.
   Bits 23 to 30 of a float32 are its exponent; if it is 255, x is infinite or not a number. */
static inline void whole_numbers(const void *x, int16_t *steps, float *scales, float *sums,
                                 long R, long I, long group, long n, int wide) {
    for (long g = 0; g < R * (I / group); g++) sums[g] = 0;
    for (long start = 0; start < R * I; start += 32) {
        int32_t most = 64 << 23, total = 0, rounded[32]; /* what is below 2^-63 may become 0 */
        float part_of_x[32];
        for (long i = 0; i < 32; i++) {
            part_of_x[i] = load(x, start + i, wide);
            int32_t size = as_bits(part_of_x[i]) & 0x7fffffff;
            most = size > most ? size : most;
        }
        int32_t exponent = most >> 23, finite = exponent < 255;
        float inverse = from_bits((268 - exponent) << 23); /* below 2^15 steps */
        for (long i = 0; i < 32; i++) {
            float step = finite ? part_of_x[i] * inverse : 0;
            rounded[i] = as_bits((step < 32767 ? step : 32767) + 0x1.8p23f) - as_bits(0x1.8p23f);
            total += rounded[i];
        }
        int16_t *part = steps + start / (16 * n) * (16 * n) + start % (16 * n) / n;
        for (long k = 0; k < n; k++)
            for (long i = 0; i < 32 / n; i++) part[16 * k + i] = rounded[i * n + k];
        float scale = finite ? from_bits((exponent - 14) << 23) : NAN;
        for (long i = 0; i < 4; i++) scales[start / 8 + i] = scale;
        sums[start / group] += total * scale;
    }
}

/* Codes of 8 bits that stand for scale (code - zero), scale and zero of the row. */
void int8(const unsigneds *w, const float *scales, const uint8_t *zeros, const void *x,
          float *scratch, void *out, long R, long O, long I, int threads, int wide) {
    float *in_scales = scratch, *sums = scratch + R * (I / 8);
    shorts *steps = (shorts *)(sums + R);
    whole_numbers(x, (int16_t *)steps, in_scales, sums, R, I, I, 2, wide);
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++)
        for (long r = 0; r < R; r++) {
            const unsigneds *row = w + o * (I / 32);
            const shorts *in = steps + r * (I / 16);
            const float *in_scale = in_scales + r * (I / 8);
            floats all = {0};
            for (long i = 0; i < I / 32; i++) {
                __builtin_prefetch(row + i + AHEAD);
                words dots = pairs(row[i] & 0xff, in[2 * i]) + pairs(row[i] >> 8, in[2 * i + 1]);
                all += to_floats(dots) * in_scale[4 * i];
            }
            store(out, r * O + o, scales[o] * (sum(all) - zeros[o] * sums[r]), wide);
        }
}

/* 64 codes times 64 steps: 4 sums that belong to the first 32, then 4 of the others.
   A code is not always shifted down: every second one is taken as 16 codes. */
static inline floats dots(const unsigneds *codes, const shorts *in) {
    __builtin_prefetch(codes + AHEAD);
    unsigneds v = *codes, u = v >> 8;
    words once = pairs(v & 0xf, in[0]) + pairs(u & 0xf, in[2]);
    words times16 = pairs(v & 0xf0, in[1]) + pairs(u & 0xf0, in[3]);
    return to_floats(once + (times16 >> 4));
}

/* Codes of 4 bits. A scale and a zero belong to a group of 32 << level neighbours. */
void int4(const unsigneds *w, const float *scales, const uint8_t *zeros, const void *x,
          float *scratch, void *out, long R, long O, long I, int threads, int wide, int level) {
    const floats left = {1, 1, 1, 1, 0, 0, 0, 0}, right = {0, 0, 0, 0, 1, 1, 1, 1};
    long n = I / 32 >> level;
    floats *in_scales = (floats *)scratch;
    float *sums = scratch + R * (I / 8);
    shorts *steps = (shorts *)(sums + R * n);
    whole_numbers(x, (int16_t *)steps, scratch, sums, R, I, I / n, 4, wide);
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++)
        for (long r = 0; r < R; r++) {
            const unsigneds *row = w + o * (I / 64);
            const shorts *in = steps + r * (I / 16);
            const floats *in_scale = in_scales + r * (I / 64);
            const float *scale = scales + o * n, *in_sum = sums + r * n;
            const uint8_t *zero = zeros + o * n;
            floats all = {0}, shift = {0};
            for (long i = 0; !level && i < I / 64; i++)
                all += dots(row + i, in + 4 * i) * in_scale[i]
                       * (scale[2 * i] * left + scale[2 * i + 1] * right);
            for (long g = 0, i = 0; level && g < n; g++) {
                floats group = {0};
                for (; i < (g + 1) << (level - 1); i++)
                    group += dots(row + i, in + 4 * i) * in_scale[i];
                all += group * scale[g];
            }
            long g = 0;
            for (; g < n / 8 * 8; g += 8)
                shift += *(floats *)(scale + g) * to_floats(widened(zero + g))
                         * *(floats *)(in_sum + g);
            for (; g < n; g++) shift[0] += scale[g] * zero[g] * in_sum[g];
            store(out, r * O + o, sum(all - shift), wide);
        }
}
