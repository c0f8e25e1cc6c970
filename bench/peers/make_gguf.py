#!/usr/bin/env python3
"""Writes a GGUF file of random weights: a dense llama whose layers have the shape of a looped model's.

With `--loops R` the shared stack is unrolled into R times as many layers of their own, which is how an engine
without loops has to hold the model. Blocks of quantised types are drawn directly: uniform codes and one scale, so that
the values have the deviation of --std. There is no tokenizer in the file. Needs NumPy and the package `gguf`.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path
from statistics import NormalDist

import gguf
import numpy as np

BLOCK = 32  # values of a quantised block
TYPES = {
    "q4": (gguf.GGMLQuantizationType.Q4_0, 18),
    "q8": (gguf.GGMLQuantizationType.Q8_0, 34),
    "bf16": (gguf.GGMLQuantizationType.BF16, 2 * BLOCK),
}


def random_blocks(kind: str, shape: tuple[int, int], std: float, name: str) -> np.ndarray:
    """The bytes [out, in / 32 * block] of one matrix; the same name gives the same bytes."""
    _, width = TYPES[kind]
    count = shape[0] * shape[1] // BLOCK
    bits = np.random.SFC64([1, zlib.crc32(name.encode())])
    raw = bits.random_raw((count * width + 7) // 8).view(np.uint8)[: count * width].reshape(count, width)
    if kind == "bf16":
        quantiles = np.array([NormalDist(0, std).inv_cdf((i + 0.5) / 4096) for i in range(4096)], np.float32)
        raw = (quantiles.view(np.uint32) >> 16).astype(np.uint16)[raw.view(np.uint16) & 4095].view(np.uint8)
    else:
        codes_std = {"q4": 4.6, "q8": 73.3}[kind]  # of uniform codes -8..7, -127..127
        raw[:, :2] = np.array([std / codes_std], np.float16).view(np.uint8)
        if kind == "q8":
            raw[:, 2:][raw[:, 2:] == 0x80] = 0x81  # -128 is no code of this type
    return raw.reshape(shape[0], -1)


def tensors(config: dict, layers: int) -> dict[str, tuple[int, ...]]:
    """Name to shape, [out, in] for matrices, in the order in which the layers run."""
    hidden, ffn, vocab, heads = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size",
                                                     "num_attention_heads"))
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    layer = {"attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
             "attn_output": (hidden, q), "ffn_norm": (hidden,), "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden),
             "ffn_down": (hidden, ffn)}
    table = {"token_embd.weight": (vocab, hidden)}
    for i in range(layers):
        table.update({f"blk.{i}.{name}.weight": shape for name, shape in layer.items()})
    return table | {"output_norm.weight": (hidden,), "output.weight": (vocab, hidden)}


def write(config: dict, loops: int, kind: str, head: str, std: float, out: Path) -> None:
    """`head` is the type of the embedding and the head, `kind` that of the layers."""
    layers, heads = loops * config["num_hidden_layers"], config["num_attention_heads"]
    table = tensors(config, layers)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config.get("max_position_embeddings", 65536))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    kinds = {name: kind if name.startswith("blk.") else head for name in table}
    for name, shape in table.items():
        ggml_type, width = TYPES[kinds[name]]
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            row = shape[1] // BLOCK * width
            writer.add_tensor_info(name, (shape[0], row), np.dtype(np.uint8), shape[0] * row, raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in table.items():
        writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else
                                 random_blocks(kinds[name], shape, std, name))
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.json, or the model directory")
    parser.add_argument("--loops", type=int, default=1, help="unroll this many loops (default %(default)s)")
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--head", choices=TYPES, help="type of the embedding and the head (default: that of --type; "
                                                      "looplm's q4 has them in q8)")
    parser.add_argument("--std", type=float, default=0.02, help="deviation of the values (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    path = args.config / "config.json" if args.config.is_dir() else args.config
    partial = args.out.with_suffix(".partial")
    try:
        write(json.loads(path.read_text(encoding="utf-8")), args.loops, args.type, args.head or args.type,
              args.std, partial)
        partial.replace(args.out)
    except (OSError, KeyError, ValueError) as error:
        print(f"make_gguf: {error!r}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.out.stat().st_size:,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
