/* Rows x [R, I] times a matrix [O, I] of short numbers: out[r][o] is the sum of x[r][i] w[o][i].

   The matrix is read once, as it lies in memory, a vector of 32 bytes at a time, or of 64 where the
   CPU has them: as words of 32 bits that hold 2 numbers of bfloat16 each, or as shorts of 16 bits
   that hold 2 codes of 8 bits or 4 of 4 bits, the first in the low bits. Masks and shifts take one
   number out of all of them.

   x and out are bfloat16 or, for codes and if `wide`, float32.

   Codes are whole numbers, and a CPU multiplies those best: x is rounded to whole numbers of 16
   bits, `steps`, times a power of two for each 32 inputs, its scale. What bfloat16 holds is exact
   in that form down to 1/128 of the largest of the 32. Products are summed exactly, as whole
   numbers, 4 or 8 at a time; the rest is float32. */

#include <math.h>
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512BW__
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
enum { LANES = BYTES / 4, FOURS = BYTES / 16 };
enum { AHEAD = 4096 / BYTES }; /* vectors, after which memory is asked for the next ones */

typedef float floats __attribute__((vector_size(BYTES), aligned(1)));
typedef float four __attribute__((vector_size(16)));
typedef int32_t words __attribute__((vector_size(BYTES), aligned(1)));
typedef int16_t shorts __attribute__((vector_size(BYTES), aligned(1)));
typedef uint16_t unsigneds __attribute__((vector_size(BYTES), aligned(1)));

#define INLINE static inline __attribute__((always_inline))
static const int32_t UPPER = -65536; /* the upper 16 of 32 bits */

INLINE floats as_floats(words v) { union { words w; floats f; } same = {v}; return same.f; }
INLINE int32_t as_bits(float v) { union { float f; int32_t b; } same = {v}; return same.b; }
INLINE float from_bits(int32_t v) { union { int32_t b; float f; } same = {v}; return same.f; }
INLINE floats to_floats(words v) { return __builtin_convertvector(v, floats); }

INLINE float sum(floats v) {
    union { floats all; four part[FOURS]; } same = {v};
    for (long i = 1; i < FOURS; i++) same.part[0] += same.part[i];
    four s = same.part[0];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* bfloat16 is the upper half of a float32. Rounds to the nearest one, ties to even. */
INLINE void store(void *out, long i, float value, int wide) {
    int32_t bits = as_bits(value);
    if (wide) ((float *)out)[i] = value;
    else ((int16_t *)out)[i] = value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

INLINE float load(const void *x, long i, int wide) {
    return wide ? ((const float *)x)[i] : from_bits(((const int16_t *)x)[i] * 65536);
}

/* pairs: a0 b0 + a1 b1, a2 b2 + a3 b3, ...; widened: LANES bytes, as words; four_times: each of
   FOURS numbers four times. */
#ifdef __AVX512BW__
INLINE words pairs(unsigneds codes, shorts steps) {
    return (words)_mm512_madd_epi16((__m512i)codes, (__m512i)steps);
}
INLINE words widened(const uint8_t *v) {
    return (words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)v));
}
INLINE floats four_times(const float *v) {
    const __m512i order = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return (floats)_mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(v)), order);
}
#elif defined __AVX2__
INLINE words pairs(unsigneds codes, shorts steps) {
    return (words)_mm256_madd_epi16((__m256i)codes, (__m256i)steps);
}
INLINE words widened(const uint8_t *v) {
    return (words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)v));
}
INLINE floats four_times(const float *v) {
    return (floats)_mm256_set_m128(_mm_set1_ps(v[1]), _mm_set1_ps(v[0]));
}
#else
INLINE words pairs(unsigneds codes, shorts steps) {
    words a = (words)codes, b = (words)steps;
    return (a & 0xffff) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
INLINE words widened(const uint8_t *v) {
    return (words){v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]};
}
INLINE floats four_times(const float *v) {
    return (floats){v[0], v[0], v[0], v[0], v[1], v[1], v[1], v[1]};
}
#endif

/* n rows of x at once: each number of the matrix is taken out of its word once for all of them. */
INLINE void together(const words *row, const words *x, void *out, long r, long o, long O, long I,
                     const long n) {
    floats low[4] = {0}, high[4] = {0};
    for (long i = 0; i < I / LANES / 2; i++) {
        __builtin_prefetch(row + i + AHEAD);
        floats even = as_floats(row[i] << 16), odd = as_floats(row[i] & UPPER);
        for (long k = 0; k < n; k++) {
            words both = x[(r + k) * (I / LANES / 2) + i];
            low[k] += even * as_floats(both << 16);
            high[k] += odd * as_floats(both & UPPER);
        }
    }
    for (long k = 0; k < n; k++) store(out, (r + k) * O + o, sum(low[k] + high[k]), 0);
}

void bfloat16(const words *w, const words *x, void *out, long R, long O, long I, int threads) {
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++) {
        const words *row = w + o * (I / LANES / 2);
        long r = 0;
        for (; r + 4 <= R; r += 4) together(row, x, out, r, o, O, I, 4);
        for (; r + 2 <= R; r += 2) together(row, x, out, r, o, O, I, 2);
        for (; r < R; r++) together(row, x, out, r, o, O, I, 1);
    }
}

/* x -> its steps: for each vector of codes, of which a short holds n, those of the first code of
   every short, then those of the second, ...; its scales, each 16 / n times; its sums within
   groups. Bits 23 to 30 of a float32 are its exponent; if it is 255, x is infinite or not a
   number. */
INLINE void whole_numbers(const void *x, int16_t *steps, float *scales, float *sums, long R, long I,
                          long group, long n, int wide) {
    for (long g = 0; g < R * (I / group); g++) sums[g] = 0;
    for (long start = 0; start < R * I; start += 32) {
        int32_t most = 64 << 23, total = 0, rounded[32]; /* what is below 2^-63 may become 0 */
        float part[32];
        for (long i = 0; i < 32; i++) {
            part[i] = load(x, start + i, wide);
            int32_t size = as_bits(part[i]) & 0x7fffffff;
            most = size > most ? size : most;
        }
        int32_t exponent = most >> 23, finite = exponent < 255;
        float inverse = from_bits((268 - exponent) << 23); /* below 2^15 steps */
        for (long i = 0; i < 32; i++) {
            float step = finite ? part[i] * inverse : 0;
            rounded[i] = as_bits((step < 32767 ? step : 32767) + 0x1.8p23f) - as_bits(0x1.8p23f);
            total += rounded[i];
        }
        long left = start % (BYTES / 2 * n); /* since a vector of codes began */
        int16_t *its = steps + start - left + left / n;
        for (long k = 0; k < n; k++)
            for (long i = 0; i < 32 / n; i++) its[BYTES / 2 * k + i] = rounded[i * n + k];
        float scale = finite ? from_bits((exponent - 14) << 23) : NAN;
        for (long i = 0; i < 16 / n; i++) scales[start / 2 / n + i] = scale;
        sums[start / group] += total * scale;
    }
}

/* A vector of codes, of which a short holds n, times their steps: 16 / n sums belong to the first
   32, as many to the next 32, ... The second and the fourth code of 4 bits stay 4 bits up, so their
   sum is divided by 16. */
INLINE floats dots(const unsigneds *codes, const shorts *steps, const long n) {
    __builtin_prefetch(codes + AHEAD);
    unsigneds v = *codes, u = v >> 8;
    if (n == 2) return to_floats(pairs(v & 0xff, steps[0]) + pairs(u, steps[1]));
    words once = pairs(v & 0xf, steps[0]) + pairs(u & 0xf, steps[2]);
    words times16 = pairs(v & 0xf0, steps[1]) + pairs(u & 0xf0, steps[3]);
    return to_floats(once + (times16 >> 4));
}

/* The scales of the i-th vector of codes, of which a short holds n: 32 << level codes have one. */
INLINE floats its_scales(const float *scales, long i, const long n, int level) {
    long first = i * (BYTES * n / 64);
    if (level > 1) return scales[first >> level] + (floats){0};
    if (level == 0 && n == 4) return four_times(scales + first);
    float each[FOURS];
    for (long k = 0; k < FOURS; k++) each[k] = scales[(first + k * n / 4) >> level];
    return four_times(each);
}

/* One row of codes, of which a short holds n, times one of steps. Each of `groups` has a scale, a
   zero and the sum of its inputs. */
INLINE float product(const unsigneds *codes, const float *scales, const uint8_t *zeros,
                     const shorts *steps, const floats *step_scales, const float *sums,
                     long vectors, long groups, const long n, int level) {
    floats all = {0}, shift = {0};
    for (long i = 0; i < vectors; i++)
        all += dots(codes + i, steps + i * n, n) * step_scales[i] * its_scales(scales, i, n, level);
    long g = 0;
    for (; g < groups / LANES * LANES; g += LANES)
        shift += *(floats *)(scales + g) * to_floats(widened(zeros + g)) * *(floats *)(sums + g);
    for (; g < groups; g++) shift[0] += scales[g] * zeros[g] * sums[g];
    return sum(all - shift);
}

/* Codes of `bits` bits that stand for scale (code - zero): each row has a scale and a zero for each
   of its groups, of 32 << level neighbours or, if there is one, of all. */
void codes(const unsigneds *w, const float *scales, const uint8_t *zeros, const void *x,
           float *scratch, void *out, long R, long O, long I, int threads, int wide, int groups,
           int bits) {
    const long n = 16 / bits, vectors = I / n / (BYTES / 2);
    const int level = groups == 1 ? 30 : __builtin_ctzl(I / groups) - 5;
    const floats *step_scales = (floats *)scratch;
    float *sums = scratch + R * vectors * LANES;
    shorts *steps = (shorts *)(sums + R * groups);
    if (bits == 8) whole_numbers(x, (int16_t *)steps, scratch, sums, R, I, I / groups, 2, wide);
    else whole_numbers(x, (int16_t *)steps, scratch, sums, R, I, I / groups, 4, wide);
    #pragma omp parallel for num_threads(threads)
    for (long o = 0; o < O; o++) {
        const unsigneds *row = w + o * vectors;
        const float *its = scales + o * groups;
        const uint8_t *zero = zeros + o * groups;
        for (long r = 0; r < R; r++) {
            const shorts *in = steps + r * vectors * n;
            const floats *in_scales = step_scales + r * vectors;
            const float *in_sums = sums + r * groups;
            float found = bits == 8
                ? product(row, its, zero, in, in_scales, in_sums, vectors, groups, 2, level)
                : product(row, its, zero, in, in_scales, in_sums, vectors, groups, 4, level);
            store(out, r * O + o, found, wide);
        }
    }
}
