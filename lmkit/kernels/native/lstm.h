/* An LSTM layer over a window of T positions in B lanes, H units in P panels of 16.

   Time comes first and units are padded with zeros to a multiple of 16: Hp = 16 P; likewise the
   inputs, to Ip. A panel of weights is, for every word of inputs, the gates i, f, g, o of 16
   units, so that what one product leaves in registers is all that a unit's step needs.
   Where `resets` is set, the state after the position is 0 and nothing before it gets a gradient. */

/* xh (T + 1, B, Ip + Hp) has in row t the input of position t and the hidden state before it;
   w from pack_gates; bias (P, 4, 16); resets (T, B); c (B, Hp), the state, in float32; cs
   (T + 1, B, Hp), from the state before position 0; gates (T, B, P, 4, 16), null where there
   will be no backward. */
void NAME(lstm_forward)(int threads, long T, long B, long Ip, long P, E *xh, const E *w,
                        const float *bias, const uint8_t *resets, float *c, E *cs, E *gates) {
    const long Hp = P * WIDTH, K = Ip + Hp, blocks = (B + 5) / 6;
    Work work = work_of(threads, T);
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num();
        vf sum[6 * 4];
        for (long t = 0; t < T; t++) {
            await(&work, t * P);
            for (long p; (p = claim(&work, t, P, me)) >= 0; finish(&work, (t + 1) * P))
                for (long block = 0; block < blocks; block++) {
                    const long row = B * block / blocks, R = B * (block + 1) / blocks - row;
                    for (long k = 0; k < R * 4; k++)
                        sum[k] = load_f32(bias + (p * 4 + k % 4) * WIDTH);
                    NAME(product)(R, 4, xh + (t * B + row) * K, K, PACK, w + p * K * 4 * WIDTH,
                                  K / PACK, sum);
                    for (long r = 0; r < R; r++) {
                        const long lane = row + r, unit = p * WIDTH, next = (t + 1) * B + lane;
                        vf i = vsigmoid(sum[r * 4]), f = vsigmoid(sum[r * 4 + 1]),
                           g = vtanh(sum[r * 4 + 2]), o = vsigmoid(sum[r * 4 + 3]);
                        vf cell = f * load_f32(c + lane * Hp + unit) + i * g;
                        vf hidden = o * vtanh(cell);
                        if (resets[t * B + lane]) cell = hidden = splat(0);
                        store_f32(c + lane * Hp + unit, cell);
                        NAME(store)(cs + next * Hp + unit, cell);
                        NAME(store)(xh + next * K + Ip + unit, hidden);
                        if (!gates) continue;
                        E *saved = gates + ((t * B + lane) * P + p) * 4 * WIDTH;
                        NAME(store)(saved, i);
                        NAME(store)(saved + WIDTH, f);
                        NAME(store)(saved + 2 * WIDTH, g);
                        NAME(store)(saved + 3 * WIDTH, o);
                    }
                }
        }
    }
    free(work.shares);
}

/* From grad_hs (T, B, H), and the gradient of the last state: grad_h (B, H) or null, grad_c
   (B, Hp), to that of the gates before their nonlinearities, grad_gates (T, B, 4, H), their sums
   grad_bias (4, H), and the gradient of the first state's c, left in grad_c. w from
   pack_columns. */
void NAME(lstm_backward)(int threads, long T, long B, long H, const E *w, const uint8_t *resets,
                         const E *cs, const E *gates, const E *grad_hs, const float *grad_h,
                         float *grad_c, E *grad_gates, float *grad_bias) {
    const long wide = 2 * WIDTH, P = (H + WIDTH - 1) / WIDTH, Hp = P * WIDTH;
    const long panels = (H + wide - 1) / wide, blocks = (B + 9) / 10, tasks = panels * blocks;
    float *sums = calloc(blocks * 4 * Hp, sizeof(float)); /* of the lanes of each block */
    Work work = work_of(threads, T);
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num();
        vf sum[10 * 2];
        for (long t = T - 1; t >= 0; t--) {
            const long step = T - 1 - t, last = (step + 1) * tasks;
            await(&work, step * tasks);
            for (long task; (task = claim(&work, step, tasks, me)) >= 0; finish(&work, last)) {
                const long p = task / blocks, block = task % blocks;
                const long row = B * block / blocks, R = B * (block + 1) / blocks - row;
                for (long k = 0; k < R * 2; k++) sum[k] = splat(0);
                if (t + 1 < T)
                    NAME(product)(R, 2, grad_gates + ((t + 1) * B + row) * 4 * H, 4 * H, PACK,
                                  w + p * wide * 4 * H, 4 * H / PACK, sum);
                for (long k = 0; k < R * 2; k++) {
                    const long lane = row + k / 2, u = p * wide + k % 2 * WIDTH, left = H - u;
                    const long at = lane * Hp + u;
                    if (left <= 0) continue;
                    vf dh = sum[k] + NAME(load_some)(grad_hs + (t * B + lane) * H + u, left);
                    if (t + 1 == T && grad_h) dh += load_some_f32(grad_h + lane * H + u, left);
                    const E *saved = gates + (t * B + lane) * 4 * Hp + 4 * u;
                    vf i = NAME(load)(saved), f = NAME(load)(saved + WIDTH),
                       g = NAME(load)(saved + 2 * WIDTH), o = NAME(load)(saved + 3 * WIDTH);
                    vf squashed = vtanh(NAME(load)(cs + (t + 1) * B * Hp + at));
                    vf dc = load_f32(grad_c + at) + dh * o * (1.0f - squashed * squashed);
                    vf di = dc * g * i * (1.0f - i), dg = dc * i * (1.0f - g * g);
                    vf df = dc * NAME(load)(cs + t * B * Hp + at) * f * (1.0f - f);
                    vf dout = dh * squashed * o * (1.0f - o);
                    dc *= f;
                    if (resets[t * B + lane]) dc = di = df = dg = dout = splat(0);
                    store_f32(grad_c + at, dc);
                    float *bias = sums + block * 4 * Hp + u;
                    store_f32(bias, load_f32(bias) + di);
                    store_f32(bias + Hp, load_f32(bias + Hp) + df);
                    store_f32(bias + 2 * Hp, load_f32(bias + 2 * Hp) + dg);
                    store_f32(bias + 3 * Hp, load_f32(bias + 3 * Hp) + dout);
                    E *to = grad_gates + (t * B + lane) * 4 * H + u;
                    NAME(store_some)(to, di, left);
                    NAME(store_some)(to + H, df, left);
                    NAME(store_some)(to + 2 * H, dg, left);
                    NAME(store_some)(to + 3 * H, dout, left);
                }
            }
        }
    }
    for (long gate = 0; gate < 4; gate++)
        for (long u = 0; u < H; u++) {
            float total = 0;
            for (long block = 0; block < blocks; block++)
                total += sums[(block * 4 + gate) * Hp + u];
            grad_bias[gate * H + u] = total;
        }
    free(work.shares);
    free(sums);
}

/* w (4 H, K) -> from word `first` on, the panels of lstm_forward, (P, words, 4, 16, PACK). */
void NAME(pack_gates)(int threads, long H, long K, long first, long words, const float *w, E *to) {
    const long P = (H + WIDTH - 1) / WIDTH, Kp = (K + WIDTH - 1) / WIDTH * WIDTH;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (P * Kp > 1024)
    for (long p = 0; p < P; p++)
        for (long begin = 0; begin < Kp; begin += WIDTH) /* a block stays in the first cache */
            for (long column = 0; column < 4 * WIDTH; column++) {
                const long unit = p * WIDTH + column % WIDTH, gate = column / WIDTH;
                const float *row = w + (gate * H + unit) * K + begin;
                E some[WIDTH];
                NAME(store)(some, unit < H ? load_some_f32(row, K - begin) : splat(0));
                E *at = to + (p * words + first + begin / PACK) * 4 * WIDTH * PACK + column * PACK;
                for (long k = 0; k < WIDTH; k += PACK)
                    memcpy(at + k * 4 * WIDTH, some + k, PACK * sizeof(E));
            }
}

/* w (4 H, H) -> the panels of lstm_backward, (ceil(H / 32), 4 H / PACK, 32, PACK). */
void NAME(pack_columns)(int threads, long H, const float *w, E *to) {
    const long wide = 2 * WIDTH, panels = (H + wide - 1) / wide;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (panels * H > 1024)
    for (long p = 0; p < panels; p++)
        for (long k = 0; k < 4 * H; k += PACK)
            for (long j = 0; j < 2; j++) {
                vf rows[PACK];
                for (long q = 0; q < PACK; q++)
                    rows[q] = load_some_f32(w + (k + q) * H + p * wide + j * WIDTH,
                                            H - p * wide - j * WIDTH);
                NAME(store_words)(to + (p * 4 * H + k) * wide + j * WIDTH * PACK, rows);
            }
}
