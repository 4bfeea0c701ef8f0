#!/bin/sh
# `clnet paper` as a user meets it: its files, a second call, an interruption, more seeds, rows that
# fail, wrong input. Usage: tests/cli_paper.sh build/clnet
set -u
. "$(dirname "$0")/checks.sh"
clnet=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

"$clnet" synth --out data --train 6 --validation 6 --size 48x40 --seed 3 >/dev/null 2>&1 || {
    echo "FAIL synth"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
}
recipe="--width 1/32 --size 32 --batch 3 --lr 1e-3"
few="--models resnet50,unet,resnet50+unet"

# What it leaves.
"$clnet" paper data $recipe --epochs 1 $few --out job >out 2>err
check "status" test $? = 0
for file in report.html tables.json tables.csv paper.txt fig3.png fig4.png roc.png training.png \
    resnet50/last.safetensors unet/masks resnet50+unet/predictions.csv resnet50+unet/cams; do
    check "$file is there" test -s job/$file
done
check "no half files" sh -c '[ -z "$(find job -name "*.tmp")" ]'
check "tables on standard output" grep -q "^Table 1.*validation split" out
check "the paper's figures" grep -q "the paper .*85.745" out
check "one network against two" grep -q "^ResNet50 + UNet against UNet, JA: .* one seed" out
check "decoded images are shared" sh -c '[ "$(find job -name "cache-*" | wc -l)" = 2 ]'
check "one line per training in tables.csv" test "$(wc -l <job/tables.csv)" = 4
check "score finds the same figures" "$clnet" score --truth data --pred job/resnet50+unet --out scored
check "score finds the same figures" cmp scored/metrics.json job/resnet50+unet/metrics.json

# One file, which needs nothing else: pictures lie in it, no script, no address.
check "pictures in the report" sh -c '[ "$(grep -o "src=\"data:image/png;base64," job/report.html | wc -l)" = 4 ]'
check "nothing from elsewhere" sh -c '! grep -qiE "<script|<link|https?:|@import|url\(|src=\"[^d]|href=" job/report.html'

# A second call trains nothing and gives the same.
cp -r job before
"$clnet" paper --out job >out2 2>err2
check "second call" test $? = 0
check "nothing to be done" grep -q "0 of 3 trainings to be done" err2
check "the same tables" cmp before/tables.json job/tables.json
check "the same report" cmp before/report.html job/report.html
check "the same output" cmp out out2

# More seeds: those that are there stay.
"$clnet" paper --out job --seeds 2 >out 2>err
check "a second seed" test $? = 0
check "only the new ones" grep -q "3 of 6 trainings to be done" err
check "another training" sh -c '! cmp -s job/unet/last.safetensors job/unet-seed2/last.safetensors'
check "the first seed stays" cmp before/unet/last.safetensors job/unet/last.safetensors
check "mean and spread" grep -q "clnet, 2 seeds .* ± " out
check "an interval" grep -q "95 % interval over 2 seeds" out

# Interrupted at several moments, then to the end: as if it had not been.
long="$recipe --epochs 4 $few --threads 1"
"$clnet" paper data $long --out straight >/dev/null 2>&1
for pause in 0.2 0.5 1 0.7; do
    "$clnet" paper data $long --out stopped >out 2>err &
    pid=$!
    sleep $pause
    kill -INT $pid 2>/dev/null
    wait $pid
    status=$?
    # A fast machine is done before the signal; one that was stopped says how to go on.
    check "stopped after $pause s (status $status)" sh -c \
        "[ $status = 0 ] || { [ $status = 130 ] && grep -q 'clnet paper --out stopped' err; }"
done
"$clnet" paper data $long --out stopped >/dev/null 2>&1
check "to the end" test $? = 0
for model in resnet50 unet resnet50+unet; do
    check "$model: as if it had not been stopped" cmp straight/$model/last.safetensors stopped/$model/last.safetensors
    check "$model: the same figures" cmp straight/$model/metrics.json stopped/$model/metrics.json
done

# A row that fails is told; the others go on.
cp -r before broken
rm broken/unet/result.txt
head -c 3000 before/unet/last.safetensors >broken/unet/last.safetensors
rm broken/resnet50/result.txt
"$clnet" paper --out broken >out 2>err
check "status of a missing row" test $? = 1
check "names the row" grep -q "unet, seed 1: broken/unet/last.safetensors" err
check "counts the missing rows" grep -q "1 of 3 rows are missing" err
check "the other row is measured again" test -s broken/resnet50/result.txt
check "the report says what is missing" grep -q "UNet, seed 1, is missing" broken/report.html

# A pretrained branch is read by the networks that have it; a file that does not fit is their failure.
"$clnet" paper data $recipe --epochs 1 $few --pretrained-resnet50 job/unet/last.safetensors --out pretrained >out 2>err
check "status of weights that do not fit" test $? = 1
check "names their file" grep -q "resnet50, seed 1: .*job/unet/last.safetensors" err
check "2 rows want them" grep -q "2 of 3 rows are missing" err
check "they are among the settings" grep -q "^pretrained-resnet50 = job/unet/last.safetensors" pretrained/paper.txt

# One that fits: a row is the training that `clnet train` makes of it, and UNet has nothing to read. As
# torchvision's, the file has an encoder's names alone.
encoder() { # encoder FROM TO: the weights of FROM without "cls." in front of their names
    "$clnet" convert $1 plain.safetensors && LC_ALL=C sed 's/"cls\.\([^"]*\)":/"\1":    /g' plain.safetensors >$2
}
check "an encoder by itself" encoder job/resnet50/last.safetensors encoder.safetensors
check "as .pth" "$clnet" convert encoder.safetensors encoder.pth
"$clnet" paper data $recipe --epochs 1 $few --pretrained-resnet50 encoder.pth --out fitting >out 2>err
check "status of weights that fit" test $? = 0
for model in resnet50 resnet50+unet; do
    "$clnet" train data $recipe --epochs 1 --seed 1 --model $model --pretrained-cls encoder.pth --out by-hand/$model >out 2>err
    check "$model: what was read is told" grep -q "encoder.pth: 265 tensors loaded into cls, 2 left out" err
    check "$model: begins with the file's weights" cmp by-hand/$model/last.safetensors fitting/$model/last.safetensors
    check "$model: not with its own" sh -c "! cmp -s before/$model/last.safetensors fitting/$model/last.safetensors"
done
check "unet: begins with its own" cmp before/unet/last.safetensors fitting/unet/last.safetensors
large="--width 1/32 --size 75 --batch 3 --lr 1e-3 --epochs 1"
"$clnet" train data $large --model inception_v3 --out inception >/dev/null 2>&1
check "Inception by itself" encoder inception/last.safetensors inception.safetensors
"$clnet" paper data $large --models inception_v3+unet --pretrained-inception_v3 inception.safetensors --out wide >out 2>err
check "status of Inception's" test $? = 0
"$clnet" train data $large --seed 1 --model inception_v3+unet --pretrained-cls inception.safetensors --out by-hand/wide >out 2>err
check "Inception: what was read is told" grep -q "inception.safetensors: 470 tensors loaded into cls, 2 left out" err
check "Inception: begins with the file's weights" cmp by-hand/wide/last.safetensors wide/inception_v3+unet/last.safetensors

# The encoder of ResUNet is that of ResNet-50 as well, for `train`.
for seg in encoder.pth encoder.safetensors; do
    "$clnet" train data $recipe --epochs 1 --model resunet --pretrained-seg $seg --out seg/$seg >out 2>err
    check "resunet: $seg is told" grep -q "$seg: 265 tensors loaded into seg, 2 left out" err
done
"$clnet" train data $recipe --epochs 1 --model resunet --out seg/own >out 2>err
check "resunet: both files are the same" cmp seg/encoder.pth/last.safetensors seg/encoder.safetensors/last.safetensors
check "resunet: not with its own" sh -c "! cmp -s seg/own/last.safetensors seg/encoder.pth/last.safetensors"

# The split: the test images where they have masks and labels, else the validation images.
"$clnet" synth --out all --train 6 --validation 3 --test 3 --size 48x40 --seed 3 >/dev/null 2>&1
"$clnet" paper all $recipe --epochs 1 --models unet --out test >out 2>err
check "the test split" grep -q "measured on the test split, best.safetensors" err
rm -r all/ISIC-2017_Test_v2_Part1_GroundTruth
"$clnet" paper all $recipe --epochs 1 --models unet --out validation >out 2>err
check "no masks of test images" grep -q "measured on the validation split, last.safetensors" err
check "--checkpoint" sh -c "'$clnet' paper all $recipe --epochs 1 --models unet --checkpoint best --out best 2>&1 |
    grep -q 'validation split, best.safetensors'"

# Without --models, what cannot be built at this size is left out, and said.
"$clnet" paper data --width 1/32 --size 32 --batch 3 --epochs 1 --seeds 1 --out small >out 2>err
check "status without Inception" test $? = 1
check "Inception needs 75 x 75" grep -q "Inception V3, seed 1, is missing: .*75" out
check "the rest is there" test "$(wc -l <small/tables.csv)" = 7

# Wrong input.
refused "no --out" "--out is missing" "$clnet" paper data
refused "no data" "no data set given" "$clnet" paper --out new
refused "a missing folder" "nowhere" "$clnet" paper nowhere --out new
refused "an unknown option" "--epoch: unknown option" "$clnet" paper data --out new --epoch 3
refused "an unknown network" 'model "resnet51": unknown' "$clnet" paper data --out new --models unet,resnet51
refused "a network twice" "unet stands there twice" "$clnet" paper data --out new --models unet,unet
refused "an empty name" "needs names with commas" "$clnet" paper data --out new --models unet,
refused "no seeds" "--seeds 0" "$clnet" paper data --out new --seeds 0
refused "an unknown split" "--split training" "$clnet" paper data --out new --split training
refused "no test split" "ISIC-2017_Test_v2" "$clnet" paper data --out new --split test
refused "two data sets" "one argument too many" "$clnet" paper data data --out new
check "nothing was made for refused jobs" test ! -e new
refused "other epochs" "--epochs 2: the job in job has 1" "$clnet" paper --out job --epochs 2
refused "another width" "--width" "$clnet" paper --out job --width 1/16
refused "another split" "--split test" "$clnet" paper all --out job --split test
refused "other pretrained weights" "--pretrained-resnet50 other: the job in job has none" \
    "$clnet" paper --out job --pretrained-resnet50 other
refused "other images" "other images" "$clnet" paper all --out job
refused "a file in the way" "job/tables.csv" "$clnet" paper data --out job/tables.csv --models unet
cp -r before spoilt
echo "no settings" >spoilt/paper.txt
refused "settings that are none" "spoilt/paper.txt: line 1" "$clnet" paper --out spoilt
sed 's/^epochs = .*/epochs = many/' before/paper.txt >spoilt/paper.txt
refused "a setting that is none" "--epochs many" "$clnet" paper --out spoilt
grep -v '^lr' before/paper.txt >spoilt/paper.txt
refused "a setting that is missing" "has no line for lr" "$clnet" paper --out spoilt
# Without its settings a job is not believed: each row is asked, and this one was trained otherwise.
rm spoilt/paper.txt
"$clnet" paper data $recipe --epochs 2 --models unet --out spoilt >out 2>err
check "rows of another recipe" grep -q "unet, seed 1: --epochs 2: the training in spoilt/unet has 1" err

finish
