#!/usr/bin/env bash
# Runs on a GPU machine, out of a bundle (bundle.sh): correctness first, then speed. Every part is limited in time and goes
# on when another failed; the exit status says whether all of correctness passed.
#
#   ./run [OUT]       SCONCE_GPU_PARTS="kernels models agreement start rates engine serve transformers sanitizer" chooses; default:
#                     all of these. "endurance" is ten minutes of mixed load under compute-sanitizer, for a run of its own.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
parts=${SCONCE_GPU_PARTS:-kernels models agreement start rates engine serve transformers sanitizer}
failed=0

# cuBLASLt and NCCL come with CUDA or with Python packages; their folders must be known to the loader.
known_to_loader() { # name, pattern of its file
    ldconfig -p | grep -q "$1" && return
    local found
    found=$(find / -name "$2" -not -path '/proc/*' 2>/dev/null | head -1)
    export LD_LIBRARY_PATH=$(dirname "${found:-/nowhere/x}"):${LD_LIBRARY_PATH:-}
}
known_to_loader libcublasLt.so 'libcublasLt.so.1[23]'
known_to_loader libcuda.so.1 libcuda.so.1
known_to_loader libnccl.so.2 libnccl.so.2

wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
part() { # name, seconds, command...
    local name=$1 limit=$2 started status
    shift 2
    started=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    printf '{"part": "%s", "status": %d, "seconds": %d}\n' "$name" "$status" $(($(date +%s) - started)) | tee -a "$out/parts.jsonl"
    [ "$status" = 0 ] || tail -15 "$out/$name.log"
    return "$status"
}

{
    cat "$here/commit" 2>/dev/null
    date -u +%FT%TZ
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    nproc
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

export SCONCE_TEST_CUDA=require SCONCE_TEST_FIXTURES=$here/fixtures RUST_BACKTRACE=0
wants kernels && { part kernels 240 "$here/kernels-test" --test-threads 1 || failed=1; }
wants models && { part models 300 "$here/models-test" --test-threads 1 || failed=1; }
# Where the machine has Transformers: answers beside its own, and further down its rate.
has_transformers() { python3 -c 'import torch, transformers, tokenizers' 2>/dev/null; }
beside="python3 $here/against_transformers.py"
has_transformers || echo "skipped: agreement, start and transformers, for want of torch, transformers and tokenizers in python3"
if wants agreement && has_transformers; then
    part agreement 300 $beside agreement --sconce "$here/sconce" --out "$out/agreement.json" || failed=1
    cat "$out/agreement.log"
fi
if wants start && has_transformers; then
    part start 240 $beside start --sconce "$here/sconce" --out "$out/start.json"
    cat "$out/start.log"
fi
wants rates && part rates 60 "$here/sconce" bench hardware --device cuda --json
wants rates && part speed 120 env SCONCE_TEST_SPEED=1 "$here/kernels-test" --test-threads 1 --nocapture attention_is_near
if wants engine; then
    # name, cases...
    engine() {
        local name=$1
        shift
        part "engine-$name" 120 "$here/sconce" bench engine "dummy:$name" --device cuda --runs 3 --output-json "$out/engine-$name.json" "$@"
        sed -n '/^case/,$p' "$out/engine-$name.log"
    }
    engine llama-3.2-1b pp4096 tg256 tg64@8000 32x128+256 256x128+128
    part engine-waiting 120 "$here/sconce" bench engine dummy:llama-3.2-1b --device cuda --runs 3 --no-async-scheduling \
        --output-json "$out/engine-waiting.json" tg256 32x128+256 256x128+128
    sed -n '/^case/,$p' "$out/engine-waiting.log"
    engine qwen3-0.6b pp4096 tg256 32x128+256 256x128+128
    engine llama-3.1-8b pp4096 tg128 64x128+128
    engine llama-3.1-8b:q8_0 pp4096 tg128 64x128+128
    engine llama-3.1-8b:q4_0 pp4096 tg128 64x128+128
fi
if wants serve; then
    # ready within a minute, then closed loops of 1, 32 and 256 clients
    "$here/sconce" serve dummy:llama-3.2-1b --device cuda --max-num-seqs 256 --port 18080 >"$out/serve-server.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        curl -fs -o /dev/null http://127.0.0.1:18080/ready && break
        sleep 0.2
    done
    for clients in 1 32 256; do
        requests=$((clients * 2))
        [ "$clients" = 1 ] && requests=4
        part "serve-$clients" 90 "$here/sconce" bench serve --url http://127.0.0.1:18080 --model dummy:llama-3.2-1b \
            --endpoint completions --concurrency "$clients" --num-prompts "$requests" --input-len 128 --output-len 256 \
            --ignore-eos --output-json "$out/serve-$clients.json"
        tail -30 "$out/serve-$clients.log"
    done
    kill -TERM "$server"
    wait "$server"
fi
if wants transformers && has_transformers; then
    part transformers 240 $beside rates --out "$out/transformers.json"
    cat "$out/transformers.log"
fi
if wants sanitizer && command -v compute-sanitizer >/dev/null; then
    part sanitizer 420 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/models-test" --test-threads 1 batches_of_every_size || failed=1
    part racecheck 300 compute-sanitizer --tool racecheck --error-exitcode 9 "$here/kernels-test" --test-threads 1 attention || failed=1
fi
if wants endurance && command -v compute-sanitizer >/dev/null; then
    compute-sanitizer --tool memcheck --error-exitcode 9 "$here/sconce" serve dummy:tiny --device cuda --port 18081 \
        >"$out/endurance-server.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        curl -fs -o /dev/null http://127.0.0.1:18081/ready && break
        sleep 0.2
    done
    mixed() { # clients, tokens in, tokens out
        "$here/sconce" bench serve --url http://127.0.0.1:18081 --model dummy:tiny --endpoint completions --ignore-eos \
            --concurrency "$1" --num-prompts $((4 * $1)) --input-len "$2" --output-len "$3" || return 1
    }
    until_end() {
        while [ "$SECONDS" -lt "$1" ]; do
            mixed 1 16 64 && mixed 8 100 32 && mixed 24 700 16 && mixed 4 1 100 || return 1
        done
    }
    export here
    export -f mixed until_end
    part endurance 600 bash -c "until_end ${SCONCE_GPU_ENDURANCE_S:-540}" || failed=1
    kill -TERM "$server"
    wait "$server" || { failed=1 && tail -15 "$out/endurance-server.log"; }
fi
cat "$out/parts.jsonl"
exit "$failed"
