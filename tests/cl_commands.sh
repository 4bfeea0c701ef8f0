#!/bin/sh
# The program on an OpenCL device: every command that computes, the same bits from run to run, and
# trainings that move between the device and the CPU. Usage: tests/cl_commands.sh build/clnet
set -u
. "$(dirname "$0")/checks.sh"
clnet=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
here=$(cd "$(dirname "$0")" && pwd)
data=$here/data
verify=$clnet-verify
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

# breaks TEXT WORDS COMMAND...: exit status 1, and the last line on standard error has WORDS.
breaks() {
    text=$1 words=$2
    shift 2
    "$@" >out.log 2>err.log
    status=$?
    check "$text: exit status $status, expected 1" test $status = 1
    check "$text: $(tail -n 1 err.log)" sh -c "tail -n 1 err.log | grep -q '$words'"
}

# same_numbers A B: two files of tensors differ at most in what they say about their making.
same_numbers() {
    tail -c "$(tensor_bytes "$1")" "$1" >a.numbers
    tail -c "$(tensor_bytes "$2")" "$2" >b.numbers
    cmp a.numbers b.numbers
}
# What follows the header of a .safetensors file, whose length its first eight bytes are.
tensor_bytes() { echo $(($(wc -c <"$1") - 8 - $(od -An -tu8 -N8 "$1"))); }

check "devices lists one" sh -c "'$clnet' devices | grep -q ^opencl:"
check "devices --json" sh -c "'$clnet' devices --json | grep -q '\"device\": \"opencl:'"

# What the verifier says can be passed on: head, table, the line for scripts, the verdict at the end.
check "verify" sh -c "'$verify' --device opencl --operation relu --data '$data' >verify.txt"
for words in "^clnet-verify .*, commit " "^device  *opencl:0.0: ." "^vendor  *." "^platform  *." \
    "^OpenCL  *OpenCL .*driver ." "^kind .* compute units" "^memory  *." "^numbers  *float " \
    "^products  *matrix products by" "^processor  *." "^compiler  *." "^relu  *forward  *device " \
    "^[0-9]* passed, 0 failed, 0 skipped$"; do
    check "verify says $words" grep -q -e "$words" verify.txt
done
check "verify ends with PASS" sh -c "tail -n 1 verify.txt | grep -q '^PASS: .* 0 failed, 0 skipped, on opencl:0.0: .'"
check "verify --json" sh -c "'$verify' --device opencl --operation relu --data '$data' --json >verify.json"
for words in '"pass": true' '"failed": 0' '"head": {' '"device": "opencl:0.0: ' '"products": "' \
    '"operation": "relu", "check": "forward", "path": "device"' '"limit": ' '"notes": \[' '"skips": \['; do
    check "verify --json has $words" grep -q -e "$words" verify.json
done
check "verify --json: as many rows as the table" test \
    "$(grep -c '"operation"' verify.json)" = "$(grep -c '  ok    ' verify.txt)"
check "verify --help" sh -c "'$verify' --help | grep -q -e '--device D'"
"$verify" --device opencl --operation relu --data nowhere >skipped.txt 2>&1
check "verify without values from PyTorch" test $? = 0
check "verify says what was skipped, and why" grep -q "^skipped: values from PyTorch: nowhere/ops" skipped.txt
check "verify counts it" sh -c "tail -n 1 skipped.txt | grep -q '^PASS: .* 1 skipped'"
refused "verify: an unknown option" "--devices: unknown option" "$verify" --devices
refused "verify: no value" "--device: needs a value" "$verify" --device

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
check "--profile names kernels" grep -q "_backward_weight  *[1-9]" profile
# The number of PoCL's threads is that of the device's compute units, by which sums are cut.
for n in 1 2 3 4 5 6 7 8; do
    for run_number in 1 2; do
        check "run --train, $n threads of PoCL" env POCL_MAX_PTHREAD_COUNT=$n "$clnet" run $run --train \
            --output p$run_number --save-weights q$run_number
    done
    check "$n threads of PoCL: the same bits from run to run" cmp p1 p2
    check "$n threads of PoCL: the same weights" cmp q1 q2
done
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

# A loader of OpenCL and a CLBlast that tests can spoil (cl_shim.c, cl_blast.c), and a folder that hides
# both libraries: its files are no libraries.
mkdir shim blast hidden platforms
${CC:-cc} -std=c99 -O1 -shared -fPIC "$here/cl_shim.c" -o shim/libOpenCL.so.1 -ldl || exit 1
${CC:-cc} -std=c99 -O1 -shared -fPIC "$here/cl_blast.c" -o blast/libclblast.so.1 -ldl || exit 1
touch hidden/libOpenCL.so.1 hidden/libOpenCL.so
mkdir no_blast && touch no_blast/libclblast.so.1 no_blast/libclblast.so
none="env OCL_ICD_VENDORS=$work/platforms/"
absent="env LD_LIBRARY_PATH=$work/hidden"
bare="env LD_LIBRARY_PATH=$work/shim CL_SHIM_NO_DEVICE=1"
gpu="env LD_LIBRARY_PATH=$work/shim:$work/blast CL_SHIM_TYPE=4"

# Every way in which there may be no device, in every command that computes and in the verifier.
small="--model unet --width 1/32 --weights $data/net_unet.weights.safetensors"
small="$small --input $data/net_unet.expected.safetensors --output"
images=data/ISIC-2017_Validation_Data
refuse_everywhere() {
    words=$1 device=$2
    shift 2
    refused "run: $words" "$words" "$@" "$clnet" run $small no --device "$device"
    refused "train: $words" "$words" "$@" "$clnet" train data --out no --device "$device"
    refused "evaluate: $words" "$words" \
        "$@" "$clnet" evaluate data --weights straight/last.safetensors --out no --device "$device"
    refused "predict: $words" "$words" \
        "$@" "$clnet" predict $images --weights straight/last.safetensors --out no --device "$device"
    refused "explain: $words" "$words" \
        "$@" "$clnet" explain $images --weights straight/last.safetensors --out no --device "$device"
    refused "verify: $words" "$words" "$@" "$verify" --device "$device"
}
refuse_everywhere "device opencl:9.9: there is no such device; there is opencl:0.0 (" opencl:9.9 env
refuse_everywhere "no OpenCL library (libOpenCL.so.1) on this machine" opencl $absent
refuse_everywhere "OpenCL has no platform" opencl $none
refuse_everywhere "platforms (1) have no device" opencl $bare
for device in gpu opencl:x opencl: opencl:0 opencl:0. opencl:.0 opencl:0.0x opencl:-1.0 OPENCL cuda; do
    refused "--device $device" "device $device: a device is cpu, auto, opencl or opencl:PLATFORM.DEVICE" \
        "$clnet" run $small no --device "$device"
done
refused "--device with nothing" "--device" "$clnet" run $small no --device ""
check "nothing was made without a device" test ! -e no
for way in "$absent" "$none" "$bare"; do
    check "devices without OpenCL, $way" sh -c "$way '$clnet' devices | grep -q '^device opencl: '"
    check "devices --json without OpenCL, $way" \
        sh -c "$way '$clnet' devices --json | grep -o '\"device\"' | wc -l | grep -qx 1"
done

# auto: the GPU if there is one, else the CPU, with the same bits as without OpenCL.
check "auto with a GPU" $gpu "$clnet" run $small y_gpu --device auto
check "auto is the GPU" grep -q '"device":"opencl:' y_gpu
check "the CPU" "$clnet" run $small y_cpu --device cpu
for way in "$absent" "$none" "$bare" env; do
    check "auto, $way" $way "$clnet" run $small y_auto --device auto
    check "auto is the CPU, $way" cmp y_cpu y_auto
done

check "verify --device auto is the CPU" sh -c "'$verify' --device auto --operation relu --data '$data' |
    tail -n 1 | grep -q '^PASS: .*, on cpu: '"

# CLBlast is used only after it has proven itself; else the products are clnet's own.
mkdir both && cp shim/libOpenCL.so.1 no_blast/* both
check "without CLBlast" env LD_LIBRARY_PATH=both CL_SHIM_TYPE=4 "$clnet" run $small y_own --device opencl
check "says that CLBlast is missing" grep -q "by kernels.cl; CLBlast is not there" y_own
for kind in right wrong lazy wide fails; do
    case $kind in
    right) says="matrix products by CLBlast, checked on this device" ;;
    fails) says="by kernels.cl; CLBlast FAILS on this device: CLBlastSgemm: error (-1011)" ;;
    *) says="by kernels.cl; CLBlast's results are WRONG on this device" ;;
    esac
    check "CLBlast, $kind" $gpu CL_BLAST=$kind "$clnet" run $small y_$kind --device opencl
    check "CLBlast, $kind: run says so" grep -q -F "$says" y_$kind
    check "CLBlast, $kind: devices says so" \
        sh -c "$gpu CL_BLAST=$kind '$clnet' devices --check | grep -q -F \"$says\""
    check "CLBlast, $kind: devices --json says so" \
        sh -c "$gpu CL_BLAST=$kind '$clnet' devices --check --json | grep -q -F \"$says\""
    [ $kind = right ] || check "CLBlast, $kind: the own kernel's results" same_numbers y_own y_$kind
done

fails "CLBlast fails later" "CLBlastSgemm: error (-1011)" \
    $gpu CL_BLAST=late "$clnet" run $small no --device opencl

# A device that fails in the middle of a training: said in one line that names the call, and the last
# checkpoint is as good as before, on the CPU too.
"$clnet" train data $recipe --device opencl --out broken --stop-after 3 >/dev/null 2>&1
for n in 1 90 200 500 1000 2000 3000 5000; do
    breaks "call $n fails in a training" ": cl[A-Z][A-Za-z]*[(:].*CL_OUT_OF_RESOURCES (-5)" \
        env LD_LIBRARY_PATH=shim CL_SHIM_FAIL=$n "$clnet" train --resume broken --device opencl
done
check "the checkpoint is still good on the CPU" sh -c \
    "cp -r broken copy && '$clnet' train --resume copy --device cpu"
check "the checkpoint is still good on the device" "$clnet" train --resume broken --device opencl
check "as if nothing had failed" cmp straight/last.safetensors broken/last.safetensors

# What does not fit into the device's memory is refused before anything is taken, with what it needs,
# what there is, and the batch that fits.
"$clnet" synth --out many --train 8 --validation 65 --size 32 >/dev/null 2>&1
POCL_MEMORY_LIMIT=1 fails "a batch that is too large" "a batch of 64 needs [0-9]* bytes.* [0-9]*: room for a batch of [0-9]" \
    "$clnet" evaluate many --weights straight/last.safetensors --batch 64 --size 1024 \
    --device opencl --out no

# A device with little memory: what is too much for it is refused with both figures and the batch that
# fits, which `clnet info` tells as well, and which then trains.
export POCL_MEMORY_LIMIT=1
largest=$("$clnet" info --model resnet50+unet --width 1/4 --size 128 --purpose train --device opencl |
    sed -n 's/^largest batch .* \([0-9]*\) for training$/\1/p')
large="--width 1/4 --size 128 --epochs 1 --device opencl --out large"
"$clnet" synth --out more --train 200 --validation 1 --size 32 >/dev/null 2>&1
check "info tells the largest batch" test "${largest:-0}" -gt 1
"$clnet" train more $large --batch 200 >out.log 2>err.log
check "a batch that does not fit fails" test $? = 1
check "with figures and the batch that fits" grep -q "a batch of 200 needs [0-9]* bytes.*: room for a batch of ${largest:-none}$" err.log
unset POCL_MEMORY_LIMIT

finish
