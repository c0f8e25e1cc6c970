"""An independent PyTorch twin of the looped model and of its objectives.

Owns the plain statement of the model (a shared stack of layers run R times), of forced depths under the last-exited
KV policy, of the stage I and stage II objectives and of the optimizer step, in float32 or float64. It is written to
be read beside the specification and to be differentiated by autograd; it is neither fast nor batched. Nothing here
is needed by the engine at run time.

Letters: n positions, R loops (r counts from 0), L layers, D hidden, H heads, G kv heads, K head dim, V vocabulary.

Invariants: a forward pass handles one sequence from position 0; loop r reads K and V of loop r, except that a
position which left at depth e <= r lends those of its last loop, e - 1; every row of exit probabilities sums to 1.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Config:
    """The facts of one model. The three flags are what separates the families."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    loops: int = 4
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    tied: bool = False
    branch_norms: bool = True  # the second norm of each sandwich, on the branch
    exit_gate: bool = True
    qk_norm: bool = False  # RMS norm of every query and key head, before the rotation

    @staticmethod
    def from_json(path: Path) -> "Config":
        """Reads a Hugging Face config.json of the families ouro, llama and qwen3."""
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        family = raw["model_type"]
        if family not in ("ouro", "llama", "qwen3"):
            raise ValueError(f"{path}: model_type is {family!r}, expected ouro, llama or qwen3")
        looped = family == "ouro"
        heads = raw["num_attention_heads"]
        theta = raw["rope_theta"] if "rope_theta" in raw else raw["rope_parameters"]["rope_theta"]
        return Config(
            vocab=raw["vocab_size"],
            hidden=raw["hidden_size"],
            ffn=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            loops=raw.get("total_ut_steps", 4) if looped else 1,
            rope_theta=float(theta),
            norm_eps=raw["rms_norm_eps"],
            tied=raw.get("tie_word_embeddings", False),
            branch_norms=looped,
            exit_gate=looped,
            qk_norm=family == "qwen3",
        )


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE in the rotate-half form on x [rows, heads, K]: component i is paired with i + K/2."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.to(torch.float64)[:, None, None] * frequency  # [rows, 1, K/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c.norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.norm_eps)

    def forward(self, x: Tensor, rows: Tensor, plane: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [m, D] is the input of the positions `rows` [m]; plane holds what every position kept, K and V [n, G, K].

        Returns the branch [m, D] and the plane in which the given rows are replaced by their new K and V: a
        position that is not among the rows lends what it kept, which is the whole of the last-exited policy.
        """
        c = self.c
        q = self.q_proj(x).view(-1, c.heads, c.head_dim)
        k = self.k_proj(x).view(-1, c.kv_heads, c.head_dim)
        v = self.v_proj(x).view(-1, c.kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rows, c.rope_theta), rotate(k, rows, c.rope_theta)
        keys, values = plane[0].index_copy(0, rows, k), plane[1].index_copy(0, rows, v)

        group = c.heads // c.kv_heads  # query head h reads kv head h // group
        q = q.view(-1, c.kv_heads, group, c.head_dim)
        score = torch.einsum("mgjk,ngk->gjmn", q, keys) / math.sqrt(c.head_dim)
        later = torch.arange(keys.shape[0]) > rows[:, None]  # [m, n]
        weight = score.masked_fill(later, -math.inf).softmax(-1)
        mixed = torch.einsum("gjmn,ngk->mgjk", weight, values)
        return self.o_proj(mixed.reshape(-1, c.heads * c.head_dim)), (keys, values)


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down_proj = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden, c.norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.norm_eps)
        self.branch_norms = c.branch_norms
        if c.branch_norms:
            self.input_layernorm_2 = RMSNorm(c.hidden, c.norm_eps)
            self.post_attention_layernorm_2 = RMSNorm(c.hidden, c.norm_eps)

    def forward(self, x: Tensor, rows: Tensor, plane: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        branch, plane = self.self_attn(self.input_layernorm(x), rows, plane)
        x = x + (self.input_layernorm_2(branch) if self.branch_norms else branch)
        branch = self.mlp(self.post_attention_layernorm(x))
        x = x + (self.post_attention_layernorm_2(branch) if self.branch_norms else branch)
        return x, plane


class Stack(nn.Module):
    """What the files call `model`: everything but the head."""

    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.norm_eps)
        if c.exit_gate:
            self.early_exit_gate = nn.Linear(c.hidden, 1)


@dataclass
class Output:
    """Every loop of one sequence. Rows that a forced depth skipped are zero, but for lam, which says nothing there."""

    logits: Tensor  # [R, n, V]
    hidden: Tensor  # [R, n, D], after the final norm
    gate: Tensor  # [R, n], the gate before its sigmoid
    lam: Tensor  # [R, n]
    p: Tensor  # [R, n], exit probabilities; the last loop of a position takes what is left
    depths: Tensor  # [n], in 1..R

    def ran(self) -> Tensor:
        """[R, n], true where loop r ran at the position."""
        return torch.arange(self.p.shape[0])[:, None] < self.depths


class Ouro(nn.Module):
    """The looped model; with one loop and no branch norms the same stack is a Llama or Qwen3 model."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)

    def head(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight)

    def forward(self, ids: Tensor, loops: int | None = None, depths: Tensor | None = None) -> Output:
        """Runs one sequence of ids [n]. depths [n] forces how many loops each position runs; none means all."""
        c, n = self.config, ids.shape[0]
        total = loops or c.loops
        depths = torch.full((n,), total) if depths is None else depths
        if int(depths.min()) < 1 or int(depths.max()) > total:
            raise ValueError(f"depths must lie in 1..{total}, found {depths.tolist()}")

        h = self.model.embed_tokens(ids)
        empty = h.new_zeros(n, c.kv_heads, c.head_dim)
        planes = [(empty, empty)] * c.layers
        logits, hidden, gate = [], [], []
        for r in range(total):
            rows = torch.nonzero(depths > r).flatten()
            x = h[rows]
            for layer, block in enumerate(self.model.layers):
                x, planes[layer] = block(x, rows, planes[layer])
            x = self.model.norm(x)
            h = torch.zeros_like(h).index_copy(0, rows, x)  # the normed state enters the next loop
            z = self.model.early_exit_gate(x).flatten() if c.exit_gate else x.new_zeros(len(rows))
            hidden.append(h)
            logits.append(h.new_zeros(n, c.vocab).index_copy(0, rows, self.head(x)))
            gate.append(h.new_zeros(n).index_copy(0, rows, z))
        gate = torch.stack(gate)
        lam = gate.sigmoid()
        return Output(torch.stack(logits), torch.stack(hidden), gate, lam, exit_distribution(lam, depths), depths)


def exit_distribution(lam: Tensor, depths: Tensor) -> Tensor:
    """p [R, n] from lambda [R, n]: p_r = lambda_r S, S *= 1 - lambda_r; the position's last loop takes all of S."""
    left, p = torch.ones_like(lam[0]), []
    for r in range(lam.shape[0]):
        p.append(torch.where(r < depths - 1, lam[r], 1.0) * left * (r < depths))
        left = left * (1 - lam[r])
    return torch.stack(p)


def loop_losses(out: Output, targets: Tensor) -> Tensor:
    """Cross-entropy [R, n] of each loop that ran; zero where the target is negative or the loop did not run."""
    ce = torch.stack([F.cross_entropy(x, targets.clamp(min=0), reduction="none") for x in out.logits])
    return ce * out.ran() * (targets >= 0)


def truncated_geometric(parameter: float, depths: Tensor, loops: int) -> Tensor:
    """Prior [R, n] over a position's own d loops: g (1 - g)^r / (1 - (1 - g)^d); one beyond them, so its log is 0."""
    r = torch.arange(loops, dtype=torch.float64)[:, None]
    prior = parameter * (1 - parameter) ** r / (1 - (1 - parameter) ** depths.to(torch.float64))
    return torch.where(r < depths, prior, 1.0)


def stage1_sum(out: Output, targets: Tensor, beta: float, geometric: float | None = None) -> Tensor:
    """The sum over valid tokens of sum_r p CE - beta H(p), or + beta KL(p || truncated geometric) when one is given.

    Divide by the number of valid tokens of the whole batch to have the loss.
    """
    ran = out.ran()
    log_p = torch.where(ran, out.p, 1.0).log()
    regular = (out.p * log_p).sum(0)  # -H(p)
    if geometric is not None:
        prior = truncated_geometric(geometric, out.depths, out.p.shape[0]).to(out.p.dtype)
        regular = regular - (out.p * prior.log()).sum(0)
    per_token = (out.p * loop_losses(out, targets)).sum(0) + beta * regular
    return (per_token * (targets >= 0)).sum()


def stage1(out: Output, targets: Tensor, beta: float, geometric: float | None = None) -> Tensor:
    """Stage I on one sequence: the mean over its valid tokens."""
    return stage1_sum(out, targets, beta, geometric) / (targets >= 0).sum()


def stage2(out: Output, targets: Tensor, sharpness: float = 50.0, threshold: float = 0.005) -> Tensor:
    """Stage II on one sequence at full depth: a target for continuing, from the improvement of each loop."""
    loops = out.p.shape[0]
    ce = loop_losses(out, targets).detach()
    loss = out.gate.new_zeros(())
    for r in range(1, loops):
        improvement = (ce[r - 1] - ce[r]).clamp(min=0)
        go_on = torch.sigmoid(sharpness * (improvement - threshold))
        per_token = -(go_on * F.logsigmoid(-out.gate[r]) + (1 - go_on) * F.logsigmoid(out.gate[r]))
        loss = loss + (per_token * (targets >= 0)).sum() / (targets >= 0).sum()
    return loss / loops


def next_tokens(ids: Tensor) -> Tensor:
    """Targets [n] of a sequence: the next token; the last position has none (-1)."""
    return torch.cat((ids[1:], ids.new_tensor([-1])))


class AdamW:
    """AdamW with decoupled decay on true matrices only and clipping by the global norm of all gradients."""

    def __init__(self, model: nn.Module, lr: float, betas=(0.9, 0.95), eps=1e-8, decay=0.1, clip=1.0):
        self.parameters = list(model.parameters())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.lr, self.betas, self.eps, self.decay, self.clip, self.count = lr, betas, eps, decay, clip, 0

    @torch.no_grad()
    def step(self) -> float:
        """Applies one step from the gradients, clears them, and returns their norm before clipping."""
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in self.parameters))
        scale = min(1.0, self.clip / norm) if norm > 0 else 1.0
        self.count += 1
        correct1, correct2 = (1 - b**self.count for b in self.betas)
        for p, m, v in zip(self.parameters, self.first, self.second):
            g = p.grad * scale
            m.mul_(self.betas[0]).add_(g, alpha=1 - self.betas[0])
            v.mul_(self.betas[1]).add_(g * g, alpha=1 - self.betas[1])
            if p.dim() == 2 and min(p.shape) > 1:
                p.mul_(1 - self.lr * self.decay)
            p.sub_(self.lr * (m / correct1) / ((v / correct2).sqrt() + self.eps))
            p.grad = None
        return norm
