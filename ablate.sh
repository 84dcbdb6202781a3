#!/usr/bin/env bash
# The experiments of arXiv:2601.22532: one design choice of the baseline is changed at a time.
#
#   ./ablate.sh               the teaching selection (lines with a *): one tiny model and set
#   ./ablate.sh full          every line, on three tiny models x two tiny sets
#   ./ablate.sh RUNG ...      every line of these rungs, and the baseline
#   ./ablate.sh --list [full | RUNG ...]     print the commands, for GNU parallel or a Slurm array
#   PRESET=paper ./ablate.sh  the paper's; on 8 GPUs with PYTHON="torchrun --nproc_per_node=8"
#   PRESET=smollm2 ./ablate.sh               SmolLM2-135M-Instruct on tiny-sums, on a CPU
#
# Variables override the defaults: MODEL, DATA and SEEDS (lists, as in SEEDS="0 1"), ROUNDS, LR,
# JOBS (runs at a time), OUT (the folder), PYTHON, and FLAGS (added to every command). The same
# command again goes on where it was stopped. Then `python -m lab.report $OUT` writes the report.
set -aeuo pipefail  # -a, because infra/queue.py reads the variables
HERE=$PWD && cd "$(dirname "$0")"
ALWAYS=baseline  # the rung that comes with any other
if [ "${PRESET:-}" = paper ]; then
  : "${MODEL:=Qwen/Qwen2.5-0.5B-Instruct meta-llama/Llama-3.2-1B-Instruct \
allenai/OLMo-2-0425-1B-Instruct}" "${DATA:=gsm8k math}" "${LR:=1e-6}" "${ROUNDS:=1000}" "${JOBS:=1}"
  EVERY=100 RUNGS="baseline advantage rollouts batch split window"
elif [ "${PRESET:-}" = smollm2 ]; then
  : "${MODEL:=HuggingFaceTB/SmolLM2-135M-Instruct}" "${DATA:=tiny-sums}" "${LR:=2e-5}"
  ROUNDS=${ROUNDS:-12} ALWAYS='' RUNGS=laptop
  FLAGS="--levels 1 2 --temperature 0.5 --eval-temperature 0.5 --kl 0 --max-new-tokens 64 \
--eval-limit 48 --eval-samples 1 ${FLAGS:-}"
elif [[ " $* " == *" full "* ]]; then
  : "${MODEL:=tiny-qwen2 tiny-llama tiny-olmo2}" "${DATA:=tiny-gsm tiny-math}"
fi
# LR was tuned for 32x1, the rungs "rate" and "laptop" for each setting, on seeds never reported.
: "${MODEL:=tiny-qwen2}" "${DATA:=tiny-gsm}" "${LR:=1e-4}" "${ROUNDS:=60}"
[[ $ROUNDS =~ ^[1-9][0-9]{0,8}$ ]] || { echo "ablate.sh: ROUNDS=$ROUNDS: no number" >&2; exit 2; }
signs="--right-reward 1 --wrong-reward -1" one="--queries 1 --batch-size 1"
# A word in the first column begins a rung. Other lines: a mark, a name, the flags it changes.
#   *  part of the teaching selection
#   r  on real sets only: the tiny ones have too few queries for its batch
#   s  only if its rung is named, as PRESET=smollm2 does
#   =  not run, because by algebra it is the same as another setting
# "constant" subtracts a constant b from the reward; "sister" is arXiv:2601.14599 but for punish.
# flash is FlashREINFORCE (yifanzhang-pro). A new advantage needs no line here.
exec python3 -m infra.queue "$@" <<END
baseline
* 32x1
* 32x1-long     --rounds $((8 * ROUNDS)) --eval-every $ROUNDS
advantage
* 32x1+7        --advantage group --baseline-rollouts 7
rollouts
* 32x8          --advantage group --rollouts 8
  32x16         --advantage group --rollouts 16
  32x32         --advantage group --rollouts 32
  32x64         --advantage group --rollouts 64
batch
* 32x8          --advantage group --rollouts 8
  64x8          --advantage group --rollouts 8 --batch-size 64
  128x8         --advantage group --rollouts 8 --batch-size 128
split
  1x256         --advantage group --rollouts 256 --batch-size 1
  2x128         --advantage group --rollouts 128 --batch-size 2
* 4x64          --advantage group --rollouts 64 --batch-size 4
  8x32          --advantage group --rollouts 32 --batch-size 8
  16x16         --advantage group --rollouts 16 --batch-size 16
* 32x8          --advantage group --rollouts 8
  64x4          --advantage group --rollouts 4 --batch-size 64
  128x2         --advantage group --rollouts 2 --batch-size 128
* 256x1         --batch-size 256
window
* 64x4-window   --advantage window --window 8 --rollouts 4 --batch-size 64
  128x2-window  --advantage window --window 8 --rollouts 2 --batch-size 128
* 256x1-window  --advantage window --window 8 --batch-size 256
  512x1-window  --advantage window --window 8 --batch-size 512
  1024x1-window --advantage window --window 8 --batch-size 1024
r 2048x1-window --advantage window --window 8 --batch-size 2048
controls
* 32x8-raw      --rollouts 8
* 256x1-mean    --advantage batch-centered --batch-size 256
rate
  32x8@own         --lr 3e-4 --advantage group --rollouts 8
  32x8-raw@own     --lr 3e-4 --rollouts 8
  256x1@own        --lr 3e-4 --batch-size 256
  256x1@1e-3       --lr 1e-3 --batch-size 256
  256x1-mean@own   --lr 3e-4 --advantage batch-centered --batch-size 256
  256x1-window@own --lr 3e-4 --advantage window --window 8 --batch-size 256
  32x1-epochs8     --epochs-per-round 8
constant
  32x1-b-0.2    --right-reward 1.2 --wrong-reward 0.2
  32x1-b0.1     --right-reward 0.9 --wrong-reward -0.1
  32x1-b0.2     --right-reward 0.8 --wrong-reward -0.2
  32x1-b0.3     --right-reward 0.7 --wrong-reward -0.3
  32x1-b0.5     --right-reward 0.5 --wrong-reward -0.5
sister
* one-query         $one
  one-query+7       $one --advantage group --baseline-rollouts 7
  one-query-x8      $one --advantage group --rollouts 8
  one-query-punish  $one --wrong-reward -1
  one-query-easy    $one --levels 1
  one-query-hard    $one --levels 5
* punish            --wrong-reward -1
neighbours
  dr-grpo       --rollouts 8 --advantage group-centered --loss-mean constant
  rloo          --rollouts 8 --advantage rloo
  remax         --rollouts 8 --advantage remax
  maxrl         --rollouts 8 --advantage maxrl
  opo           --rollouts 8 --advantage opo
  least-var     --rollouts 8 --advantage least-variance
  batch-mean    --rollouts 8 --advantage batch-centered
  flash         --batch-size 256 --advantage batch-centered --loss-mean sequence
  reinforce++   --rollouts 8 --advantage reinforce++
  reinforce++-b --rollouts 8 --advantage reinforce++-baseline
  lite-ppo      --rollouts 8 --advantage lite-ppo
  raft          --rollouts 8 --advantage raft $signs
= psr           raft, by another name
= 32x8-window   32x8: a window of 8 that 8 rollouts fill is their group
  reinforce-rej --rollouts 8 --advantage reinforce-rej $signs
  nsr           --rollouts 8 --advantage nsr $signs
  w-reinforce   --rollouts 8 --advantage w-reinforce $signs
  group-mean    --rollouts 8 --advantage group-mean
  window-mean   --rollouts 4 --advantage window-mean --window 8
  sequence-mean --rollouts 8 --advantage group --loss-mean sequence
  constant-mean --rollouts 8 --advantage group --loss-mean constant
  kl-k1         --rollouts 8 --advantage group --kl 0.01 --kl-estimator k1
  kl-k2         --rollouts 8 --advantage group --kl 0.01 --kl-estimator k2
  kl-k3         --rollouts 8 --advantage group --kl 0.01 --kl-estimator k3
laptop
s 32x1          --rounds $((2 * ROUNDS))
s 64x1          --batch-size 64
s 64x1-mean     --batch-size 64 --advantage batch-centered
s 8x8-raw       --batch-size 8 --rollouts 8
s 8x8           --batch-size 8 --rollouts 8 --advantage group
s 8x1+7         --batch-size 8 --advantage group --baseline-rollouts 7
s 256x1         --batch-size 256 --lr 4e-5 --rounds $(((ROUNDS + 3) / 4))
END
