/* Matrix products with a right side in panels: for every word of rows, J vectors of 16 words. */

/* As load and store, of the first `count` elements. */
INLINE vf NAME(load_some)(const E *from, long count) {
    if (count >= WIDTH) return NAME(load)(from);
    E all[WIDTH] = {0};
    if (count > 0) memcpy(all, from, count * sizeof(E));
    return NAME(load)(all);
}
INLINE void NAME(store_some)(E *to, vf v, long count) {
    if (count >= WIDTH) {
        NAME(store)(to, v);
        return;
    }
    E all[WIDTH];
    NAME(store)(all, v);
    if (count > 0) memcpy(to, all, count * sizeof(E));
}

/* sum (R, J vectors) += a (R rows, words) . b (words, J vectors); rows of a are `row` elements
   apart, its words `step`. R and J are constants, so that all of sum is in registers. */
#define PRODUCT(R, J)                                                                          \
    INLINE void NAME(product_##R##_##J)(const E *a, long row, long step, const E *b,           \
                                        long words, vf *sum) {                                 \
        vf acc[R][J];                                                                          \
        memcpy(acc, sum, sizeof acc);                                                          \
        for (long k = 0; k < words; k++, a += step, b += J * WIDTH * PACK) {                   \
            vf column[J];                                                                      \
            _Pragma("GCC unroll 4") for (int j = 0; j < J; j++)                                \
                memcpy(&column[j], b + j * WIDTH * PACK, sizeof(vf));                          \
            _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {                             \
                vf word = NAME(word)(a + r * row);                                             \
                _Pragma("GCC unroll 4") for (int j = 0; j < J; j++)                            \
                    acc[r][j] = NAME(multiply_add)(acc[r][j], word, column[j]);                \
            }                                                                                  \
        }                                                                                      \
        memcpy(sum, acc, sizeof acc);                                                          \
    }
#define SIX(J) PRODUCT(1, J) PRODUCT(2, J) PRODUCT(3, J) PRODUCT(4, J) PRODUCT(5, J) PRODUCT(6, J)
SIX(1) SIX(2) SIX(3) SIX(4) PRODUCT(7, 2) PRODUCT(8, 2) PRODUCT(9, 2) PRODUCT(10, 2)
#undef SIX
#undef PRODUCT

/* Of up to 6 rows, or 10 with 2 vectors. A longer panel than DEPTH loses half its speed on the
   way from the second cache. */
#define DEPTH 512
#define CASE(R, J)                                              \
    case R * 8 + J:                                             \
        NAME(product_##R##_##J)(a, row, step, b, some, sum);    \
        break;
#define SIX(J) CASE(1, J) CASE(2, J) CASE(3, J) CASE(4, J) CASE(5, J) CASE(6, J)
static void NAME(product)(long rows, long vectors, const E *a, long row, long step, const E *b,
                          long words, vf *sum) {
    for (; words > 0; words -= DEPTH, a += DEPTH * step, b += DEPTH * vectors * WIDTH * PACK) {
        const long some = words < DEPTH ? words : DEPTH;
        switch (rows * 8 + vectors) {
            SIX(1) SIX(2) SIX(3) SIX(4) CASE(7, 2) CASE(8, 2) CASE(9, 2) CASE(10, 2)
        }
    }
}
#undef SIX
#undef CASE
#undef DEPTH
