#!/usr/bin/env python3
"""Writes (or checks) the golden vectors of tests/golden, as docs/golden.md describes them.

Owns the cases, their random weights, and what each file holds; the model and the objectives are the twin's. Before
it writes, it holds the twin against Llama and Qwen3 of the transformers library (logits and gradients) and against
a token-by-token decode of its own forced depths.

Invariants: every value is computed in float64 from the weights as stored and then rounded to float32; random
numbers come from NumPy, so that the files do not depend on the version of PyTorch.
"""

import argparse
import json
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import make_model
from twin import AdamW, Config, Ouro, Output, loop_losses, next_tokens, stage1, stage1_sum, stage2

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "tests" / "golden"
POSITIONS = 11
BETA = 0.1
GEOMETRIC = 0.3  # parameter of the geometric prior
ADAM_STEPS, ADAM_LR = 10, 1e-3
CASE_BYTES_MAX = 250_000
PEER_TOLERANCE = 1e-5
CHECK_TOLERANCE = 1e-6
GATE = "model.early_exit_gate."
STORAGE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One directory. `parts` says what is written beyond the forward pass."""

    name: str
    config: dict
    parts: tuple[str, ...] = ()
    dtype: str = "f32"
    shards: int = 1
    seed: int = 1
    head_scale: float = 1.0  # of the final norm and the head; small gradients for small values


def ouro_config(
    hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, loops: int, theta: float, tied: bool
) -> dict:
    return {
        "architectures": ["OuroForCausalLM"],
        "model_type": "ouro",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 256,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "total_ut_steps": loops,
        "early_exit_threshold": 1.0,
        "vocab_size": vocab,
    }


def dense_config(family: str, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, tied: bool, **rope) -> dict:
    """A config as published files write it; rope is `rope_theta` or `rope_parameters`, the two spellings in use."""
    names = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    head_dim = {} if hidden == 16 * heads else {"head_dim": 16}  # the key may be missing where it says nothing
    return {
        "architectures": [names[family]],
        "model_type": family,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 256,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5 if family == "llama" else 1e-6,
        **rope,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": vocab,
    }


ROPE_V5 = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
# The seed and scale of the AdamW case: the norm crosses the clipping bound (5 of 10 steps are clipped), and no gradient
# is so near zero that float32 rounding would move its element's ten-step result by 1e-5 (2e-6 when tried).
CASES = (
    Case("ouro-mha-r4", ouro_config(32, 64, 2, 2, 67, 4, 1e4, False), ("stage1", "stage2", "prior", "depth")),
    Case("ouro-gqa-tied-r3", ouro_config(32, 64, 4, 2, 67, 3, 1e6, True), ("stage1", "stage2", "prior", "depth")),
    Case("ouro-r1", ouro_config(32, 64, 2, 2, 67, 1, 1e4, False), ("stage1", "stage2", "prior")),
    Case("ouro-r8", ouro_config(32, 64, 2, 1, 67, 8, 1e4, False), ("stage1", "stage2", "prior", "depth")),
    Case("ouro-depth-r4", ouro_config(32, 64, 2, 1, 67, 4, 1e4, False), ("depth", "depth-grads")),
    Case("ouro-adam-r3", ouro_config(32, 64, 2, 1, 67, 3, 1e4, False), ("adam",), seed=5, head_scale=0.4),
    Case("ouro-bf16", ouro_config(48, 96, 3, 3, 83, 4, 1e6, False), ("loss",), dtype="bf16"),
    Case("ouro-f16-sharded", ouro_config(48, 96, 3, 1, 83, 4, 1e6, False), ("loss",), dtype="f16", shards=3),
    Case("llama-gqa", dense_config("llama", 32, 64, 4, 2, 67, False, rope_theta=1e4), ("peer", "stage1")),
    Case("llama-theta", dense_config("llama", 32, 64, 2, 1, 67, False, **ROPE_V5), ("peer",)),
    Case("qwen3-tied", dense_config("qwen3", 32, 64, 4, 2, 131, True, rope_theta=1e6), ("peer", "stage1")),
)


def random_weights(case: Case, rng: np.random.Generator) -> dict[str, Tensor]:
    """Weights large enough that every tensor matters, in the type the file stores."""
    weights = {}
    for name, shape in make_model.tensor_table(case.config).items():
        normal = rng.standard_normal(shape)
        if name == GATE + "weight":
            value = 0.3 * normal
        elif name == GATE + "bias":
            value = -0.3 + 0.2 * normal
        elif "norm" in name:
            value = 1 + 0.2 * normal
        else:
            value = (0.3 if "embed" in name or "lm_head" in name else 0.2) * normal
        if name in ("model.norm.weight", "lm_head.weight"):
            value = case.head_scale * value
        weights[name] = torch.from_numpy(value).to(torch.float32).to(STORAGE[case.dtype])
    return weights


def random_depths(rng: np.random.Generator, loops: int) -> Tensor:
    """Depths [n] in which every value of 1..R that fits occurs."""
    depths = np.concatenate((np.arange(1, loops + 1), rng.integers(1, loops + 1, POSITIONS)))[:POSITIONS]
    return torch.from_numpy(rng.permutation(depths))


def build(config_path: Path, weights: dict[str, Tensor]) -> Ouro:
    """The twin in float64, with exactly these weights."""
    model = Ouro(Config.from_json(config_path)).double()
    model.load_state_dict({name: value.double() for name, value in weights.items()})
    return model


def gradients(model: Ouro, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter by name; zeros where the loss does not reach it."""
    names, parameters = zip(*model.named_parameters())
    if not loss.requires_grad:
        return {name: torch.zeros_like(p) for name, p in zip(names, parameters)}
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found)}


def prefixed(prefix: str, tensors: dict[str, Tensor], keep=lambda name, tensor: True) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in tensors.items() if keep(name, t)}


def only_gate(name: str, _tensor: Tensor) -> bool:
    return name.startswith(GATE)


def only_small(_name: str, tensor: Tensor) -> bool:
    """Norms and the gate: what is kept of the gradients where a case has no room for all."""
    return tensor.dim() == 1 or tensor.shape[0] == 1


def forward_part(out: Output, dense: bool) -> dict[str, Tensor]:
    part = {"logits": out.logits, "hidden": out.hidden}
    return part if dense else part | {"gate": out.lam, "exit": out.p}


def stage1_part(model: Ouro, ids: Tensor, dense: bool) -> dict[str, Tensor]:
    targets = next_tokens(ids)
    out = model(ids)
    loss = stage1(out, targets, BETA)
    part = {"stage1.loss": loss, "stage1.ce": loop_losses(out, targets)}
    part |= prefixed("stage1.grad.", gradients(model, loss))
    if dense:
        return part
    masked = targets.clone()
    masked[[0, 4, 5]] = -1
    loss = stage1(model(ids), masked, BETA)
    part |= {"masked.targets": masked, "masked.loss": loss}
    return part | prefixed("masked.grad.", gradients(model, loss), only_small)


def stage2_part(model: Ouro, ids: Tensor) -> dict[str, Tensor]:
    loss = stage2(model(ids), next_tokens(ids))
    return {"stage2.loss": loss} | prefixed("stage2.grad.", gradients(model, loss), only_gate)


def prior_part(model: Ouro, ids: Tensor) -> dict[str, Tensor]:
    loss = stage1(model(ids), next_tokens(ids), BETA, geometric=GEOMETRIC)
    return {"prior.loss": loss} | prefixed("prior.grad.", gradients(model, loss), only_gate)


def depth_part(model: Ouro, ids: Tensor, depths: Tensor, all_gradients: bool) -> dict[str, Tensor]:
    targets = next_tokens(ids)
    out = model(ids, depths=depths)
    check_against_decode(model, ids, depths, out)
    last = (depths - 1, torch.arange(len(ids)))
    loss = stage1(out, targets, BETA)
    part = {"depths": depths, "depth.logits": out.logits[last], "depth.hidden": out.hidden[last]}
    part |= {"depth.gate": out.lam * out.ran(), "depth.exit": out.p}
    part |= {"depth.loss": loss, "depth.ce": loop_losses(out, targets)}
    keep = (lambda name, tensor: True) if all_gradients else only_small
    part |= prefixed("depth.grad.", gradients(model, loss), keep)
    loss = stage1(model(ids, depths=depths), targets, BETA, geometric=GEOMETRIC)
    part |= {"depth.prior.loss": loss}
    return part | prefixed("depth.prior.grad.", gradients(model, loss), only_gate)


def adam_run(model: Ouro, ids: Tensor) -> tuple[list[float], list[float]]:
    """Ten steps on one batch of sequences ids [2, n], in the model's precision; changes the model."""
    optimizer = AdamW(model, ADAM_LR)
    valid = ids.shape[0] * (ids.shape[1] - 1)
    losses, norms = [], []
    for _ in range(ADAM_STEPS):
        loss = sum(stage1_sum(model(row), next_tokens(row), BETA) for row in ids) / valid
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(optimizer.step())
    return losses, norms


def adam_part(model: Ouro, ids: Tensor) -> dict[str, Tensor]:
    single = Ouro(model.config)
    single.load_state_dict(model.state_dict())
    losses, norms = adam_run(model, ids)
    final = {name: p.detach() for name, p in model.named_parameters()}
    adam_run(single, ids)
    noise = max(relative(p.detach(), final[name]) for name, p in single.named_parameters())
    print(f"  ten AdamW steps: gradient norms {min(norms):.3f}..{max(norms):.3f}, float32 against float64 {noise:.1e}")
    part = {"adam10.ids": ids, "adam10.loss": torch.tensor(losses), "adam10.grad_norm": torch.tensor(norms)}
    return part | prefixed("adam10.", final)


def relative(got: Tensor, want: Tensor) -> float:
    """max |a - b| / max |b|."""
    got, want = got.detach(), want.detach()
    scale = float(want.double().abs().max())
    error = float((got.double() - want.double()).abs().max())
    return error / scale if scale > 0 else error


def require(what: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise SystemExit(f"golden: {what} differ by {error:.3g}, at most {limit:g} allowed")


@torch.no_grad()
def check_against_decode(model: Ouro, ids: Tensor, depths: Tensor, out: Output) -> None:
    """Forced depths again, one position at a time, as a decoder would: a separate plane for every loop and layer."""
    c, loops = model.config, out.p.shape[0]
    empty = torch.zeros(len(ids), c.kv_heads, c.head_dim, dtype=torch.float64)
    planes = [[(empty, empty)] * c.layers for _ in range(loops)]
    for i, (token, depth) in enumerate(zip(ids, depths.tolist())):
        row = torch.tensor([i])
        h = model.model.embed_tokens(token[None])
        for r in range(depth):
            for layer, block in enumerate(model.model.layers):
                h, planes[r][layer] = block(h, row, planes[r][layer])
            h = model.model.norm(h)
            require(f"hidden states of position {i}, loop {r}", relative(h[0], out.hidden[r, i]), 1e-12)
        for r in range(depth, loops):
            for layer in range(c.layers):
                lent = planes[depth - 1][layer]
                planes[r][layer] = tuple(p.index_copy(0, row, q[row]) for p, q in zip(planes[r][layer], lent))


def peer_part(case: Case, weights: dict[str, Tensor], model: Ouro, ids: Tensor) -> dict[str, Tensor]:
    """Logits, hidden states, loss and gradients of the transformers library itself, with the twin held against them."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    make, config_of = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}[
        case.config["model_type"]
    ]
    peer = make(config_of(**case.config)).eval()
    missing = peer.load_state_dict(weights, strict=False)
    if set(missing.missing_keys) - {"lm_head.weight"} or missing.unexpected_keys:
        raise SystemExit(f"golden: {case.name}: the tensors of the twin and of transformers differ: {missing}")
    peer.tie_weights()
    result = peer(ids[None], labels=ids[None], output_hidden_states=True)
    result.loss.backward()
    part = {"logits": result.logits.detach(), "hidden": result.hidden_states[-1].detach()}

    out = model(ids)
    require(f"{case.name}: logits of transformers and the twin", relative(part["logits"], out.logits), PEER_TOLERANCE)
    require(f"{case.name}: hidden states", relative(part["hidden"], out.hidden), PEER_TOLERANCE)
    loss = stage1(out, next_tokens(ids), BETA)
    require(f"{case.name}: losses", relative(result.loss.detach(), loss.detach()), PEER_TOLERANCE)
    peers = dict(peer.named_parameters())
    for name, gradient in gradients(model, loss).items():
        require(f"{case.name}: gradients of {name}", relative(peers[name].grad, gradient), 10 * PEER_TOLERANCE)
    return part


def expected_values(case: Case, weights: dict[str, Tensor], config_path: Path, rng: np.random.Generator) -> dict:
    """Every tensor of expected.safetensors."""
    model = build(config_path, weights)
    vocab, dense = case.config["vocab_size"], case.config["model_type"] != "ouro"
    ids = torch.from_numpy(rng.integers(0, vocab, POSITIONS))
    out = model(ids)
    part = {"ids": ids} | forward_part(out, dense)
    if "peer" in case.parts:
        part |= peer_part(case, weights, model, ids)
    if "loss" in case.parts:
        part |= {"stage1.loss": stage1(out, next_tokens(ids), BETA)}
    if "stage1" in case.parts:
        part |= stage1_part(model, ids, dense)
    if "stage2" in case.parts:
        part |= stage2_part(model, ids)
    if "prior" in case.parts:
        part |= prior_part(model, ids)
    if "depth" in case.parts:
        part |= depth_part(model, ids, random_depths(rng, model.config.loops), "depth-grads" in case.parts)
    if not dense:
        print(f"  lambda {float(out.lam.detach().min()):.2f}..{float(out.lam.detach().max()):.2f}")
    if "adam" in case.parts:
        part |= adam_part(model, torch.from_numpy(rng.integers(0, vocab, (2, POSITIONS))))
    return {name: as_stored(value) for name, value in part.items()}


def as_stored(value: Tensor) -> Tensor:
    """float32 or int32, contiguous, scalars as [1]."""
    kind = torch.float32 if value.is_floating_point() else torch.int32
    return value.detach().to(kind).reshape(value.shape or (1,)).contiguous().clone()


def save_weights(case: Case, weights: dict[str, Tensor], folder: Path) -> None:
    if case.shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    placed, names = {}, sorted(weights)
    for i in range(case.shards):
        file = f"model-{i + 1:05d}-of-{case.shards:05d}.safetensors"
        shard = {name: weights[name] for name in names[i :: case.shards]}
        save_file(shard, folder / file)
        placed |= dict.fromkeys(shard, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_case(case: Case, root: Path) -> None:
    folder = root / case.name
    folder.mkdir(parents=True, exist_ok=True)
    print(case.name)
    rng = np.random.Generator(np.random.PCG64([case.seed, zlib.crc32(case.name.encode())]))
    config = case.config | {"torch_dtype": str(STORAGE[case.dtype]).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = random_weights(case, rng)
    save_weights(case, weights, folder)
    save_file(expected_values(case, weights, folder / "config.json", rng), folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > CASE_BYTES_MAX:
        raise SystemExit(f"golden: {folder} has {size} bytes, at most {CASE_BYTES_MAX} allowed")


def check(committed: Path, fresh: Path) -> None:
    """The committed files against fresh ones: the same names, and values within rounding."""
    for path in sorted(fresh.rglob("*")):
        other = committed / path.relative_to(fresh)
        if path.suffix == ".json" and path.read_text() != other.read_text():
            raise SystemExit(f"golden: {other} differs from what the script writes")
        if path.suffix == ".safetensors":
            want, got = load_file(path), load_file(other)
            if want.keys() != got.keys():
                raise SystemExit(f"golden: {other}: names differ: {sorted(want.keys() ^ got.keys())}")
            for name in want:
                require(f"{other}: {name}", relative(got[name], want[name]), CHECK_TOLERANCE)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the golden vectors.")
    parser.add_argument("--out", type=Path, default=GOLDEN_DIR, help="directory of the cases (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare --out with fresh values instead of writing it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if args.check else args.out
        for case in CASES:
            write_case(case, root)
        if args.check:
            check(args.out, root)
            print("the committed vectors agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
