#!/bin/sh
# The program on an OpenCL device: every command that computes, the same bits from run to run, and
# trainings that move between the device and the CPU. Usage: tests/cl_commands.sh build/clnet
set -u
clnet=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
data=$(cd "$(dirname "$0")/data" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0

check() {
    text=$1
    shift
    if "$@" >check.log 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $text"
        tail -n 3 check.log
    fi
}

# refused TEXT WORDS COMMAND...: exit status 2, one line on standard error, which has WORDS.
refused() {
    text=$1 words=$2
    shift 2
    "$@" >out.log 2>err.log
    status=$?
    if [ $status = 2 ] && [ "$(wc -l <err.log)" = 1 ] && grep -q -e "$words" err.log; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $text: exit status $status, expected 2 and \"$words\" in one line"
        head -n 3 err.log
    fi
}

check "devices lists one" sh -c "'$clnet' devices | grep -q ^opencl:"
check "devices --json" sh -c "'$clnet' devices --json | grep -q '\"device\": \"opencl:'"

expected=$data/net_resnet50_unet.expected.safetensors
weights=$data/net_resnet50_unet.weights.safetensors
run="--model resnet50+unet --width 1/32 --weights $weights --input $expected --device opencl"
for n in 1 2; do
    check "run --train" "$clnet" run $run --train --steps 3 --output y$n --save-weights w$n
done
check "the same bits from run to run" cmp y1 y2
check "the same weights after three steps" cmp w1 w2
check "says what it ran on" grep -q '"device":"opencl' y1
"$clnet" run $run --train --profile --output y >profile 2>&1
check "--profile names kernels" grep -q "^conv2d_backward_weight  *[1-9]" profile
check "run --cam --dump" "$clnet" run $run --cam gradcam++ --layer fm3 --dump all --output y

"$clnet" synth --out data --train 8 --validation 4 --size 48 >/dev/null 2>&1
recipe="--width 1/32 --size 32x40 --batch 4 --epochs 2 --lr 1e-3"
check "train" "$clnet" train data $recipe --device opencl --out straight
check "train, stopped" "$clnet" train data $recipe --device opencl --out stopped --stop-after 3
check "train, resumed on the device" "$clnet" train --resume stopped --device opencl
check "as if it had not stopped" cmp straight/last.safetensors stopped/last.safetensors
check "from the device" "$clnet" train data $recipe --device opencl --out moved --stop-after 2
check "to the CPU" "$clnet" train --resume moved --device cpu --stop-after 1
check "and back" "$clnet" train --resume moved --device opencl
check "moved to the end" test "$(wc -l <moved/log.csv)" = 3
check "evaluate" "$clnet" evaluate data --weights straight/last.safetensors --device opencl --out e
check "predict" "$clnet" predict data/ISIC-2017_Validation_Data --weights straight/last.safetensors --device opencl
check "explain" "$clnet" explain data/ISIC-2017_Validation_Data --weights straight/last.safetensors \
    --device opencl --out x

refused "a device that is not there" "opencl:9.9" "$clnet" train data --device opencl:9.9 --out no
refused "what is no device" "warp" "$clnet" train data --device warp --out no
check "auto without OpenCL is the CPU" env OCL_ICD_VENDORS=/nowhere "$clnet" train data $recipe --epochs 1 --out auto
OCL_ICD_VENDORS=/nowhere refused "no OpenCL device" "OpenCL" "$clnet" train data --device opencl --out no

echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
