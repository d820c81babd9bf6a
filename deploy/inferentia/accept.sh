#!/usr/bin/env bash
# Ten minutes on an inf2.xlarge (or any machine with Neuron cores): does Sconce run, watch and end a worker there?
#
# Run it on the instance, with the Neuron SDK and an engine installed (optimum-neuron with vLLM, or vllm-neuron) and the
# engine's virtual environment active:
#
#   deploy/inferentia/accept.sh --sconce target/release/sconce
#
# It writes a report in Markdown (--report, default ./inferentia-report.md) and ends with 0 when every step passed.
# It changes nothing on the machine but a cache folder (--cache), and ends everything that it starts. Needs bash, curl,
# grep and sed. Every step can be tried without hardware: --command 'JSON array' replaces the engine, --device '' the cores.
set -uo pipefail

sconce=sconce
model=aws-neuron/Llama-3.2-1B-Instruct
engine=optimum-neuron
device=neuron:0-1
command_line=
arguments=
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sconce-acceptance
report=inferentia-report.md
ready_s=3000
declare -i failures=0 steps=0

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    echo "options: --sconce PROGRAM --model NAME --engine NAME --args 'JSON array' --command 'JSON array'"
    echo "         --device neuron:CORES --cache FOLDER --report FILE --ready-s SECONDS"
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --sconce | --model | --engine | --args | --command | --device | --cache | --report | --ready-s)
            [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            case $1 in
                --sconce) sconce=$2 ;;
                --model) model=$2 ;;
                --engine) engine=$2 ;;
                --args) arguments=$2 ;;
                --command) command_line=$2 ;;
                --device) device=$2 ;;
                --cache) cache=$2 ;;
                --report) report=$2 ;;
                --ready-s) ready_s=$2 ;;
            esac
            shift 2
            ;;
        *) echo "error: $1 is not known; --help shows the options" >&2; exit 2 ;;
    esac
done

command -v "$sconce" > /dev/null || { echo "error: $sconce is not there; build it, and give --sconce PROGRAM" >&2; exit 2; }
sconce=$(command -v "$sconce")
work=$(mktemp -d)
log=$work/server.log
server=

end_server() {
    [ -n "$server" ] && kill -KILL "$server" 2> /dev/null
    wait "$server" 2> /dev/null
    server=
}
trap 'end_server; rm -rf "$work"' EXIT

say() { printf '%s\n' "$*" | tee -a "$report"; }
step() { # NAME STATUS DETAIL
    steps+=1
    if [ "$2" -eq 0 ]; then say "| $1 | pass | $3 |"; else failures+=1; say "| $1 | **FAIL** | $3 |"; fi
}
block() { # TITLE, text on stdin
    { printf '\n### %s\n\n```\n' "$1"; cat; printf '```\n'; } >> "$report"
}
now_ms() { date +%s%3N; }
seconds() { printf '%d.%03d s' $(($1 / 1000)) $(($1 % 1000)); }
url() { sed -n 's/.*ready on \(http:[^ ]*\) .*/\1/p' "$work/banner" | head -1; }
# Whatever has the worker's folder open or on its command line: engine, guard and children.
left() { grep -lsF "SCONCE_ACCEPTANCE=$work" /proc/[0-9]*/environ 2> /dev/null | grep -vc "/proc/$$/" ; }
# The state that the server tells of its worker.
state() { curl -sf -m 5 "$base/metrics" | sed -n 's/^sconce_worker_state{.*state="\([a-z]*\)"} 1$/\1/p'; }

quoted() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }
{
    echo '[[member]]'
    echo 'name = "neuron"'
    echo 'kind = "worker"'
    echo "model = $(quoted "$model")"
    echo "cache = $(quoted "$cache")"
    if [ -n "$command_line" ]; then echo "command = $command_line"; else echo "engine = $(quoted "$engine")"; fi
    [ -n "$arguments" ] && echo "args = $arguments"
    [ -n "$device" ] && echo "device = $(quoted "$device")"
    echo "ready_timeout_s = $ready_s"
    echo "env = { SCONCE_ACCEPTANCE = $(quoted "$work") }"
    echo '[[route]]'
    echo 'name = "accept"'
    echo 'members = ["neuron"]'
    echo '[ledger]'
    echo 'file = "off"'
} > "$work/sconce.toml"

begin() { # starts the server and waits for its address
    : > "$work/banner"
    "$sconce" serve --config "$work/sconce.toml" --port 0 --responses-store off --files-dir off > "$work/banner" 2>> "$log" &
    server=$!
    for _ in $(seq 300); do
        base=$(url)
        [ -n "$base" ] && return 0
        kill -0 "$server" 2> /dev/null || return 1
        sleep 0.1
    done
    return 1
}
until_ready() { # prints the states that were seen, in their order
    local seen='' last='' current deadline=$(($(date +%s) + ready_s + 60))
    while [ "$(date +%s)" -lt "$deadline" ]; do
        current=$(state)
        [ "$current" != "$last" ] && [ -n "$current" ] && seen="$seen${seen:+ -> }$current"
        last=$current
        [ "$current" = ready ] && { echo "$seen"; return 0; }
        [ "$current" = failed ] && { echo "$seen"; return 1; }
        sleep 0.2
    done
    echo "$seen, and not ready in time"
    return 1
}
ask() { # FILE STREAM
    curl -sS -m 300 -o "$1" -w '%{http_code} %{time_starttransfer} %{time_total}' "$base/v1/chat/completions" \
        -H 'Content-Type: application/json' -d "{\"model\": \"accept\", \"max_tokens\": 64, \"stream\": $2,
        \"messages\": [{\"role\": \"user\", \"content\": \"Name three rivers of Europe.\"}]}"
}

: > "$report"
say "# Sconce on Neuron: acceptance"
say ""
say "- date: $(date -u +%Y-%m-%dT%H:%M:%SZ)"
say "- sconce: $("$sconce" --version)"
say "- model: $model; engine: ${command_line:-$engine}; device: ${device:-none}"
token=$(curl -s -m 1 -X PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' 2> /dev/null)
instance=$(curl -sf -m 1 -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/instance-type 2> /dev/null)
say "- instance: ${instance:-unknown (no EC2 metadata)}"
say "- kernel: $(uname -sr); driver: $(cat /sys/module/neuron/version 2> /dev/null || echo 'not loaded')"
devices=$(compgen -G '/dev/neuron[0-9]*' | wc -l)
say "- devices: $devices in /dev"
if [ -z "$device" ] || [ "$devices" -eq 0 ]; then say "- **no Neuron hardware was used**: this report says nothing about Neuron"; fi
say ""
say "| step | result | detail |"
say "|---|---|---|"

"$sconce" check "$work/sconce.toml" > "$work/check" 2>&1
step "configuration" $? "sconce check"

started=$(now_ms)
begin
step "server starts" $? "${base:-no address}"
seen=$(until_ready)
step "worker becomes ready" $? "$seen, $(seconds $(($(now_ms) - started)))"

answer=$(ask "$work/answer.json" false)
[ "${answer%% *}" = 200 ] && grep -q '"content"' "$work/answer.json"
step "an answer" $? "status, first byte, whole in s: $answer"
answer=$(ask "$work/answer.sse" true)
[ "${answer%% *}" = 200 ] && grep -q 'data: \[DONE\]' "$work/answer.sse"
step "a streamed answer" $? "$answer"
started=$(now_ms)
clients=()
for client in 1 2 3 4; do
    ask "$work/client-$client.json" false > "$work/client-$client.times" &
    clients+=($!)
done
wait "${clients[@]}"
[ "$(cat "$work"/client-*.times | grep -o '\b200 ' | wc -l)" -eq 4 ]
tokens=$(cat "$work"/client-*.json | grep -o '"completion_tokens": *[0-9]*' | grep -o '[0-9]*$' | paste -sd+ | sed 's/^$/0/')
step "four answers at once" $? "$((tokens)) tokens in $(seconds $(($(now_ms) - started)))"

sleep 6 # neuron-monitor reports every five seconds
curl -sf "$base/metrics" | grep -E '^sconce_(worker|neuron)_' > "$work/metrics"
step "metrics of the worker" $? "$(grep -c . "$work/metrics") series"
if [ -n "$device" ] && [ "$devices" -gt 0 ]; then
    grep -q '^sconce_neuron_core_utilisation' "$work/metrics"
    step "metrics of the cores" $? "from neuron-monitor"
fi

before=$(left)
kill -KILL "$server"
wait "$server" 2> /dev/null
server=
for _ in $(seq 100); do [ "$(left)" -eq 0 ] && break; sleep 0.1; done
[ "$before" -gt 0 ] && [ "$(left)" -eq 0 ]
step "nothing outlives a killed server" $? "$before processes before, $(left) after"

started=$(now_ms)
begin && seen=$(until_ready)
step "starts again with a warm cache" $? "$seen, $(seconds $(($(now_ms) - started)))"
if [ -n "$server" ]; then
    kill -TERM "$server"
    wait "$server"
    code=$?
    server=
    [ "$code" -eq 0 ] && [ "$(left)" -eq 0 ]
    step "ends when asked" $? "exit code $code, $(left) processes left"
fi

say ""
say "$((steps - failures)) of $steps steps passed."
block "Configuration" < "$work/sconce.toml"
block "sconce check" < "$work/check"
block "Metrics" < "$work/metrics"
if command -v neuron-ls > /dev/null; then
    { neuron-ls --output-format json 2> /dev/null || neuron-ls -j 2>&1; } | block "neuron-ls"
fi
tail -200 "$log" | block "The server's log (the last 200 lines)"
echo "the report is in $report"
[ "$failures" -eq 0 ]
