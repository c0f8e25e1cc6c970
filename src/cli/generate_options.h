/* Options shared by the commands that generate (DESIGN: a contract), and how they become the library's. */
#ifndef CLI_GENERATE_OPTIONS_H
#define CLI_GENERATE_OPTIONS_H

#include "cli/command.h"
#include "looplm.h"

#define GENERATE_OPTIONS(X)                                                                                            \
    X(INT, tokens, "tokens", 'n', 256, 1, 1 << 20, "N", "generate at most N tokens")                                   \
    X(TEXT, exit, "exit", 0, NULL, "RULE",                                                                             \
      "when a token leaves the loop: full, loops=N, q=Q, diff=E, conf=P or mix, each with ,min=A,max=B (default: as "  \
      "the config says)")                                                                                              \
    X(CHOICE, kv, "kv", 0, "last-exited", "last-exited|full|shared-last|shared-mean|shared-first",                     \
      "what fills the deeper KV planes of a token that left early")                                                    \
    X(CHOICE, speculate, "speculate", 0, "off", "off|wavefront",                                                       \
      "rows still on their way propose the next token, which follows them one loop behind; the output is the same")    \
    X(CHOICE, kv_type, "kv-type", 0, "auto", "auto|f32|bf16|q8", "the type of keys and values in the cache")           \
    X(CHOICE, weights, "weights", 0, "auto", "auto|f32|bf16|q8|q4", "the type of the weights in memory")               \
    X(CHOICE, device, "device", 0, "auto", "auto|cpu", "where to compute")                                             \
    X(INT, threads, "threads", 0, 0, 0, 1024, "N", "threads; 0 means one per processor")                               \
    X(INT, context, "context", 0, 0, 0, 1 << 24, "N",                                                                  \
      "positions at most; 0 means 4096, or the model's own where less")                                                \
    X(FLAG, adaptive_prompt, "adaptive-prompt", 0, "let prompt tokens leave early too")                                \
    X(INT, seed, "seed", 0, 0, 0, INT64_MAX, "S", "seed of the sampling noise")                                        \
    X(REAL, temperature, "temperature", 0, 1.0, 0.0, 100.0, "T",                                                       \
      "0 is greedy; when not given, generation_config.json decides")                                                   \
    X(REAL, top_p, "top-p", 0, 1.0, 0.0, 1.0, "P",                                                                     \
      "sample from the likeliest tokens that hold this probability; 1 is off; when not given, generation_config.json " \
      "decides")                                                                                                       \
    X(INT, top_k, "top-k", 0, 0, 0, 1 << 24, "K",                                                                      \
      "sample from the K likeliest tokens; 0 is off; when not given, generation_config.json decides")                  \
    X(REAL, min_p, "min-p", 0, 0.0, 0.0, 1.0, "P", "drop tokens below this share of the likeliest one's probability")  \
    X(REAL, repetition_penalty, "repetition-penalty", 0, 1.0, 0.01, 100.0, "X",                                        \
      "divide the logits of tokens seen before; 1 is off")                                                             \
    X(LIST, stop, "stop", 0, "TEXT", "stop before this text (may be repeated)")

#endif
