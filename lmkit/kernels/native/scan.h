/* The recurrence h_t = a_t h_{t-1} + b_t of each unit by itself, over T positions of B lanes with H
   units; everything is (B, T, H) in float32, but for resets (B, T) and the first state (B, H).

   Some units of a lane, PANEL cache lines, are an item: no thread reads what another one writes.
   Where `resets` is set, the state after the position is 0 and nothing before it gets a gradient. */

#define PANEL 4
#define PANELS(H) (((H) + PANEL * WIDTH - 1) / (PANEL * WIDTH))

void NAME(scan_forward)(int threads, long B, long T, long H, const float *a, const float *b,
                        const uint8_t *resets, const float *first, float *h) {
    const long panels = PANELS(H);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (B * T * H > 16384)
    for (long item = 0; item < B * panels; item++) {
        const long lane = item / panels, unit = item % panels * PANEL * WIDTH, left = H - unit;
        vf state[PANEL];
        for (long j = 0; j < PANEL; j++)
            state[j] = load_some_f32(first + lane * H + unit + j * WIDTH, left - j * WIDTH);
        for (long t = 0; t < T; t++)
            for (long j = 0; j < PANEL && j * WIDTH < left; j++) {
                const long at = (lane * T + t) * H + unit + j * WIDTH, some = left - j * WIDTH;
                state[j] = load_some_f32(a + at, some) * state[j] + load_some_f32(b + at, some);
                if (resets[lane * T + t]) state[j] = splat(0);
                store_some_f32(h + at, state[j], some);
            }
    }
}

/* From grad_h, that of h, to the gradients of a, b and the first state. */
void NAME(scan_backward)(int threads, long B, long T, long H, const float *a,
                         const uint8_t *resets, const float *first, const float *h,
                         const float *grad_h, float *grad_a, float *grad_b, float *grad_first) {
    const long panels = PANELS(H);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (B * T * H > 16384)
    for (long item = 0; item < B * panels; item++) {
        const long lane = item / panels, unit = item % panels * PANEL * WIDTH, left = H - unit;
        vf grad[PANEL] = {{0}};
        for (long t = T - 1; t >= 0; t--)
            for (long j = 0; j < PANEL && j * WIDTH < left; j++) {
                const long at = (lane * T + t) * H + unit + j * WIDTH, some = left - j * WIDTH;
                const float *before = t ? h + at - H : first + lane * H + unit + j * WIDTH;
                grad[j] += load_some_f32(grad_h + at, some);
                if (resets[lane * T + t]) grad[j] = splat(0);
                store_some_f32(grad_b + at, grad[j], some);
                store_some_f32(grad_a + at, grad[j] * load_some_f32(before, some), some);
                grad[j] *= load_some_f32(a + at, some);
            }
        for (long j = 0; j < PANEL; j++)
            store_some_f32(grad_first + lane * H + unit + j * WIDTH, grad[j], left - j * WIDTH);
    }
}
#undef PANEL
#undef PANELS
