/* Work shared by threads so that none waits for one that the system does not run.

   Work is a sequence of steps, each of them some items. A thread claims item by item: first those
   of its own share, which stay in its cache, then what is left of the others'. So a thread whose
   core runs another program costs the others its share of the work, and not their time: only an
   item that it has begun is waited for, for a moment spinning and then asleep, so that the
   system can move the late thread to the core that has become free. An item's result must not
   depend on which thread makes it. */
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LINE 64       /* bytes that cores hand to each other */
#define SPINS 128     /* pauses between two looks at whether another thread needs this core */
#define PATIENCE 16   /* such looks before going to sleep: about 50 microseconds */

typedef struct {
    _Atomic long claimed; /* of this share's items */
    char rest[LINE - sizeof(long)];
} Share;

typedef struct {
    long threads;
    Share *shares;        /* (steps, threads) */
    _Atomic int done;     /* items of all steps so far; a futex */
    _Atomic int sleeping; /* threads that wait for it */
} Work;

INLINE Work work_of(long threads, long steps) {
    return (Work){.threads = threads, .shares = calloc(steps * threads, sizeof(Share))};
}

/* The next of `count` items of a step for thread `me`, or -1. */
INLINE long claim(Work *work, long step, long count, long me) {
    for (long k = 0; k < work->threads; k++) {
        const long owner = (me + k) % work->threads;
        const long begin = part_of(count, owner, work->threads);
        const long size = part_of(count, owner + 1, work->threads) - begin;
        _Atomic long *claimed = &work->shares[step * work->threads + owner].claimed;
        if (atomic_load_explicit(claimed, memory_order_relaxed) >= size) continue;
        const long item = atomic_fetch_add_explicit(claimed, 1, memory_order_relaxed);
        if (item < size) return begin + item;
    }
    return -1;
}

/* One item is done; `last` is the number of items up to the end of its step. */
INLINE void finish(Work *work, long last) {
    if (atomic_fetch_add(&work->done, 1) + 1 == last && atomic_load(&work->sleeping))
        syscall(SYS_futex, &work->done, FUTEX_WAKE_PRIVATE, 1 << 30, 0, 0, 0);
}

/* Until so many items, those of all steps before, are done. */
INLINE void await(Work *work, long items) {
    for (long looks = 0; atomic_load_explicit(&work->done, memory_order_acquire) < items; looks++) {
        for (long k = 0; k < SPINS; k++) {
            if (atomic_load_explicit(&work->done, memory_order_acquire) >= items) return;
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
        }
        if (looks < PATIENCE) {
            sched_yield();
            continue;
        }
        atomic_fetch_add(&work->sleeping, 1);
        const int done = atomic_load(&work->done);
        if (done < items) syscall(SYS_futex, &work->done, FUTEX_WAIT_PRIVATE, done, 0, 0, 0);
        atomic_fetch_sub(&work->sleeping, 1);
    }
}
#undef LINE
#undef SPINS
#undef PATIENCE
