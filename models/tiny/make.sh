#!/bin/sh
# Makes models/tiny from nothing: books and generated problems, a tokenizer, the training run, the exit gate, the scores.
# Usage: models/tiny/make.sh BOOKS WORK [LOOPLM]     BOOKS holds the Project Gutenberg texts below; WORK is for data and runs.
set -eu
books=$1 work=$2 looplm=${3:-build/release/looplm}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"

# Public-domain books: file (plain or .gz), SHA-256 of the plain text, title.
cat >"$work/books" <<'LIST'
alice_11-0.txt 49a0b2726606e1290ac03a63978fa1dd1bd38a8d805704d98265f393533ea094 Alice's Adventures in Wonderland
sherlock_1661.txt 2a0ce5568625a304f54fbb6bfdeeadf527a1437254b5f0e06b5a9e233d4784a2 The Adventures of Sherlock Holmes
pride_1342-0.txt 48e0522844402a86a3ea98f0947ba85ea54838db3c59022299298ed968a5a163 Pride and Prejudice
great-expectations_1400-0.txt b58ce42c630e06314f2442d5937fa8a8556b6e3c5c16f4713c7332a4bb50b420 Great Expectations
frankenstein_84-0.txt c29a4f56dd91aa894a3f17d5f96b356ccb499e3e2c5a27964de911845e39efab Frankenstein
LIST

# The text between Gutenberg's marks, lines of a paragraph joined, plain quotes.
plain() {
    tr -d '\r' | awk '
        /^\*\*\* ?START OF/ { on = 1; next }
        /^\*\*\* ?END OF/ { on = 0 }
        !on { next }
        /^[ \t]*$/ { if (text != "") print text "\n"; text = ""; next }
        { sub(/^[ \t]+/, ""); text = text == "" ? $0 : text " " $0 }' |
        sed "s/[“”]/\"/g; s/[‘’]/'/g; s/_//g"
}

while read -r file sum title; do
    if [ -f "$books/$file" ]; then cat "$books/$file"; else gzip -dc "$books/$file.gz"; fi >"$work/$file.raw"
    found=$(sha256sum <"$work/$file.raw" | cut -d' ' -f1)
    if [ "$found" != "$sum" ]; then
        echo "$file ($title): SHA-256 is $found, expected $sum" >&2
        exit 1
    fi
    plain <"$work/$file.raw" >"$work/$file"
    rm "$work/$file.raw"
done <"$work/books"

# Problems: expressions of 1 to 4 operations modulo 3, and questions of 1 to 3 hops. The held-out ones (a hash of their text) are never trained on.
"$looplm" lab mano --generate "$work/mano.jsonl" --form answer --documents 1200000 --max-ops 4 --length-weights 2,4,4,3 --seed 11
"$looplm" lab hops --generate "$work/hops.jsonl" --form answer --documents 300000 --people 40 --relations 4 --max-hops 3 --hop-weights 3,3,2 --seed 12
"$looplm" lab mano --generate "$work/mano.txt.jsonl" --documents 2000 --problems 10 --max-ops 4 --seed 13
"$looplm" lab hops --generate "$work/hops.txt.jsonl" --documents 2000 --problems 10 --people 40 --relations 4 --max-hops 3 --seed 14
"$looplm" lab mano --generate "$work/mano-eval.jsonl" --form answer --held-out --documents 1000 --min-ops 3 --max-ops 4 --seed 15

"$looplm" tokenizer train --vocab-size 2048 -o "$work/tokenizer" "$work/alice_11-0.txt" "$work/sherlock_1661.txt" "$work/pride_1342-0.txt" \
    "$work/great-expectations_1400-0.txt" "$work/mano.txt.jsonl" "$work/hops.txt.jsonl"

cp "$here/train.yaml" "$here/gate.yaml" "$work/"
"$looplm" train "$work/train.yaml"
"$looplm" lab mano "$work/run/model" --problems 500 --seed 101 --plot "$work/stage1.svg" >"$work/stage1.txt"
"$looplm" gate "$work/gate.yaml"
"$looplm" lab mano "$work/gate/model" --problems 500 --seed 101 --plot "$work/stage2.svg" >"$work/stage2.txt"
"$looplm" lab hops "$work/gate/model" --problems 300 --seed 101 >"$work/hops.txt"
"$looplm" plot "$work/run" -o "$work/train.svg"

# What is shipped: the model after stage II, which leaves at q = 0.4 unless it is told otherwise, its logs and scores.
sed 's/"early_exit_threshold": 1.0/"early_exit_threshold": 0.4/' "$work/gate/model/config.json" >"$here/config.json"
cp "$work/gate/model/model.safetensors" "$work/gate/model/tokenizer.json" "$work/gate/model/tokenizer_config.json" "$here/"
printf '{\n  "do_sample": true,\n  "temperature": 0.8,\n  "top_p": 0.9,\n  "eos_token_id": 0\n}\n' >"$here/generation_config.json"
cp "$work/run/log.jsonl" "$here/train.log.jsonl"
cp "$work/gate/log.jsonl" "$here/gate.log.jsonl"
cp "$work/stage1.txt" "$work/stage2.txt" "$work/hops.txt" "$work/stage1.svg" "$work/stage2.svg" "$work/train.svg" "$here/"
