#!/bin/sh
# Kills a training (SIGKILL) at random times, again and again: each time the checkpoint has to load, and
# each training that reaches its end has to end with the bytes of one that was never killed. Takes
# minutes, so it has a target of its own: make test-kill. Usage: tests/kill.sh build/clnet [KILLS]
set -u
clnet=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
kills=${2:-500}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0

"$clnet" synth --out data --train 6 --validation 2 --size 32 >/dev/null 2>&1
recipe="--model unet --width 1/32 --size 32 --batch 2 --epochs 40 --lr 1e-3 --device cpu"
"$clnet" train data $recipe --out straight >/dev/null 2>&1

# begin: a training of which one step is done.
begin() {
    rm -rf killed
    "$clnet" train data $recipe --out killed --stop-after 1 >/dev/null 2>&1
}

begin
ended=0 n=0
while [ $n -lt "$kills" ]; do
    "$clnet" train --resume killed --device cpu >/dev/null 2>error.log &
    pid=$!
    sleep "0.$(od -An -N1 -tu1 /dev/urandom | awk '{printf "%03d", 10 + $1 % 250}')"
    if kill -KILL $pid 2>/dev/null; then
        n=$((n + 1))
    fi
    wait $pid 2>/dev/null
    case $? in
    137) passed=$((passed + 1)) ;;
    0)
        ended=$((ended + 1))
        if cmp straight/last.safetensors killed/last.safetensors; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAIL training $ended ended with other bytes"
        fi
        begin
        ;;
    *)
        failed=$((failed + 1))
        echo "FAIL after kill $n: $(tail -n 1 error.log)"
        begin
        ;;
    esac
done
"$clnet" train --resume killed --device cpu >/dev/null 2>&1
if cmp straight/last.safetensors killed/last.safetensors; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
echo "$n kills, $((ended + 1)) trainings reached their end"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
