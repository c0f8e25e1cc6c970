/* The CPU as a backend: picks a table, owns the thread team and each worker's scratch, and executes passes.
 *
 * A pass is one parallel region: every worker walks the list of ops, does its share of each, and meets the others at a
 * barrier before the next. The kernels decide the shares; nothing here depends on what an op does. */
#include "tensor/cpu/cpu.h"

#include "base/team.h"
#include "tensor/cpu/tables.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

struct cpu {
    struct backend backend; /* first, so that a backend is its cpu */
    const struct cpu_table *table;
    struct team *team;
    unsigned char *scratch;        /* CPU_SCRATCH per worker */
    struct worker_taken *taken[2]; /* [threads] for ops in turn */
};

const struct cpu_table *const *cpu_tables(void) {
    static const struct cpu_table *const tables[] = {
        &cpu_table_scalar,
#ifdef LOOPLM_HAVE_AVX2
        &cpu_table_avx2,
#endif
#ifdef LOOPLM_HAVE_AVX512
        &cpu_table_avx512,
#endif
#ifdef LOOPLM_HAVE_AVX512VNNI
        &cpu_table_avx512vnni,
#endif
#ifdef LOOPLM_HAVE_AVX512BF16
        &cpu_table_avx512bf16,
#endif
#ifdef LOOPLM_HAVE_AVX512AMX
        &cpu_table_avx512amx,
#endif
#ifdef LOOPLM_HAVE_NEON
        &cpu_table_neon,
#endif
#ifdef LOOPLM_HAVE_NEONDOT
        &cpu_table_neondot,
#endif
        NULL,
    };
    return tables;
}

void worker_share(const struct worker *worker, int64_t n, int64_t grain, int64_t *begin, int64_t *end) {
    team_share(n, grain, worker->index, worker->count, begin, end);
}

/* Takes one unit of the n that `taken` counts, from the front or the end: its index, or -1 when there is none. */
static int64_t take_one(struct worker_taken *taken, int64_t n, bool front) {
    uint64_t old = atomic_load_explicit(&taken->units, memory_order_relaxed);
    for (;;) {
        int64_t first = (int64_t)(uint32_t)old, last = n - 1 - (int64_t)(old >> 32);
        if (first > last) return -1;
        uint64_t next = old + (front ? 1 : (uint64_t)1 << 32);
        if (atomic_compare_exchange_weak_explicit(&taken->units, &old, next, memory_order_relaxed,
                                                  memory_order_relaxed))
            return front ? first : last;
    }
}

int64_t worker_take(const struct worker *worker, int64_t n) {
    for (int i = 0; i < worker->count; i++) {
        int owner = (worker->index + i) % worker->count;
        int64_t begin, end;
        team_share(n, 1, owner, worker->count, &begin, &end);
        int64_t unit = take_one(&worker->taken[owner], end - begin, i == 0);
        if (unit >= 0) return begin + unit;
    }
    return -1;
}

struct execution {
    const struct cpu *cpu;
    const struct pass *pass;
};

static void execute_worker(void *context, int index, int count) {
    const struct execution *execution = context;
    const struct cpu *cpu = execution->cpu;
    const struct pass *pass = execution->pass;
    struct worker worker = {index, count, cpu->scratch + (size_t)index * CPU_SCRATCH, NULL};
    for (int32_t i = 0; i < pass->count; i++) {
        const struct op *op = &pass->ops[i];
        worker.taken = cpu->taken[i % 2];
        /* Nobody is at the op before any more; the barrier below makes the zero known to the next. */
        atomic_store_explicit(&cpu->taken[(i + 1) % 2][index].units, 0, memory_order_relaxed);
        cpu->table->ops[op->kind](op, &worker);
        if (i + 1 < pass->count) team_barrier(cpu->team);
    }
}

static void cpu_execute(struct backend *backend, const struct pass *pass) {
    struct cpu *cpu = (struct cpu *)backend;
    struct execution execution = {cpu, pass};
    if (!pass->count) return;
    for (int i = 0; i < cpu->backend.threads; i++)
        atomic_store_explicit(&cpu->taken[0][i].units, 0, memory_order_relaxed);
    team_run(cpu->team, execute_worker, &execution);
}

static void *memory_alloc(size_t size) {
    size_t align = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    unsigned char *base = mmap(NULL, size + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    if (!align) return base;
    /* Huge pages need an aligned start: what sticks out at both ends is given back. */
    unsigned char *memory = (unsigned char *)(((uintptr_t)base + align - 1) & ~(uintptr_t)(align - 1));
    size_t page = 4096, end = (size + page - 1) & ~(page - 1);
    if (memory > base) munmap(base, (size_t)(memory - base));
    if (base + size + align > memory + end) munmap(memory + end, (size_t)(base + size + align - (memory + end)));
    madvise(memory, size, MADV_HUGEPAGE); /* only a wish: refused, the memory works the same */
    return memory;
}

static void *cpu_alloc(struct backend *backend, size_t size) {
    (void)backend;
    return memory_alloc(size ? size : 1);
}

static void cpu_release(struct backend *backend, void *memory, size_t size) {
    (void)backend;
    if (memory) munmap(memory, size ? size : 1);
}

static void cpu_close(struct backend *backend) {
    struct cpu *cpu = (struct cpu *)backend;
    if (!cpu) return;
    if (cpu->scratch) munmap(cpu->scratch, CPU_SCRATCH * (size_t)cpu->backend.threads);
    team_close(cpu->team);
    free(cpu->taken[0]);
    free(cpu->taken[1]);
    free(cpu);
}

/* The named table, or the last one that this processor supports; NULL with an error when there is none. */
static const struct cpu_table *table_find(const char *name, looplm_error *err) {
    const struct cpu_table *best = NULL;
    for (const struct cpu_table *const *t = cpu_tables(); *t; t++) {
        if (name && strcmp((*t)->name, name)) continue;
        if ((*t)->supported()) {
            best = *t;
        } else if (name) {
            error_set(err, LOOPLM_UNSUPPORTED,
                      "kernel table '%s': this processor lacks its instructions; choose another", name);
            return NULL;
        }
    }
    if (!best) error_set(err, LOOPLM_USAGE, "kernel table '%s' is not in this build; 'scalar' always is", name);
    return best;
}

int cpu_open(struct backend **backend, int n_threads, const char *table, looplm_error *err) {
    *backend = NULL;
    struct cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return error_set(err, LOOPLM_MEMORY, "no memory for the CPU backend");
    looplm_error local = {0};
    if (!err) err = &local;
    int status = (cpu->table = table_find(table, err)) ? 0 : (int)err->status;
    if (!status) status = team_open(&cpu->team, n_threads, err);
    if (!status) {
        cpu->backend = (struct backend){
            .name = "cpu",
            .table = cpu->table->name,
            .threads = team_size(cpu->team),
            .execute = cpu_execute,
            .alloc = cpu_alloc,
            .release = cpu_release,
            .close = cpu_close,
        };
        cpu->scratch = memory_alloc(CPU_SCRATCH * (size_t)cpu->backend.threads);
        for (int i = 0; i < 2; i++) {
            cpu->taken[i] =
                aligned_alloc(alignof(struct worker_taken), (size_t)cpu->backend.threads * sizeof *cpu->taken[i]);
        }
        if (!cpu->scratch || !cpu->taken[0] || !cpu->taken[1])
            status = error_set(err, LOOPLM_MEMORY, "no memory for the scratch of %d threads", cpu->backend.threads);
    }
    if (status) {
        cpu_close(&cpu->backend);
        return status;
    }
    *backend = &cpu->backend;
    return 0;
}
