/* Softmax and cross-entropy over logits (rows, V), to which bias (V), unless null, is added.

   nll (rows) is -log p(target). Where `grad` is set, the logits become weight * (softmax -
   one-hot), and grad_bias (V), unless null, has their column sums added. A row of weight 0 is
   not read, and its nll is 0. scratch: (threads, 2, V + 16). */

/* 16 logits from v on; -inf beyond the last. */
INLINE vf NAME(logits_from)(const E *at, const float *bias, long v, long V) {
    if (v + WIDTH <= V) return bias ? NAME(load)(at + v) + load_f32(bias + v) : NAME(load)(at + v);
    float some[WIDTH];
    for (long k = 0; k < WIDTH; k++)
        some[k] = v + k < V ? NAME(real)(at[v + k]) + (bias ? bias[v + k] : 0) : -INFINITY;
    return load_f32(some);
}

/* odds (V + padding), unless null, = e^(logits - from); returns their sum. */
INLINE float NAME(odds)(const E *at, const float *bias, float from, long V, float *odds) {
    vf sum = splat(0);
    for (long v = 0; v < V; v += WIDTH) {
        vf x = NAME(logits_from)(at, bias, v, V) - from;
        vf odd = choose(x < -87.0f, splat(0), vexp(x));
        if (odds) store_f32(odds + v, odd);
        sum += odd;
    }
    return sum_of(sum);
}

static float NAME(highest)(const E *at, const float *bias, long V) {
    vf most = splat(-INFINITY);
    for (long v = 0; v < V; v += WIDTH) most = vmax(most, NAME(logits_from)(at, bias, v, V));
    return max_of(most);
}

void NAME(cross_entropy)(int threads, long rows, long V, E *logits, const float *bias,
                         const int64_t *targets, const float *weight, float *nll, float *scratch,
                         long grad, float *grad_bias) {
    const long width = (V + WIDTH - 1) / WIDTH * WIDTH;
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
        float *odds = scratch + 2 * width * me, *sums = odds + width;
        if (grad_bias) memset(sums, 0, width * sizeof(float));
        for (long row = rows * me / all; row < rows * (me + 1) / all; row++) {
            E *at = logits + row * V;
            const long target = targets[row];
            nll[row] = 0;
            if (weight[row] == 0) {
                if (grad) memset(at, 0, V * sizeof(E));
                continue;
            }
            const float wanted = NAME(real)(at[target]) + (bias ? bias[target] : 0);
            /* Relative to the target's, whose own odds are 1, unless others would overflow. */
            float from = wanted, total = NAME(odds)(at, bias, from, V, grad ? odds : 0);
            if (!(total < 1e30f)) {
                from = NAME(highest)(at, bias, V);
                total = NAME(odds)(at, bias, from, V, grad ? odds : 0);
            }
            nll[row] = logf(total) + (from - wanted);
            if (!grad) continue;
            odds[target] -= total;
            const float share = weight[row] / total;
            for (long v = 0; v < V; v += WIDTH) {
                vf gradient = load_f32(odds + v) * share;
                if (grad_bias) store_f32(sums + v, load_f32(sums + v) + gradient);
                NAME(store_some)(at + v, gradient, V - v);
            }
        }
#pragma omp barrier
        if (grad_bias)
            for (long v = V * me / all; v < V * (me + 1) / all; v++)
                for (long k = 0; k < all; k++) grad_bias[v] += scratch[(2 * k + 1) * width + v];
    }
}
