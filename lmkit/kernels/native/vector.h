/* Sixteen floats at a time in GCC's vector types: AVX-512, AVX2 and NEON from the same lines. */
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define WIDTH 16

typedef float vf __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * WIDTH)));

INLINE vf splat(float x) { return x - (vf){}; }
INLINE vf load_f32(const float *from) {
    vf v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store_f32(float *to, vf v) { memcpy(to, &v, sizeof v); }

INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* Of the two; b where either is NaN. */
#ifdef __AVX512F__
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vf vmax(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf vmin(vf a, vf b) { return choose(a < b, a, b); }
#endif
INLINE float sum_of(vf v) {
    float sum = 0;
    for (int k = 0; k < WIDTH; k++) sum += v[k];
    return sum;
}
INLINE float max_of(vf v) {
    float most = v[0];
    for (int k = 1; k < WIDTH; k++) most = v[k] > most ? v[k] : most;
    return most;
}

/* e^x to 2 ulp, 0 < e^x < inf: x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is Cephes' expf. */
INLINE vf vexp(vf x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = vmin(splat(88.0f), vmax(splat(-87.0f), x));
    vf shifted = x * 1.44269504088896341f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}
INLINE vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

/* tanh to 2 ulp: Cephes' polynomial near 0, by e^2x elsewhere. */
INLINE vf vtanh(vf x) {
    vf z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    return choose(z < 0.390625f, p * z * x + x, 1.0f - 2.0f / (vexp(x + x) + 1.0f));
}

/* Where part p of `parts` of `count` begins, all of them as equal as can be. */
INLINE long part_of(long count, long p, long parts) { return count * p / parts; }
