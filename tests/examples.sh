#!/bin/sh
# Runs every example as its first comment says. Usage: tests/examples.sh build
set -u
build=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0

# try NAME WORDS COMMAND...: ends well and says WORDS.
try() {
    name=$1 words=$2
    shift 2
    if "$@" >log 2>&1 && grep -q -e "$words" log; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        tail -n 3 log
    fi
}

"$build/clnet" synth --out data --train 4 --validation 1 --size 64 >log 2>&1
"$build/clnet" train data --model resnet50+unet --width 1/32 --size 48 --batch 4 --epochs 1 --out t >log 2>&1
image=$(ls data/ISIC-2017_Training_Data/*.jpg | head -n 1)
try 01_predict "melanoma 0" "$build/01_predict" "$image" t/last.safetensors mask.png
try "01_predict's mask" PNG head -c 8 mask.png
try 02_train "recognised" "$build/02_train"
try 03_layer "db: 12" "$build/03_layer"
try 04_gradient_check "are right" "$build/04_gradient_check"
try 05_fusion "parameters" "$build/05_fusion"
for program in "$build"/0[0-9]_*; do
    case $program in
    *.d | *01_predict | *02_train | *03_layer | *04_gradient_check | *05_fusion) ;;
    *) failed=$((failed + 1)) && echo "FAIL $program: an example that no test runs" ;;
    esac
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
