#!/bin/sh
# Training as a user meets it: reproducible over threads, resumable after any kind of end, and careful
# with what is already there. Usage: tests/cli_train.sh build/clnet
set -u
. "$(dirname "$0")/checks.sh"
clnet=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
data=$(cd "$(dirname "$0")/data" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

"$clnet" synth --out data --train 10 --validation 4 --size 64 --seed 3 >/dev/null 2>&1 || {
    echo "FAIL synth"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
}
recipe="--model resnet50+unet --width 1/32 --size 32x40 --batch 4 --epochs 2 --lr 1e-3 --seed 5"

# The same bits for any number of threads: one step through `run`, and a whole training.
expected=$data/net_resnet50_unet.expected.safetensors
weights=$data/net_resnet50_unet.weights.safetensors
run="--model resnet50+unet --width 1/32 --weights $weights --input $expected --train"
for t in 1 2 3 8; do
    "$clnet" run $run --steps 2 --output run$t.safetensors --save-weights weights$t.safetensors --threads $t
    "$clnet" train data $recipe --out threads$t --threads $t >/dev/null 2>&1
done
for t in 2 3 8; do
    check "run --train: 1 and $t threads" cmp weights1.safetensors weights$t.safetensors
    check "train: 1 and $t threads" cmp threads1/last.safetensors threads$t/last.safetensors
done
check "best weights too" cmp threads1/best.safetensors threads8/best.safetensors
check "log has a row for each epoch" test "$(wc -l <threads1/log.csv)" = 3
check "curves were drawn" test -s threads1/curves.png

# Resume after every number of steps: 3 steps an epoch, 6 in all.
for n in 1 2 3 4 5; do
    "$clnet" train data $recipe --out stop$n --stop-after $n --threads 1 >/dev/null 2>&1
    check "resume after step $n" "$clnet" train --resume stop$n --threads 2
    check "as if it had not stopped after step $n" cmp threads1/last.safetensors stop$n/last.safetensors
done
check "log after resuming" sh -c 'cut -d, -f1-12 threads1/log.csv >a; cut -d, -f1-12 stop2/log.csv >b; cmp a b'

# Ctrl-C in the middle, and a kill that nothing can catch.
long="--model unet --width 1/16 --size 64 --batch 2 --epochs 12 --lr 1e-3"
"$clnet" train data $long --out straight --threads 2 >/dev/null 2>&1
for signal in INT TERM; do
    "$clnet" train data $long --out signal$signal --threads 2 >/dev/null 2>&1 &
    pid=$!
    # In the second of twelve epochs: far from the end.
    until [ "$(cat signal$signal/log.csv 2>/dev/null | wc -l)" -ge 2 ] || ! kill -0 $pid 2>/dev/null; do
        sleep 0.05
    done
    kill -$signal $pid 2>/dev/null
    wait $pid
    status=$?
    if [ $signal = INT ]; then expected_status=130; else expected_status=143; fi
    check "SIG$signal saves and exits with $expected_status (found $status)" \
        test $status = $expected_status
    check "SIG$signal ends the training before its end" test "$(wc -l <signal$signal/log.csv)" -lt 13
    "$clnet" train --resume signal$signal >/dev/null 2>&1
    check "SIG$signal and resume" cmp straight/last.safetensors signal$signal/last.safetensors
done
n=0
"$clnet" train data $long --out killed --threads 2 --stop-after 1 >/dev/null 2>&1
for pause in 0.05 0.1 0.2 0.3 0.15 0.25 0.4 0.35; do
    "$clnet" train --resume killed --threads 2 >/dev/null 2>&1 &
    pid=$!
    sleep $pause
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    n=$((n + 1))
done
check "resume after $n kills" "$clnet" train --resume killed
check "as if it had not been killed" cmp straight/last.safetensors killed/last.safetensors

# A full disk leaves the last good checkpoint. (A limit on the size of files stands in for it.)
"$clnet" train data $recipe --out full --stop-after 3 >/dev/null 2>&1
cp full/last.safetensors before.safetensors
(ulimit -f 64; "$clnet" train --resume full >full.log 2>&1)
status=$?
check "full disk: exit status 1, not $status" test $status = 1
check "full disk: names the file" grep -q "full/last.safetensors\|full/best.safetensors" full.log
check "full disk: the checkpoint stays" cmp before.safetensors full/last.safetensors
check "full disk: no temporary file stays" sh -c '! ls full/*.tmp 2>/dev/null'
"$clnet" train --resume full >/dev/null 2>&1
check "full disk: going on afterwards" cmp threads1/last.safetensors full/last.safetensors

# What does not fit is refused before anything is written.
refused "no data" "no data set given" "$clnet" train
refused "a missing folder" "nowhere" "$clnet" train nowhere
refused "an unknown option" "--epoch: unknown option" "$clnet" train data --epoch 3
refused "an unknown model" "resnet51" "$clnet" train data --model resnet51 --out new
refused "a bad number" "--epochs many" "$clnet" train data --epochs many
refused "a number out of range" "from 1 to" "$clnet" train data --batch 0
refused "a folder that holds a training" "holds a training already" "$clnet" train data $recipe --out threads1
refused "resuming nothing" "nothing/last.safetensors" "$clnet" train --resume nothing
refused "another batch" "--batch 8" "$clnet" train --resume threads1 --batch 8
refused "another learning rate" "--lr" "$clnet" train --resume threads1 --lr 0.5
refused "another output" "--out" "$clnet" train --resume threads1 --out other
refused "a batch of one value per channel" "batch norm" \
    "$clnet" train data --width 1/32 --size 32 --batch 3 --out single
cp -r data fewer
rm fewer/ISIC-2017_Training_Part1_GroundTruth/ISIC_0000002_segmentation.png
refused "another list of masks" "other images" "$clnet" train fewer --resume threads1
cp -r threads1 cut
head -c 5000 threads1/last.safetensors >cut/last.safetensors
refused "a cut checkpoint" "cut/last.safetensors" "$clnet" train --resume cut
cp weights1.safetensors cut/last.safetensors
refused "weights without a training" "not the checkpoint" "$clnet" train --resume cut
refused "a file in the way" "threads1/log.csv" "$clnet" train data --out threads1/log.csv
check "nothing was made for refused trainings" test ! -e new

# Wrong input to `run`.
refused "run: a missing option" "--weights is missing" "$clnet" run --model unet
refused "run: weights of another network" "missing" \
    "$clnet" run --model unet --width 1/32 --weights "$weights" --input "$expected" --output y
refused "run: weights of another width" "mis-shaped" \
    "$clnet" run --model resnet50+unet --width 1/16 --weights "$weights" --input "$expected" --output y
refused "run: an input that is none" "cli_train" \
    "$clnet" run --model unet --width 1/32 --weights "$weights" --input "$0" --output y
refused "run: an unknown activation" "no such activation" \
    "$clnet" run --model resnet50+unet --width 1/32 --weights "$weights" --input "$expected" --output y --dump layer9
check "run: --dump, --cam" "$clnet" run --model resnet50+unet --width 1/32 --weights "$weights" \
    --input "$expected" --output y --dump cls.layer1,fuse.0,dec.head --cam gradcam++ --layer fm3 --reference

finish
