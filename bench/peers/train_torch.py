#!/usr/bin/env python3
"""The same training step in PyTorch: a peer for bench_train, as fast as PyTorch can be configured on a CPU.

Owns a batched looped model (SPEC 1), the stage I objective with a loss on every loop, AdamW, and a step on them. It
starts from a looplm model directory and reads its batches from an indexed data set in order, as `bench_train --model
DIR --ids PREFIX` does, so that losses, gradients and times can be laid side by side.

What is done for speed: q, k, v and gate, up are one matrix each; attention is scaled_dot_product_attention (the flash
kernel of the CPU); AdamW is the fused one; the head may take its gradient in the forward pass, chunk by chunk, so that
the logits of all loops never lie in memory (--head chunked; the same products, since p weighs the losses and is known
before the head); parts or all of it may go through torch.compile; a batch may be taken in parts (--micro).

Modes: by default --steps steps, one JSON line each, then a summary. --serve answers `step N` on stdin with the seconds
of N steps (compare.py). --check holds loss and gradients of the first batch against tools/twin.py in double.
--gradients FILE writes those of the first batch, named as in the model's file.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Config:
    def __init__(self, directory: Path):
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.vocab, self.hidden, self.ffn = raw["vocab_size"], raw["hidden_size"], raw["intermediate_size"]
        self.layers, self.heads, self.loops = raw["num_hidden_layers"], raw["num_attention_heads"], raw["total_ut_steps"]
        self.head_dim = raw.get("head_dim") or self.hidden // self.heads
        self.theta, self.eps = float(raw["rope_theta"]), raw["rms_norm_eps"]
        if raw.get("num_key_value_heads", self.heads) != self.heads or raw.get("tie_word_embeddings"):
            raise SystemExit(f"{directory}: this peer has neither grouped heads nor a tied head")


class Norm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., S, K], pairs i and i + K/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        heads = c.heads * c.head_dim
        self.qkv = nn.Linear(c.hidden, 3 * heads, bias=False)
        self.o = nn.Linear(heads, c.hidden, bias=False)
        self.gate_up = nn.Linear(c.hidden, 2 * c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)
        self.norms = nn.ModuleList(Norm(c.hidden, c.eps) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, n, 3, self.c.heads, self.c.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.norms[1](self.o(mixed.transpose(1, 2).reshape(batch, n, -1)))
        gate, up = self.gate_up(self.norms[2](x)).chunk(2, -1)
        return x + self.norms[3](self.down(F.silu(gate) * up))


class HeadLoss(torch.autograd.Function):
    """sum_i weight_i CE_i of rows h [B, D]; gradients are made in the forward pass, ROWS rows at a time."""

    ROWS = 1024

    @staticmethod
    def chunk(h: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, dmatrix: Tensor) -> tuple[Tensor, Tensor]:
        logits = h @ matrix.t()
        wide = logits.float()
        lse = wide.logsumexp(-1)
        ce = lse - wide.gather(1, targets[:, None])[:, 0]
        g = (wide - lse[:, None]).exp() * weight[:, None]
        g = g.scatter_add(1, targets[:, None], -weight[:, None]).to(matrix.dtype)
        dmatrix += (g.t() @ h).float()
        return ce, (g @ matrix).float()

    compute = chunk

    @staticmethod
    def forward(ctx, h, matrix, targets, weight, kind):
        dmatrix, dh, ce = torch.zeros_like(matrix), torch.empty_like(h), torch.empty_like(weight)
        cast, narrow = matrix.to(kind), h.to(kind)
        for i in range(0, h.shape[0], HeadLoss.ROWS):
            j = slice(i, i + HeadLoss.ROWS)
            ce[j], dh[j] = HeadLoss.compute(narrow[j], cast, targets[j], weight[j], dmatrix)
        ctx.save_for_backward(dh, dmatrix, ce)
        return (weight * ce).sum()

    @staticmethod
    def backward(ctx, grad):
        dh, dmatrix, ce = ctx.saved_tensors
        return dh.mul_(grad), dmatrix.mul_(grad), None, ce.mul_(grad), None


class Looped(nn.Module):
    def __init__(self, c: Config, options: argparse.Namespace):
        super().__init__()
        self.c, self.options = c, options
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = Norm(c.hidden, c.eps)
        self.gate = nn.Linear(c.hidden, 1)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        half = c.head_dim // 2
        frequency = c.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(options.positions, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())

    def states(self, ids: Tensor) -> list[Tensor]:
        """The normed hidden state [B, S, D] that each loop leaves."""
        x, out = self.embed(ids), []
        for _ in range(self.c.loops):
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            x = self.norm(x)
            out.append(x)
        return out

    def exits(self, states: list[Tensor]) -> Tensor:
        """ln p [R, B, S] of leaving after each loop, in f32."""
        left, out = torch.zeros_like(states[0][..., 0]), []
        for h in states[:-1]:
            z = (h * self.gate.weight[0]).sum(-1) + self.gate.bias
            out.append(left + F.logsigmoid(z))
            left = left + F.logsigmoid(-z)
        return torch.stack([*out, left])

    def losses(self, states: list[Tensor], targets: Tensor, p: Tensor) -> Tensor:
        """The sum of p CE over loops and tokens."""
        flat = targets.reshape(-1)
        if self.options.head == "chunked":
            kind = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
            rows = torch.stack(states).view(-1, self.c.hidden)
            return HeadLoss.apply(rows, self.head.weight, flat.repeat(len(states)), p.reshape(-1), kind)
        total = p.new_zeros(())
        for r, h in enumerate(states):
            ce = F.cross_entropy(self.head(h).flatten(0, 1), flat, reduction="none")
            total = total + (p[r].flatten() * ce).sum()
        return total

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The stage I loss, summed over tokens and divided by the step's tokens."""
        states = self.states(ids)
        log_p = self.exits(states)
        p = log_p.exp()
        loss = self.losses(states, targets, p) + self.options.beta * (p * log_p).sum()
        return loss / (self.options.batch * self.options.positions)


BLOCK_NORMS = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2")


def named_as_stored(c: Config, model: Looped, value) -> dict[str, Tensor]:
    """value(parameter) of every parameter, split and named as in the model's file."""
    out = {"model.embed_tokens.weight": value(model.embed.weight), "lm_head.weight": value(model.head.weight),
           "model.norm.weight": value(model.norm.weight), "model.early_exit_gate.weight": value(model.gate.weight),
           "model.early_exit_gate.bias": value(model.gate.bias)}
    for i, block in enumerate(model.blocks):
        at = f"model.layers.{i}"
        parts = dict(zip(("q_proj", "k_proj", "v_proj"), value(block.qkv.weight).chunk(3)))
        parts["o_proj"] = value(block.o.weight)
        out |= {f"{at}.self_attn.{name}.weight": part for name, part in parts.items()}
        gate, up = value(block.gate_up.weight).chunk(2)
        out |= {f"{at}.mlp.gate_proj.weight": gate, f"{at}.mlp.up_proj.weight": up,
                f"{at}.mlp.down_proj.weight": value(block.down.weight)}
        out |= {f"{at}.{name}.weight": value(norm.weight) for name, norm in zip(BLOCK_NORMS, block.norms)}
    return out


def load(c: Config, options: argparse.Namespace) -> Looped:
    from safetensors.torch import load_file

    model, stored = Looped(c, options), load_file(options.model / "model.safetensors")
    with torch.no_grad():
        for name, part in named_as_stored(c, model, lambda parameter: parameter).items():
            part.copy_(stored[name])
    return model


class Trainer:
    def __init__(self, options: argparse.Namespace):
        self.options, self.config = options, Config(options.model)
        self.model = load(self.config, options)
        self.ids = np.memmap(str(options.ids) + ".bin", dtype=np.uint16, mode="r")
        self.at = 0
        matrices = [p for p in self.model.parameters() if p.dim() == 2 and p.shape[0] > 1]
        others = [p for p in self.model.parameters() if not (p.dim() == 2 and p.shape[0] > 1)]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.compute = self.compiled()

    def compiled(self):
        mode = None if self.options.mode == "default" else self.options.mode
        if self.options.compile == "whole":
            return torch.compile(self.model, mode=mode, dynamic=False)
        if self.options.compile == "block":
            for block in self.model.blocks:
                block.compile(mode=mode, dynamic=False)
            HeadLoss.compute = staticmethod(torch.compile(HeadLoss.chunk, mode=mode, dynamic=False))
        return self.model

    def batch(self) -> tuple[Tensor, Tensor]:
        """Ids and the tokens that follow them, [B, S] each; batches follow each other in the data set."""
        o = self.options
        if (self.at + 1) * o.batch * o.positions + 1 > len(self.ids):
            self.at = 0
        first = self.at * o.batch * o.positions
        text = torch.from_numpy(self.ids[first : first + o.batch * o.positions + 1].astype(np.int64))
        self.at += 1
        return text[:-1].view(o.batch, o.positions), text[1:].view(o.batch, o.positions)

    def gradient(self) -> float:
        """Adds the gradient of the next batch; the loss."""
        ids, targets = self.batch()
        micro, loss = self.options.micro or self.options.batch, 0.0
        cast = torch.autocast("cpu", torch.bfloat16) if self.options.precision == "bf16" else contextlib.nullcontext()
        for i in range(0, self.options.batch, micro):
            with cast:
                part = self.compute(ids[i : i + micro], targets[i : i + micro])
            part.backward()
            loss += float(part.detach())
        return loss

    def step(self) -> tuple[float, float]:
        loss = self.gradient()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.options.keep_gradients)
        return loss, float(norm)


def check(trainer: Trainer) -> None:
    """Loss and gradients of the first batch against the independent twin, in double."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    import twin
    from safetensors.torch import load_file

    o, start = trainer.options, trainer.at
    reference = twin.Ouro(twin.Config.from_json(o.model / "config.json"))
    reference.load_state_dict(load_file(o.model / "model.safetensors"))
    reference.double()
    ids, targets = trainer.batch()
    valid = ids.numel()
    loss = sum(twin.stage1_sum(reference(row), target, o.beta) for row, target in zip(ids, targets)) / valid
    loss.backward()
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    trainer.at = start
    got_loss = trainer.gradient()
    got = named_as_stored(trainer.config, trainer.model, lambda parameter: parameter.grad)
    worst = max((float((got[n].double() - g).norm() / g.norm()), n) for n, g in wanted.items())
    print(f"loss {got_loss:.7f}, twin {float(loss.detach()):.7f}; {len(wanted)} gradients, "
          f"largest relative distance {worst[0]:.2e} ({worst[1]})")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(trainer: Trainer) -> None:
    trainer.step()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line.split()[1])):
            trainer.step()
        print(time.perf_counter() - start, flush=True)


def run(trainer: Trainer) -> None:
    times = []
    for i in range(trainer.options.steps):
        start = time.perf_counter()
        loss, norm = trainer.step()
        times.append(time.perf_counter() - start)
        print(json.dumps({"step": i + 1, "loss": round(loss, 7), "grad_norm": round(norm, 7),
                          "seconds": round(times[-1], 4)}), flush=True)
    tokens, warm = trainer.options.batch * trainer.options.positions, times[min(2, len(times) - 1) :]
    print(json.dumps({"tokens_per_s": round(tokens / statistics.median(warm), 1), "max_rss_mib": round(peak_mib(), 1)}))


def save_gradients(trainer: Trainer, path: Path) -> None:
    from safetensors.torch import save_file

    trainer.gradient()
    grads = named_as_stored(trainer.config, trainer.model, lambda parameter: parameter.grad)
    save_file({name: grad.contiguous() for name, grad in grads.items()}, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a looplm model directory")
    parser.add_argument("--ids", type=Path, required=True, help="PREFIX of an indexed data set")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--compile", choices=("off", "block", "whole"), default="off")
    parser.add_argument("--mode", default="default", help="of torch.compile: max-autotune, ...")
    parser.add_argument("--head", choices=("plain", "chunked"), default="plain")
    parser.add_argument("--rows", type=int, default=1024, help="rows of a chunk of the head")
    parser.add_argument("--micro", type=int, default=0, help="sequences at a time; 0: the whole batch")
    parser.add_argument("--keep-gradients", action="store_true", help="zero gradients instead of freeing them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--gradients", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    HeadLoss.ROWS = options.rows
    trainer = Trainer(options)
    if options.check:
        check(trainer)
    elif options.gradients:
        save_gradients(trainer, options.gradients)
    elif options.serve:
        serve(trainer)
    else:
        run(trainer)


if __name__ == "__main__":
    main()
