/* to = scale * from, and 0 where the hash of key, key_2 and the place, which is `first` for the
   first element, is below threshold. */

#ifndef HASH
#define HASH
/* Wellons' lowbias32 */
INLINE vu hash(vu x) {
    x = (x ^ (x >> 16)) * 0x7feb352dU;
    x = (x ^ (x >> 15)) * 0x846ca68bU;
    return x ^ (x >> 16);
}
#endif

void NAME(dropout)(int threads, long count, const E *from, E *to, long key, long key_2,
                   long first, long threshold, float scale) {
    const vu places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const long blocks = (count + WIDTH - 1) / WIDTH;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 512) if (blocks > 1024)
    for (long block = 0; block < blocks; block++) {
        const long k = block * WIDTH;
        vu drawn = hash(hash((places + (uint32_t)(first + k)) ^ (uint32_t)key) ^ (uint32_t)key_2);
        vf scaled = NAME(load_some)(from + k, count - k) * scale;
        vf kept = choose((vi)(drawn < (uint32_t)threshold), splat(0), scaled);
        NAME(store_some)(to + k, kept, count - k);
    }
}
