#!/usr/bin/env bash
# Instructions per message of the single-threaded rows, whatever else the machine does: callgrind's total for 2 M
# messages minus its total for M, over M. Usage: ./instr.sh [part of a row's name]
set -euo pipefail
cd "$(dirname "$0")"
M=${M:-10240}
count() { valgrind --tool=callgrind --callgrind-out-file=/dev/null ./target/release/peerbench --rounds 0 --messages "$2" --latency-messages "$2" --filter "$1" 2>&1 | awk '/Collected/ {print $4}'; }
rows=(
  "serde_json encode" "serde_json decode" "serde_json roundtrip" "Order::clone"
  "tokio mpsc Order x1 1thr w1024" "tokio mpsc json bytes x1 1thr"
  "tokio broadcast Order x3 1thr" "tokio broadcast Arc<Order> x3 1thr"
  "eventbus memory typed x1 1thr w1024" "eventbus memory typed x3 1thr"
  "eventbus memory typed keyed x1 1thr" "eventbus memory typed from_fn x1 1thr"
  "eventbus memory json x1 1thr" "eventbus memory raw bytes x1 1thr"
  "ruststream memory json x1 1thr w1024" "ruststream memory json x3 1thr w1024" "ruststream memory raw bytes x1 1thr"
  "ruststream memory json workers(4) 1thr" "ruststream memory json wildcard x1 1thr"
  "mq-bridge memory json x1 send 1thr w1024" "mq-bridge memory json x1 send_batch(128) 1thr"
  "omniqueue in_memory json x1 1thr w1024" "apalis MemoryStorage struct x1 1thr w1024"
)
for row in "${rows[@]}"; do
  [[ "$row" == *"${1:-}"* ]] || continue
  once=$(count "$row" "$M"); twice=$(count "$row" $((2 * M)))
  printf '%-52s %8d instr/msg\n' "$row" $(((twice - once) / M))
done
