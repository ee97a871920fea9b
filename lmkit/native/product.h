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
   apart. R and J are constants, so that all of sum is in registers. */
#define PRODUCT(R, J)                                                                           \
    INLINE void NAME(product_##R##_##J)(const E *a, long row, const E *b, long words,         \
                                        vf *sum) {                                              \
        vf acc[R][J];                                                                           \
        memcpy(acc, sum, sizeof acc);                                                           \
        for (long k = 0; k < words; k++, a += PACK, b += J * WIDTH * PACK) {                    \
            vf column[J];                                                                       \
            _Pragma("GCC unroll 4") for (int j = 0; j < J; j++)                                 \
                memcpy(&column[j], b + j * WIDTH * PACK, sizeof(vf));                           \
            _Pragma("GCC unroll 12") for (int r = 0; r < R; r++) {                              \
                vf word = NAME(word)(a + r * row);                                              \
                _Pragma("GCC unroll 4") for (int j = 0; j < J; j++)                             \
                    acc[r][j] = NAME(multiply_add)(acc[r][j], word, column[j]);                 \
            }                                                                                   \
        }                                                                                       \
        memcpy(sum, acc, sizeof acc);                                                           \
    }
PRODUCT(1, 4) PRODUCT(2, 4) PRODUCT(3, 4) PRODUCT(4, 4) PRODUCT(5, 4) PRODUCT(6, 4)
PRODUCT(1, 2) PRODUCT(2, 2) PRODUCT(3, 2) PRODUCT(4, 2) PRODUCT(5, 2) PRODUCT(6, 2)
PRODUCT(7, 2) PRODUCT(8, 2) PRODUCT(9, 2) PRODUCT(10, 2)
#undef PRODUCT

/* A longer panel than this loses half its speed on the way from the second cache. */
#define DEPTH 512
#define CASE(R, J)                                     \
    case R:                                            \
        NAME(product_##R##_##J)(a, row, b, some, sum); \
        break;
static void NAME(product_by_4)(int rows, const E *a, long row, const E *b, long words, vf *sum) {
    for (; words > 0; words -= DEPTH, a += DEPTH * PACK, b += DEPTH * 4 * WIDTH * PACK) {
        const long some = words < DEPTH ? words : DEPTH;
        switch (rows) { CASE(1, 4) CASE(2, 4) CASE(3, 4) CASE(4, 4) CASE(5, 4) CASE(6, 4) }
    }
}
static void NAME(product_by_2)(int rows, const E *a, long row, const E *b, long words, vf *sum) {
    for (; words > 0; words -= DEPTH, a += DEPTH * PACK, b += DEPTH * 2 * WIDTH * PACK) {
        const long some = words < DEPTH ? words : DEPTH;
        switch (rows) {
            CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2)
            CASE(6, 2) CASE(7, 2) CASE(8, 2) CASE(9, 2) CASE(10, 2)
        }
    }
}
#undef CASE
#undef DEPTH
