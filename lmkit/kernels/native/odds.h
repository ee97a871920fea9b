/* Softmax and cross-entropy of W x + b, without its logits.

   What is stored is odds, e^(logit - from) with `from` near the target's logit, in panels of
   positions as the gradients' products want them. V words, K inputs; N positions, in vectors of
   16, are cut into `panels` panels of at most 4 vectors. */

#define ROWS 96 /* of W at a time are brought into E, and of odds into the order of W */
#define VECTORS(n) (((n) + WIDTH - 1) / WIDTH)
#define WORDS(n) (((n) + PACK - 1) / PACK)

#ifndef DIVIDED
#define DIVIDED
/* Into how many groups `count` is cut, so that with `others` of them there are items enough. */
INLINE long divided(long count, long others) {
    const long wanted = (64 + others - 1) / others;
    return count < wanted ? count : wanted;
}
#endif

/* x (N, K) -> xt, for softmax_odds: (panel, words of K, positions). */
void NAME(pack_positions)(int threads, long N, long panels, long K, const E *x, E *xt) {
    const long words = WORDS(K);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (N * K > 16384)
    for (long p = 0; p < panels; p++) {
        const long first = part_of(VECTORS(N), p, panels) * WIDTH;
        const long wide = part_of(VECTORS(N), p + 1, panels) * WIDTH - first;
        for (long n = 0; n < wide; n++)
            for (long k = 0; k < words; k++) {
                const long row = first + n, left = row < N ? K - k * PACK : 0;
                E word[PACK] = {0};
                memcpy(word, x + row * K + k * PACK, (left < PACK ? left : PACK) * sizeof(E));
                memcpy(xt + (first * words + k * wide + n) * PACK, word, sizeof word);
            }
    }
}

/* share * (x, 1) -> xs, for odds_to_weight: (panel of K + 1, words of N, columns). */
void NAME(pack_inputs)(int threads, long N, long K, const E *x, const float *share, E *xs) {
    const long columns = VECTORS(K + 1), parts = (columns + 3) / 4;
    const long words = VECTORS(N) * WIDTH / PACK;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16) if (N * K > 16384)
    for (long n = 0; n < words; n++)
        for (long part = 0; part < parts; part++) {
            const long first = part_of(columns, part, parts);
            const long J = part_of(columns, part + 1, parts) - first;
            for (long j = 0; j < J; j++) {
                vf rows[PACK];
                for (long q = 0; q < PACK; q++) {
                    const long row = n * PACK + q, column = (first + j) * WIDTH, left = K - column;
                    rows[q] = splat(0);
                    if (row >= N) continue;
                    rows[q] = NAME(load_some)(x + row * K + column, left);
                    if (left < WIDTH) rows[q][left] = 1;
                    rows[q] *= share[row];
                }
                NAME(store_words)(xs + (first * words + n * J + j) * WIDTH * PACK, rows);
            }
        }
}

/* As E has it. */
INLINE vf NAME(rounded)(vf v) {
    E some[WIDTH];
    NAME(store)(some, v);
    return NAME(load)(some);
}

/* Products of R rows of W, less `from`, become odds, in words of rows, and are added to total. */
INLINE void NAME(to_odds)(long R, long J, vf *sum, vf *total, E *odds) {
    for (long r = 0; r < R; r++)
        for (long j = 0; j < J; j++) total[j] += sum[r * J + j] = vexp(sum[r * J + j]);
    if (!odds) return;
    for (long j = 0; j < J; j++) sum[R * J + j] = splat(0); /* where V is odd */
    for (long r = 0; r < R; r += PACK)
        for (long j = 0; j < J; j++) {
            vf rows[PACK];
            for (long q = 0; q < PACK; q++) rows[q] = sum[(r + q) * J + j];
            NAME(store_words)(odds + (r / PACK * J + j) * WIDTH * PACK, rows);
        }
}

/* xt from pack_positions; from (N to the next 16) -> odds (panel, words of V, positions) unless
   null, and their sums, total (N to the next 16). */
void NAME(softmax_odds)(int threads, long N, long panels, long V, long K, const E *xt,
                        const float *w, const float *bias, const float *from, E *odds,
                        float *total) {
    const long words = WORDS(K), width = words * PACK, blocks = (V + ROWS - 1) / ROWS;
    /* An item is some blocks of W by some panels. */
    const long parts = blocks < 256 ? blocks : 256, groups = divided(panels, parts);
    const long padded = VECTORS(N) * WIDTH, items = parts * groups;
    float *totals = calloc(parts * padded, sizeof(float));
    Work work = work_of(threads, 1);
#pragma omp parallel num_threads(threads)
    {
        E *a = malloc(ROWS * width * sizeof(E));
        const long me = omp_get_thread_num();
        for (long item; (item = claim(&work, 0, items, me)) >= 0;) {
            const long part = item / groups, group = item % groups;
            const long low = part_of(panels, group, groups);
            const long high = part_of(panels, group + 1, groups);
            const long end = part_of(blocks, part + 1, parts);
            for (long block = part_of(blocks, part, parts); block < end; block++) {
                const long begin = block * ROWS, rows = V - begin < ROWS ? V - begin : ROWS;
                for (long r = 0; r < rows; r++)
                    for (long k = 0; k < width; k += WIDTH)
                        NAME(store_some)(a + r * width + k,
                                         load_some_f32(w + (begin + r) * K + k, K - k), width - k);
                for (long p = low; p < high; p++) {
                    const long first = part_of(VECTORS(N), p, panels);
                    const long J = part_of(VECTORS(N), p + 1, panels) - first;
                    float *at = totals + part * padded + first * WIDTH;
                    E *panel =
                        odds ? odds + (first * WORDS(V) + begin / PACK * J) * WIDTH * PACK : 0;
                    vf some[4] = {{0}}; /* sums of sums round less */
                    for (long row = 0; row < rows; row += 6) {
                        const long R = rows - row < 6 ? rows - row : 6;
                        vf sum[7 * 4];
                        for (long r = 0; r < R; r++)
                            for (long j = 0; j < J; j++)
                                sum[r * J + j] = (bias ? bias[begin + row + r] : 0) -
                                                 load_f32(from + (first + j) * WIDTH);
                        NAME(product)(R, J, a + row * width, width, PACK,
                                      xt + first * WIDTH * width, words, sum);
                        NAME(to_odds)(R, J, sum, some, panel ? panel + row * J * WIDTH : 0);
                    }
                    for (long j = 0; j < J; j++)
                        store_f32(at + j * WIDTH, load_f32(at + j * WIDTH) + some[j]);
                }
            }
        }
        free(a);
    }
    for (long n = 0; n < padded; n += WIDTH) { /* in one order, whoever made them */
        vf sum = splat(0);
        for (long part = 0; part < parts; part++) sum += load_f32(totals + part * padded + n);
        store_f32(total + n, sum);
    }
    free(work.shares);
    free(totals);
}

/* The gradient by W, and by b unless null, from odds and pack_inputs' xs, less weight (N) times
   x, or 1, for the target. With `add` that of W is added to what is there; that of b always. */
void NAME(odds_to_weight)(int threads, long N, long panels, long V, long K, const E *odds,
                          const E *xs, const E *x, const int64_t *targets, const float *weight,
                          const float *share, long add, float *grad_w, float *grad_b) {
    const long width = VECTORS(N) * WIDTH, blocks = (V + ROWS - 1) / ROWS;
    const long columns = VECTORS(K + 1), parts = (columns + 3) / 4;
    /* An item is a block of W by some parts of the columns. */
    const long groups = divided(parts, blocks), items = blocks * groups;
    Work work = work_of(threads, 1);
#pragma omp parallel num_threads(threads)
    {
        E *a = malloc(ROWS * width * sizeof(E));
        const long me = omp_get_thread_num();
        for (long item; (item = claim(&work, 0, items, me)) >= 0;) {
            const long begin = item / groups * ROWS, group = item % groups;
            const long rows = V - begin < ROWS ? V - begin : ROWS;
            const long low = part_of(parts, group, groups);
            const long high = part_of(parts, group + 1, groups);
            for (long p = 0; p < panels; p++) {
                const long first = part_of(VECTORS(N), p, panels);
                const long J = part_of(VECTORS(N), p + 1, panels) - first;
                const E *panel = odds + (first * WORDS(V) + begin / PACK * J) * WIDTH * PACK;
                for (long r = 0; r < rows; r += PACK)
                    for (long j = 0; j < J; j++)
                        NAME(split_words)(panel + (r * J + j * PACK) * WIDTH,
                                          a + r * width + (first + j) * WIDTH, width);
            }
            for (long part = low; part < high; part++) {
                const long first = part_of(columns, part, parts);
                const long J = part_of(columns, part + 1, parts) - first;
                for (long row = 0; row < rows; row += 6) {
                    const long R = rows - row < 6 ? rows - row : 6;
                    float *at = grad_w + (begin + row) * K + first * WIDTH;
                    vf sum[6 * 4];
                    for (long r = 0; r < R; r++)
                        for (long j = 0; j < J; j++)
                            sum[r * J + j] = add ? load_some_f32(at + r * K + j * WIDTH,
                                                                 K - (first + j) * WIDTH)
                                                 : splat(0);
                    NAME(product)(R, J, a + row * width, width, PACK,
                                  xs + first * WIDTH * width, width / PACK, sum);
                    for (long r = 0; r < R; r++)
                        for (long j = 0; j < J; j++) {
                            const long left = K - (first + j) * WIDTH;
                            store_some_f32(at + r * K + j * WIDTH, sum[r * J + j], left);
                            if (grad_b && left < WIDTH)
                                grad_b[begin + row + r] += sum[r * J + j][left];
                        }
                }
            }
            const long left = part_of(columns, low, parts) * WIDTH;
            const long right = part_of(columns, high, parts) * WIDTH;
            for (long n = 0; n < N; n++) {
                const long v = targets[n];
                if (v < begin || v >= begin + rows) continue;
                /* As rounded in xs, so that a certain prediction leaves nothing. */
                const float total = weight[n] / share[n];
                for (long k = left; k < right && k < K; k += WIDTH) {
                    vf row = NAME(rounded)(NAME(load_some)(x + n * K + k, K - k) * share[n]);
                    float *at = grad_w + v * K + k;
                    store_some_f32(at, load_some_f32(at, K - k) - row * total, K - k);
                }
                if (grad_b && right > K) grad_b[v] -= NAME(rounded)(splat(share[n]))[0] * total;
            }
        }
        free(a);
    }
    free(work.shares);
}

/* The gradient by x (N, K): share * (odds . W) - weight * W[target]. */
void NAME(odds_to_inputs)(int threads, long N, long panels, long V, long K, const E *odds,
                          const float *w, const int64_t *targets, const float *weight,
                          const float *share, float *grad_x) {
    const long width = VECTORS(K) * WIDTH, depth = 512; /* words of V at a time */
    const long rounds = (WORDS(V) + depth - 1) / depth, packs = depth / 32;
    const long cuts = (VECTORS(K) + 3) / 4, products = panels * cuts;
    E *packed = malloc(2 * depth * PACK * width * sizeof(E));
    float *sums = malloc(width * VECTORS(N) * WIDTH * sizeof(float)); /* (panel, K, positions) */
    /* In a step the words of one round are packed, in one place while those of the round before,
       in the other, are multiplied. The last step makes grad_x of the sums. */
    Work work = work_of(threads, rounds + 2);
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num();
        long before = 0;
        for (long step = 0, items; step < rounds + 2; step++, before += items) {
            const long packing = step < rounds ? packs : 0;
            items = step > rounds ? VECTORS(N) : packing + (step > 0 ? products : 0);
            await(&work, before);
            for (long item; (item = claim(&work, step, items, me)) >= 0;
                 finish(&work, before + items)) {
                if (step > rounds) {
                    long p = 0;
                    while (part_of(VECTORS(N), p + 1, panels) <= item) p++;
                    const long first = part_of(VECTORS(N), p, panels) * WIDTH;
                    const long wide = part_of(VECTORS(N), p + 1, panels) * WIDTH - first;
                    for (long n = item * WIDTH; n < (item + 1) * WIDTH && n < N; n++)
                        for (long k = 0; k < K; k++)
                            grad_x[n * K + k] =
                                share[n] * sums[first * width + k * wide + n - first] -
                                weight[n] * NAME(rounded)(splat(w[targets[n] * K + k]))[0];
                    continue;
                }
                const long begin = (item < packing ? step : step - 1) * depth;
                const long words = WORDS(V) - begin < depth ? WORDS(V) - begin : depth;
                /* (vectors of K, words of V, 16) */
                E *a = packed + begin / depth % 2 * depth * PACK * width;
                if (item < packing) {
                    const long end = part_of(words, item + 1, packs);
                    for (long v = part_of(words, item, packs); v < end; v++)
                        for (long k = 0; k < K; k += WIDTH) {
                            vf rows[PACK];
                            for (long q = 0; q < PACK; q++) {
                                const long row = (begin + v) * PACK + q;
                                rows[q] = row < V ? load_some_f32(w + row * K + k, K - k) : splat(0);
                            }
                            NAME(store_words)(a + (k * words + v * WIDTH) * PACK, rows);
                        }
                    continue;
                }
                const long p = (item - packing) / cuts, cut = (item - packing) % cuts;
                const long first = part_of(VECTORS(N), p, panels);
                const long J = part_of(VECTORS(N), p + 1, panels) - first;
                const E *panel = odds + (first * WORDS(V) + begin * J) * WIDTH * PACK;
                const long right = part_of(VECTORS(K), cut + 1, cuts) * WIDTH;
                const long end = right < K ? right : K;
                for (long k = part_of(VECTORS(K), cut, cuts) * WIDTH, R; k < end; k += R) {
                    const long after = k % WIDTH, rest = WIDTH - after;
                    const long left = K - k < rest ? K - k : rest;
                    R = left < 6 ? left : left < 12 ? (left + 1) / 2 : 6;
                    float *at = sums + (first * width + k * J) * WIDTH;
                    vf sum[6 * 4];
                    for (long i = 0; i < R * J; i++)
                        sum[i] = begin ? load_f32(at + i * WIDTH) : splat(0);
                    NAME(product)(R, J, a + ((k - after) * words + after) * PACK, PACK,
                                  WIDTH * PACK, panel, words, sum);
                    memcpy(at, sum, R * J * sizeof(vf));
                }
            }
        }
    }
    free(work.shares);
    free(sums);
    free(packed);
}
#undef ROWS
#undef VECTORS
#undef WORDS
