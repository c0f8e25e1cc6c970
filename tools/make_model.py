#!/usr/bin/env python3
"""Writes a random model of a given config.json as a Hugging Face directory, fast and in little memory.

Owns the tensor table of the families ouro, llama and qwen3 as the tools need it, and the plain safetensors layout:
names in sorted order, no metadata, a header padded with spaces to eight bytes. Only NumPy is needed.

Values: matrices are normal with the config's initializer_range, drawn from a table of 65,536 normal quantiles by
random 16-bit indices; norms are one and the gate's bias is zero. Each tensor has its own generator, seeded by the
seed and its name, so that a value depends on neither the order nor the layout of the file.
"""

import argparse
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "ouro-1.4b" / "config.json"
DTYPES = {"bf16": ("BF16", "bfloat16"), "f16": ("F16", "float16"), "f32": ("F32", "float32")}
FAMILIES = ("ouro", "llama", "qwen3")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja")
CHUNK_VALUES = 1 << 22  # values made at a time; bounds the memory


def tensor_table(config: dict) -> dict[str, tuple[int, ...]]:
    """Name to shape, in sorted order; linear weights are [out, in]."""
    family = config["model_type"]
    if family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}, expected one of {', '.join(FAMILIES)}")
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q_width, kv_width = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim

    layer = {
        "self_attn.q_proj": (q_width, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, q_width),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    table = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if family == "ouro":
        layer["input_layernorm_2"] = layer["post_attention_layernorm_2"] = (hidden,)
        table["model.early_exit_gate.weight"] = (1, hidden)
        table["model.early_exit_gate.bias"] = (1,)
    if family == "qwen3":
        layer["self_attn.q_norm"] = layer["self_attn.k_norm"] = (head_dim,)
    if not config.get("tie_word_embeddings", False):
        table["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        table.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    return dict(sorted(table.items()))


def header_bytes(table: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """The safetensors header with its leading length."""
    width = 4 if dtype == "f32" else 2
    entries, offset = {}, 0
    for name, shape in table.items():
        end = offset + width * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in the file's type; bf16 (to nearest, ties to even) as its 16 bits. Values must be finite."""
    if dtype == "f32":
        return values.astype("<f4")
    if dtype == "f16":
        return values.astype("<f2")
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_tensor(out, name: str, shape: tuple[int, ...], quantiles: np.ndarray, dtype: str, seed: int) -> None:
    """Streams one tensor; quantiles is the table of 65,536 already encoded values."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(shape) == 1:
        constant = 0.0 if name.endswith(".bias") else 1.0
        out.write(encode(np.full(count, constant, np.float32), dtype).tobytes())
        return
    bits = np.random.SFC64([seed, zlib.crc32(name.encode())])
    while count > 0:
        n = min(count, CHUNK_VALUES)
        index = bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
        out.write(quantiles[index])
        count -= n


def write_model(config_path: Path, out: Path, dtype: str, seed: int, tokenizer: Path | None) -> int:
    """Writes config, weights and, if asked, tokenizer files; returns the size of the weight file."""
    config = json.loads(config_path.read_text(encoding="utf-8"))
    table = tensor_table(config)
    config["torch_dtype"] = DTYPES[dtype][1]
    std = config.get("initializer_range", 0.02)
    inverse = NormalDist(0.0, std).inv_cdf
    quantiles = encode(np.array([inverse((i + 0.5) / 65536) for i in range(65536)], np.float32), dtype)

    out.mkdir(parents=True, exist_ok=True)
    partial, weights = out / "model.safetensors.partial", out / "model.safetensors"
    with open(partial, "wb") as file:
        file.write(header_bytes(table, dtype))
        for name, shape in table.items():
            write_tensor(file, name, shape, quantiles, dtype, seed)
    os.replace(partial, weights)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, out / name)
    return weights.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a random model of a given config as a Hugging Face directory.")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="config.json (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, help="directory whose tokenizer files are copied")
    args = parser.parse_args()
    try:
        size = write_model(args.config, args.out, args.dtype, args.seed, args.tokenizer)
    except (OSError, ValueError, KeyError) as error:
        print(f"make_model: {error!r}", file=sys.stderr)
        return 1
    print(f"{args.out}/model.safetensors: {size:,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
