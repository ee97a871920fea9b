/* The recurrent hot path on the CPU, for float32 and, where the processor multiplies it, bfloat16.

   library.py builds and calls it. Every function is there once for each element type E, named
   f32 or bf16; PACK elements of E are one 32-bit word. Sums and states are in float32. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "vector.h"
#include "share.h"

#define PASTE(name, suffix) name##_##suffix
#define JOIN(name, suffix) PASTE(name, suffix)
#define NAME(name) JOIN(name, SUFFIX)

#define SUFFIX f32
#define E float
#define PACK 1
INLINE float real_f32(float x) { return x; }
INLINE vf word_f32(const float *from) { return splat(*from); }
INLINE vf multiply_add_f32(vf sum, vf a, vf b) { return sum + a * b; }
/* rows[k] is element k of each of the 16 words. */
INLINE void store_words_f32(float *to, const vf *rows) { store_f32(to, rows[0]); }
/* And back: element k of the words goes to row k. */
INLINE void split_words_f32(const float *from, float *to, long row) {
    (void)row;
    store_f32(to, load_f32(from));
}
#include "product.h"
#include "lstm.h"
#include "odds.h"
#include "dropout.h"
#include "scan.h"
#undef SUFFIX
#undef E
#undef PACK

#ifdef __AVX512BF16__

#define SUFFIX bf16
#define E uint16_t
#define PACK 2
INLINE float real_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
INLINE vf load_bf16(const uint16_t *from) {
    __m256i v;
    memcpy(&v, from, sizeof v);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16);
}
INLINE void store_bf16(uint16_t *to, vf v) {
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &rounded, sizeof rounded);
}
INLINE vf word_bf16(const uint16_t *from) {
    int32_t word;
    memcpy(&word, from, sizeof word);
    return (vf)_mm512_set1_epi32(word);
}
INLINE vf multiply_add_bf16(vf sum, vf a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
INLINE void store_words_bf16(uint16_t *to, const vf *rows) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[0]));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)rows[1]));
    __m512i words = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    memcpy(to, &words, sizeof words);
}
INLINE void split_words_bf16(const uint16_t *from, uint16_t *to, long row) {
    __m512i words;
    memcpy(&words, from, sizeof words);
    __m256i low = _mm512_cvtepi32_epi16(words);
    __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16));
    memcpy(to, &low, sizeof low);
    memcpy(to + row, &high, sizeof high);
}
#include "product.h"
#include "lstm.h"
#include "odds.h"
#include "dropout.h"
#endif
