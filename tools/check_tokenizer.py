#!/usr/bin/env python3
"""Compares `looplm tokenize` with PyPI's `tokenizers` on random Unicode, for the tokenizers of the fixtures, and
checks that a freshly trained tokenizer gives the same ids in both.

    python tools/check_tokenizer.py --program build/release/looplm --fixtures ../shared/fixtures [--megabytes 10]

Needs: pip install tokenizers. Exit status 0 when every id agrees.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

DOCUMENTS = 400
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
# Blocks whose assigned characters have not changed since Unicode 14; unassigned ones are left out, since versions of
# Unicode differ about them.
SCRIPTS = [(0x41, 0x7A), (0xC0, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x6FF),
           (0x900, 0x97F), (0xE01, 0xE5B), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1E00, 0x1EFF), (0x3041, 0x30FF),
           (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x10000, 0x1005D), (0x20000, 0x2A6D6)]
SIGNS = [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0xA1, 0xBF), (0x2010, 0x2027), (0x2030, 0x205E),
         (0x20A0, 0x20BF), (0x2190, 0x23FF), (0x2500, 0x27BF), (0xFF00, 0xFFEF)]
EMOJI = [(0x1F300, 0x1F64F), (0x1F680, 0x1F6D2), (0x1F900, 0x1F9FF), (0x200D, 0x200D), (0xFE0F, 0xFE0F)]
MARKS = [(0x300, 0x36F), (0x483, 0x489), (0x591, 0x5BD), (0x64B, 0x65F), (0x93A, 0x94F),
         (0x1AB0, 0x1ABD), (0x20D0, 0x20F0), (0x3099, 0x309A), (0xFE20, 0xFE2F)]
NUMBERS = [(0x30, 0x39), (0xB2, 0xB3), (0xB9, 0xB9), (0xBC, 0xBE), (0x660, 0x669), (0x966, 0x96F), (0x2070, 0x2079),
           (0x2150, 0x2188), (0x2460, 0x249B), (0x3007, 0x3007), (0x3021, 0x3029), (0x1D7CE, 0x1D7FF)]
SPACES = [0x20] * 12 + [0x0A] * 6 + [0x0D, 0x09, 0x0B, 0x0C, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
                                     0x202F, 0x205F, 0x3000, 0x180E, 0x200B, 0xFEFF]
CONTROL = [*range(0x00, 0x09), *range(0x0E, 0x20), 0x7F, *range(0x80, 0x85), *range(0x86, 0xA0)]
WORDS = ["the", "don't", "I'LL", "we'Ve", "it'\u017f", "''s", "'re", "don\u2019t", "123abc", "foo_bar()",
         "\r\n\r\n", "   ", "http://a.b/c?d=e", "A\u030a", "e\u0301", "\u1100\u1161\u11a8", "\u0041\u0327\u030a",
         "\U0001f468\u200d\U0001f469"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|im_start", "<filename>", "<|", "|>"]


def assigned(blocks):
    return [chr(c) for a, b in blocks for c in range(a, b + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


class Text:
    """A seeded source of documents that mix scripts in runs, as text does, with rare characters thrown in."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.scripts = [assigned([block]) for block in SCRIPTS]
        self.others = [assigned(SIGNS), assigned(EMOJI), assigned(MARKS), assigned(NUMBERS), [chr(c) for c in SPACES],
                       [chr(c) for c in CONTROL], WORDS, SPECIAL]
        self.weights = [14, 3, 4, 10, 30, 1, 8, 2]

    def piece(self):
        r = self.random
        if r.random() < 0.45:
            script = self.scripts[0] if r.random() < 0.4 else r.choice(self.scripts)
            return "".join(r.choices(script, k=1 + int(r.expovariate(0.2))))
        kind = r.choices(self.others, self.weights)[0]
        run = 1 + int(r.expovariate(1.5))
        return r.choice(kind) * run if r.random() < 0.3 else "".join(r.choices(kind, k=run))

    def document(self, size):
        parts, total = [], 0
        while total < size:
            parts.append(self.piece())
            total += len(parts[-1].encode())
        return "".join(parts)


def from_vocabulary(vocab, merges, special, nfc=False, qwen2=False):
    tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if qwen2:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def references(fixtures):
    """name -> (directory for looplm, tokenizer of the reference); those whose files are absent are left out."""
    def path(*parts):
        return os.path.join(fixtures, *parts)
    for name in ("ouro-1.4b", "smollm2"):
        if os.path.exists(path(name, "tokenizer.json")):
            yield name, path(name), Tokenizer.from_file(path(name, "tokenizer.json"))
    if os.path.exists(path("gpt2", "vocab.bpe")):
        yield "gpt2", path("gpt2"), from_vocabulary(path("gpt2", "encoder.json"), path("gpt2", "vocab.bpe"),
                                                    ["<|endoftext|>"])
    if os.path.exists(path("qwen2", "merges.txt")):
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        yield "qwen2", path("qwen2"), from_vocabulary(path("qwen2", "vocab.json"), path("qwen2", "merges.txt"), special,
                                                      nfc=True, qwen2=True)


def run(program, arguments, stdin=None):
    result = subprocess.run([program, *arguments], input=stdin, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"check_tokenizer: {program} {' '.join(arguments)}: status {result.returncode}: "
                 f"{result.stderr.decode()}")
    return result.stdout


def compare(program, name, model, reference, documents, source):
    start = time.time()
    lines = run(program, ["tokenize", model, source]).splitlines()
    ours_s = time.time() - start
    if len(lines) != len(documents):
        sys.exit(f"check_tokenizer: {name}: {len(lines)} documents, expected {len(documents)}")
    wrong = n_ids = 0
    texts = run(program, ["detokenize", model, "--json"], b"\n".join(lines)).splitlines()
    decoded = [json.loads(text) for text in texts]
    for number, (document, line) in enumerate(zip(documents, lines)):
        ours, theirs = json.loads(line), reference.encode(document).ids
        n_ids += len(ours)
        if ours != theirs:
            wrong += 1
            differ = (i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
            at = next(differ, min(len(ours), len(theirs)))
            if wrong <= 3:
                print(f"  document {number}, id {at}: ours {ours[at:at + 5]} theirs {theirs[at:at + 5]} "
                      f"{reference.decode(theirs[max(0, at - 4):at + 5], skip_special_tokens=False)!r}")
        elif decoded[number] != reference.decode(theirs, skip_special_tokens=False):
            wrong += 1
            print(f"  document {number}: decoded text differs")
    print(f"{name}: {len(documents)} documents, {n_ids} ids, {wrong} differ ({ours_s:.2f} s with loading)")
    return wrong


def check_trained(program, documents, source, directory):
    """A tokenizer trained here, loaded by the reference: same ids on text it was trained on."""
    run(program, ["tokenizer", "train", "--vocab-size", "4096", "-o", directory, source])
    reference = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    if reference.get_vocab_size() != 4096 or reference.token_to_id("<|im_end|>") != 2:
        print(f"trained: {reference.get_vocab_size()} ids in the reference, expected 4096 with <|im_end|> = 2")
        return 1
    wrong = compare(program, "trained", directory, reference, documents, source)
    everything = "".join(chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000)
    if reference.decode(reference.encode(everything).ids, skip_special_tokens=False) != everything:
        print("trained: not every byte has a token")
        wrong += 1
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--fixtures", default=None,
                        help="directory with ouro-1.4b, smollm2, gpt2, qwen2 (absent ones are skipped)")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    text = Text(options.seed)
    size = int(options.megabytes * 1e6 / DOCUMENTS)
    documents = [text.document(size) for _ in range(DOCUMENTS)]
    with tempfile.TemporaryDirectory() as scratch:
        source = os.path.join(scratch, "random.jsonl")
        with open(source, "w", encoding="utf-8") as out:
            for document in documents:
                out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
        wrong, names = 0, []
        for name, model, reference in references(options.fixtures or "/nonexistent"):
            wrong += compare(options.program, name, model, reference, documents, source)
            names.append(name)
        if not names:
            print("skipped: fixtures not found, only a trained tokenizer is compared")
        wrong += check_trained(options.program, documents, source, os.path.join(scratch, "trained"))
    sys.exit(1 if wrong else 0)


main()
