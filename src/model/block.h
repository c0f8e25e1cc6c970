/* One layer of the shared stack, recorded as ops: the sandwich block of Ouro, or a Llama / Qwen3 block (SPEC: x = x +
 * norm2(Attn(norm(x))); x = x + norm2(MLP(norm(x)))). */
#ifndef MODEL_BLOCK_H
#define MODEL_BLOCK_H

#include "model/model.h"

/* Copies of planes that rows of the pass are the first to read (op_qkv): each layer makes its own. */
struct owed_planes {
    const struct kv_lend *lends;
    int32_t n;
    double *seconds; /* [threads] */
};

/* The rows of a pass. */
struct rows {
    const struct run *runs;
    int32_t n_runs;
    int32_t count; /* B, the sum of the runs' counts */
    int32_t mute;  /* rows of the first `mute_runs` runs: only their keys and values are wanted */
    int32_t mute_runs;
    const real *rope; /* [B, K] cosines and sines of the rows' positions (op_rope_table) */
    struct owed_planes owed;
};

/* The buffers of one layer over B rows. Inference shares one set between all layers, with x2 == x; training gives each
 * layer its own, which is what the backward pass reads. Factors and statistics may be NULL in inference. */
struct layer_buffers {
    real *x;       /* [B, D] the residual stream that enters */
    real *n1, *r1; /* [B, D] normed, [B] its factor */
    real *qkv;     /* [B, (H + 2G) K] */
    real *qk_rstd; /* [B, H + G] with q/k norm */
    real *q;       /* [B, H K] rotated (in inference it may be qkv itself: ldq) */
    int64_t ldq;
    real *att, *lse; /* [B, H K], [B, H] */
    real *o, *r2;    /* [B, D] attention branch before its norm, [B] */
    real *x2;        /* [B, D] the stream between the branches */
    real *n2, *r3;   /* [B, D], [B] */
    real *gate_up;   /* [B, 2F] */
    real *act;       /* [B, F] */
    real *down, *r4; /* [B, D] MLP branch before its norm, [B] */
};

/* Records layer `index`; x_out [B, D] receives the stream that leaves (it may be b->x2), but not that of mute rows.
 * Keys and values go to the runs' blocks. */
void block_record(struct pass *pass, const struct model *model, const struct kv_geometry *kv, int32_t index,
                  const struct rows *rows, const struct layer_buffers *b, real *x_out);

#endif
