#!/usr/bin/env bash
# Builds what a GPU machine without Rust and without a network needs to check and measure Sconce there: the program, the
# test binaries with their fixtures, and a script that runs them. Needs no GPU itself.
#
#   cuda/scripts/bundle.sh [FOLDER]      default: target/cuda-bundle; prints the folder
#   there:  FOLDER/run [OUT]             results as JSON and logs in OUT (default: ./out)
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/target/cuda-bundle}
cd "$root"
CUDA_HOME=${CUDA_HOME:-$(cuda/scripts/toolkit.sh)}
export CUDA_HOME
target=${CARGO_TARGET_DIR:-target}

# The path of the one test binary that a cargo command builds.
built() {
    "$@" --no-run --message-format json-render-diagnostics | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
        print(message["executable"])'
}

cargo build --release --features cuda --bin sconce
kernels=$(built cargo test --release --package sconce-cuda --features driver --test kernels)
models=$(built cargo test --release --package sconce-models --features cuda --test gpu)

rm -rf "$folder"
mkdir -p "$folder"
for file in "$target/release/sconce:sconce" "$kernels:kernels-test" "$models:models-test"; do
    strip -o "$folder/${file#*:}" "${file%%:*}"
done
cp cuda/scripts/on-gpu.sh "$folder/run"
cp cuda/scripts/against_transformers.py "$folder/"
# Of the fixtures those that a GPU runs.
mkdir -p "$folder/fixtures"
cp -r models/tests/fixtures/. "$folder/fixtures/"
rm -rf "$folder/fixtures/embed" "$folder/fixtures/adapters" "$folder"/fixtures/*.py
git rev-parse HEAD >"$folder/commit"
tar -C "$folder" -czf "$folder.tar.gz" .
du -sh "$folder" "$folder.tar.gz" >&2
echo "$folder"
