#!/bin/sh
# The built program from outside: evaluate, predict, explain, score, convert, info, devices, synth. What
# is wrong gives one line on standard error that names the thing, and exit status 2; what is right leaves
# its files.
#
#     sh tests/cli_commands.sh build/clnet

case $1 in
    '') echo "usage: $0 PATH/TO/clnet"; exit 2 ;;
    /*) clnet=$1 ;;
    *) clnet=$(pwd)/$1 ;;
esac
. "$(dirname "$0")/checks.sh"
program=$clnet
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
cd "$folder" || exit 1

# has FILE..: each is there and not empty.
has() {
    for file; do
        [ -s "$file" ] && pass || fail "$file is missing"
    done
}

# says WORD [FILE]: the output (or file) has the word.
says() { grep -qF -e "$1" "${2:-out}" && pass || fail "${2:-the output} lacks: $1"; }

is() { [ "$2" = "$3" ] && pass || fail "$1: found $2, expected $3"; }

# A small data set, and the weights of three small networks from one epoch each.
prepare() {
    works "synth" synth --out data --train 6 --validation 6 --test 3 --size 48x40 --seed 1
    works "synth is repeatable" synth --out again --train 6 --validation 6 --test 3 --size 48x40 --seed 1
    diff -r data again >/dev/null && pass || fail "two sets of one seed differ"
    for model in resnet50+unet resnet50 unet; do
        works "train $model" train data --model $model --width 1/16 --size 32 --epochs 1 --batch 3 --out $model
    done
    both=resnet50+unet/last.safetensors cls=resnet50/last.safetensors seg=unet/last.safetensors
    images=data/ISIC-2017_Validation_Data
    first=$(ls $images | head -n 1)
    first=${first%.jpg}
    printf 'not an image' >junk.jpg
    mkdir empty
}

test_synth() {
    refuses 2 "--out is missing" synth --train 3
    refuses 2 "--train" synth --out nothing
    refuses 2 "--size 5x" synth --out nothing --train 1 --size 5x
    refuses 2 "--train -1" synth --out nothing --train -1
    refuses 2 "--train 3.5" synth --out nothing --train 3.5
    refuses 2 "data/ISIC-2017_Training_Data" synth --out data --train 3
    refuses 2 "junk.jpg" synth --out junk.jpg/below --train 3
    [ ! -e nothing ] && pass || fail "a refused synth left a folder"
}

test_info() {
    works "info" info
    says "84.415 million"
    says "68.094 GMAC"
    says "largest batch"
    works "info --json" info --model unet --width 1/8 --size 64x96 --purpose train --json
    says '"train": {'
    grep -q '"infer"' out && fail "--purpose train shows inference" || pass
    works "info --weights" info --weights $both
    says "width 0.0625, input 32 x 32"
    refuses 2 "densenet" info --model densenet
    refuses 2 "--width 0" info --width 0
    refuses 2 "--batch 0" info --batch 0
    refuses 2 "--purpose sell" info --purpose sell
    refuses 2 "--model" info --weights $both --model unet
    refuses 2 "absent.safetensors" info --weights absent.safetensors
    refuses 2 "extra" info extra
}

test_devices() {
    works "devices" devices
    says "cpu"
    works "devices --json" devices --json
    says '"devices": [{"device": "cpu"'
    refuses 2 "--yaml" devices --yaml
    refuses 2 "unknown option" devices --device opencl:7.7
}

test_evaluate() {
    works "evaluate" evaluate data --weights $both --out ev
    says "Table 1"
    says "Table 2"
    has ev/metrics.json ev/predictions.csv ev/roc.png ev/report.html ev/fig3.png ev/fig4.png
    is "masks" "$(ls ev/masks | wc -l)" 6
    is "rows" "$(wc -l <ev/predictions.csv)" 7
    is "half files" "$(find ev -name '*.tmp' | wc -l)" 0
    says "data:image/png;base64" ev/report.html
    TMPDIR=$folder/empty works "evaluate without --out" evaluate data --weights $cls --split test
    is "left in the temporary folder" "$(ls empty | wc -l)" 0
    works "evaluate unet" evaluate data --weights $seg --split training --out ev_seg
    says '"mean_auc": null' ev_seg/metrics.json
    [ ! -e ev_seg/predictions.csv ] && pass || fail "predictions of a network without classification"
    for n in 1 3; do
        works "evaluate --threads $n" evaluate data --weights $both --out ev_$n --threads $n --batch $n
        cmp -s ev/metrics.json ev_$n/metrics.json && diff -r ev/masks ev_$n/masks >/dev/null && pass ||
            fail "evaluate with $n threads differs"
    done
    refuses 2 "--weights is missing" evaluate data
    refuses 2 "data set is missing" evaluate --weights $both
    refuses 2 "one argument too many" evaluate data data --weights $both
    refuses 2 "nowhere" evaluate nowhere --weights $both
    refuses 2 "ISIC-2017" evaluate empty --weights $both
    refuses 2 "absent.safetensors" evaluate data --weights absent.safetensors
    refuses 2 "junk.jpg" evaluate data --weights junk.jpg
    refuses 2 "--split some" evaluate data --weights $both --split some
    refuses 2 "--model unet" evaluate data --weights $both --model unet
    refuses 2 "--batch 0" evaluate data --weights $both --batch 0
    refuses 2 "--colour" evaluate data --weights $both --colour
    refuses 2 "opencl:9.9" evaluate data --weights $both --device opencl:9.9
    refuses 2 "junk.jpg" evaluate data --weights $both --out junk.jpg
    head -c 1000 $both >cut.safetensors
    refuses 2 "cut.safetensors" evaluate data --weights cut.safetensors
    cp -r data broken
    head -c 500 "$images/$first.jpg" >"broken/ISIC-2017_Validation_Data/$first.jpg"
    "$clnet" evaluate broken --weights $both --out ev_broken >out 2>err
    is "status of a cut image" $? 2
    says "$first.jpg" err
    is "half files of a cut image" "$(find ev_broken -type f | wc -l)" 0
}

test_score() {
    works "score" score --truth data --pred ev --out sc
    cmp -s ev/metrics.json sc/metrics.json && pass || fail "score differs from evaluate"
    says "validation split"
    mkdir submission
    cp ev/masks/* submission
    sed 1s/image_id/image/ ev/predictions.csv >submission/mine.csv
    printf 'image_id,age_approximate,sex\n' >submission/another.csv
    works "score of a submission" score --truth data --pred submission --out sc2
    cmp -s ev/metrics.json sc2/metrics.json && pass || fail "score of a submission differs"
    works "score --csv" score --truth data --pred ev_seg/masks --split training
    says "n/a"
    refuses 2 "--pred is missing" score --truth data
    refuses 2 "--truth is missing" score --pred ev
    refuses 2 "nowhere" score --truth data --pred nowhere
    refuses 2 "nowhere" score --truth nowhere --pred ev
    refuses 2 "empty" score --truth data --pred empty
    refuses 2 "absent.csv" score --truth data --pred ev --csv absent.csv
    refuses 2 "another.csv" score --truth data --pred ev --csv submission/another.csv
    refuses 2 "training split" score --truth data --pred ev --split training
    rm "submission/${first}_segmentation.png"
    refuses 2 "no mask for $first (missing are 1 of 6)" score --truth data --pred submission
    cp junk.jpg "submission/${first}_segmentation.png"
    refuses 2 "${first}_segmentation.png" score --truth data --pred submission
    cp "ev/masks/${first}_segmentation.png" "submission/${first}_segmentation.png"
    cp "ev/masks/${first}_segmentation.png" submission/ISIC_9999999_segmentation.png
    refuses 2 "ISIC_9999999" score --truth data --pred submission
    rm submission/ISIC_9999999_segmentation.png
    sed 3d ev/predictions.csv >submission/mine.csv
    refuses 2 "mine.csv: has no row for" score --truth data --pred submission
    works "synth of another size" synth --out other --validation 6 --size 40x48 --seed 1
    mkdir wrong_size
    for mask in ev/masks/*; do
        cp other/ISIC-2017_Validation_Part1_GroundTruth/"$(ls other/ISIC-2017_Validation_Part1_GroundTruth | head -n 1)" \
            wrong_size/"$(basename "$mask")"
    done
    refuses 2 "48 x 40 pixels" score --truth data --pred wrong_size
}

test_predict() {
    works "predict --profile" predict "$images" --weights $both --profile --device cpu
    grep -q "^conv2d  *forward  *[1-9]" out && pass || fail "the profile lacks conv2d forward"
    grep -q "^[^ ]*\.conv1  *conv2d  *1x[0-9x]*  *forward  *[1-9]" out && pass ||
        fail "the profile lacks a node"
    works "predict" predict "$images" --weights $both --out pr
    is "a profile without being asked for" "$(grep -c profile out)" 0
    is "lines" "$(wc -l <out)" 6
    has pr/predictions.csv "pr/${first}_segmentation.png" "pr/${first}_overlay.png"
    cmp -s "pr/${first}_segmentation.png" "ev/masks/${first}_segmentation.png" && pass ||
        fail "predict's mask differs from evaluate's"
    works "predict without --out" predict "$images/$first.jpg" --weights $seg
    says "lesion"
    works "predict resnet50" predict "$images/$first.jpg" --weights $cls --out pr_cls
    [ ! -e "pr_cls/${first}_segmentation.png" ] && pass || fail "a mask of a network without segmentation"
    refuses 2 "junk.jpg" predict junk.jpg --weights $both
    refuses 2 "absent.jpg" predict absent.jpg --weights $both
    refuses 2 "no image" predict --weights $both
    refuses 2 "empty" predict empty --weights $both
    refuses 2 "--weights is missing" predict junk.jpg
    refuses 2 "same name" predict "$images/$first.jpg" "again/ISIC-2017_Validation_Data/$first.jpg" --weights $both
    refuses 2 "--threads 0" predict "$images" --weights $both --threads 0
    # One bad image among good ones: its line, the others, and a line that counts.
    "$clnet" predict junk.jpg "$images/$first.jpg" --weights $both --out pr_bad >out 2>err
    is "status with one bad image" $? 2
    is "lines on standard error" "$(wc -l <err)" 2
    says "junk.jpg" err
    says "1 of 2" err
    has "pr_bad/${first}_overlay.png"
    is "rows" "$(wc -l <pr_bad/predictions.csv)" 2
}

test_explain() {
    works "explain" explain "$images" --weights $both --out ex --class truth --truth data --layer all --cam gradcam
    has "ex/${first}_cam.png"
    works "explain panels" explain "$images" --weights $cls,$both,$seg --panel fig3.png --panel-masks fig4.png \
        --truth data --class melanoma
    has fig3.png fig4.png
    works "explain --raw" explain "$images" --weights $both --raw raw.safetensors --cam gradcam++ --layer fm4 \
        --class truth --truth data/ISIC-2017_Validation_Part3_GroundTruth.csv
    has raw.safetensors
    for name in image logits class cam.gradcam++.fm4; do
        head -c 1000 raw.safetensors | tr '{}' '\n\n' >header
        says "\"$name\"" header
    done
    refuses 2 "--weights is missing" explain "$images" --out ex2
    refuses 2 "--out" explain "$images" --weights $both
    refuses 2 "--truth" explain "$images" --weights $both --out ex2 --class truth
    refuses 2 "nowhere" explain "$images" --weights $both --out ex2 --class truth --truth nowhere
    refuses 2 "--layer fm6" explain "$images" --weights $both --out ex2 --layer fm6
    refuses 2 "--cam other" explain "$images" --weights $both --out ex2 --cam other
    refuses 2 "--class mole" explain "$images" --weights $both --out ex2 --class mole
    refuses 2 "no classification" explain "$images" --weights $seg --out ex2
    refuses 2 "--raw" explain "$images" --weights $both,$cls --raw two.safetensors
    refuses 2 "commas" explain "$images" --weights $both, --out ex2
    refuses 2 "absent" explain "$images" --weights $both,absent --out ex2
    refuses 2 "junk.jpg" explain junk.jpg --weights $both --out ex2
    "$clnet" explain junk.jpg "$images/$first.jpg" --weights $both --out ex_bad >out 2>err
    is "status with one bad image" $? 2
    says "1 of 2" err
    has "ex_bad/${first}_cam.png"
}

# Weights to torch.save's format and back: the same bytes; --weights takes either.
test_convert() {
    works "convert a checkpoint" convert $both weights.safetensors
    says "of the optimiser"
    works "convert to .pth" convert weights.safetensors weights.pth
    works "convert to .pt" convert weights.safetensors weights.pt
    cmp -s weights.pth weights.pt && pass || fail "two conversions of one file differ"
    works "convert back" convert weights.pth back.safetensors
    cmp -s weights.safetensors back.safetensors && pass || fail "a round trip changed the weights"
    works "predict with .pth" predict "$images/$first.jpg" --weights weights.pth --out pr_pth
    works "predict with safetensors" predict "$images/$first.jpg" --weights weights.safetensors --out pr_safe
    cmp -s pr_pth/predictions.csv pr_safe/predictions.csv && pass || fail "other scores with .pth"
    for precision in F16 BF16; do
        works "convert to $precision" convert weights.pth half.pth --precision $precision
        works "convert from $precision" convert half.pth half.safetensors --precision F32
        works "predict with $precision" predict "$images/$first.jpg" --weights half.pth --out pr_half
    done
    header='{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' # and the largest float
    printf "\\$(printf %03o ${#header})\\0\\0\\0\\0\\0\\0\\0%s\\377\\377\\177\\177" "$header" >large.safetensors
    works "convert a large number" convert large.safetensors large.pth --precision F16
    says "1 of 1 numbers are too large for F16 and became infinite, the first of them in a" err
    refuses 2 "IN is missing" convert
    refuses 2 "OUT is missing" convert weights.pth
    refuses 2 "absent.pth" convert absent.pth out.pth
    refuses 2 "junk.jpg" convert junk.jpg out.pth
    refuses 2 "out.bin: its name has to end with" convert weights.pth out.bin
    refuses 2 "--precision F8" convert weights.pth out.pth --precision F8
    refuses 2 "nowhere/out.pth" convert weights.pth nowhere/out.pth
    [ ! -e out.pth ] && pass || fail "a file from a conversion that failed"
}

# A signal in the middle of the work: the status says it, nothing is left in halves.
test_signal() {
    works "synth for the signal" synth --out many --validation 400 --size 64 --seed 2
    for signal in INT:130 TERM:143; do
        rm -rf ev_signal
        "$clnet" evaluate many --weights $both --batch 1 --threads 1 --size 224 --out ev_signal >out 2>err &
        pid=$!
        waited=0
        while [ ! -e ev_signal/cache-validation-224x224.bin ] && [ $waited -lt 300 ]; do
            sleep 0.1
            waited=$((waited + 1))
        done
        kill -s ${signal%:*} $pid
        wait $pid
        is "status after ${signal%:*}" $? ${signal#*:}
        says "stopped" err
        is "half files after ${signal%:*}" "$(find ev_signal -name '*.tmp' | wc -l)" 0
        [ ! -e ev_signal/metrics.json ] && pass || fail "figures of half the images"
    done
}

# A disk that is full while the results are written: status 1, the file is named, none is cut.
test_full() {
    if ! (ulimit -f 4) 2>/dev/null; then
        skipped=$((skipped + 1))
        return
    fi
    (ulimit -f 4; exec "$clnet" predict "$images/$first.jpg" --weights $both --out pr_full) >out 2>err
    status=$?
    is "status of a full disk" $status 1
    says "pr_full/${first}" err
    is "half files of a full disk" "$(find pr_full -name '*.tmp' | wc -l)" 0
}

prepare
for room in synth info devices evaluate score predict explain convert signal full; do
    test_$room
done
finish
