#!/bin/sh
# clnet-bench as a user meets it, with tiny cases: rows have the keys that other programs rely on, what
# is not known is n/a, a failed case does not end the run, and Ctrl-C leaves valid files.
#
#     sh tests/cli_bench.sh build/clnet-bench [DEVICE]

bench=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
device=${2:-cpu}
. "$(dirname "$0")/checks.sh"
program=$bench
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
cd "$folder" || exit 1

# lines COUNT PATTERN FILE: the file has this many lines, all of the pattern.
lines() {
    if [ "$(grep -cE -e "$2" "$3")" -eq "$1" ] && [ "$(wc -l <"$3")" -eq "$1" ]; then
        pass
    else
        fail "$3: not $1 lines of $2"
        head -n 3 "$3"
    fi
}

# says TEXT FILE
says() { grep -qF -e "$1" "$2" && pass || fail "$2 does not say: $1"; }

number='[0-9.]+(e[-+][0-9]+)?'
optional="($number|null)"
start="\"device\": \"(cpu|opencl)[^\"]*\", \"threads\": [0-9]+, \"isa\": \"[^\"]+\", \"batch\": [0-9]+, \"size\": ([0-9]+|\"[0-9]+x[0-9]+\")"
times="\"repeats\": [0-9]+, \"median_ms\": $number, \"min_ms\": $number, \"max_ms\": $number, \"forward_ms\": $optional, \"backward_ms\": $optional, \"update_ms\": $optional"
rates="\"gflop\": $optional, \"gflops\": $optional, \"peak_gflops\": $number, \"share\": $optional"
end="\"plan_bytes\": [0-9]+, \"peak_rss_bytes\": ([0-9]+|null), \"error\": $number, \"error_limit\": $number, \"status\": \"ok\""
model_row="^\{\"case\": \"[^\"]+\", $start, $times, $rates, $end\}\$"
ops_row="^\{\"case\": \"[^\"]+\", \"pass\": \"(forward|backward_data|backward_weight)\", $start, $times, $rates, $end\}\$"

tiny="--device $device --width 1/32 --size 32"

# Peaks.
works "peak" peak --device "$device"
says "GFLOP/s" out
works "peak --json" peak --device "$device" --json
lines 2 "^\{\"what\": \"(fma\", \"gflops\"|copy\", \"gbs\"): $number\}\$" out

# Networks: one row per mode, with the parts of a step beside its whole.
works "model --json" model $tiny --repeats 2 --json --save saved.json
lines 2 "$model_row" out
cmp -s out saved.json && pass || fail "--save differs from --json"
says '"repeats": 2, ' out
says 'compiler' err
grep infer out | grep -qE '"backward_ms": null, "update_ms": null' && pass || fail "infer has no backward"
grep train out | grep -qE "\"forward_ms\": $number, \"backward_ms\": $number, \"update_ms\": $number" &&
    pass || fail "train has all parts"
works "model, table" model $tiny --repeats 2 --mode infer
says "n/a" out
says "vector code" out
works "model --csv, H x W" model --device "$device" --width 1/32 --size 32x48 --mode infer --repeats 2 --csv
lines 2 '^(case,|"resnet50)' out
says ",32x48," out

# Operations.
works "ops --json" ops $tiny --filter 'conv2d 3x3 2->2 ' --repeats 2 --json --roofline roof.png
rows=$(wc -l <out)
lines "$rows" "$ops_row" out
[ $((rows % 3)) = 0 ] && [ "$rows" -gt 0 ] && pass || fail "three passes of each convolution"
[ "$(head -c 4 roof.png | tail -c 3)" = PNG ] && pass || fail "the picture is no PNG"
works "ops --quick" ops $tiny --quick --repeats 1 --csv --save ops.json
says ",n/a," out
says '"case": "product ' ops.json
lines "$(wc -l <ops.json)" "$ops_row" ops.json
grep '"case": "relu' ops.json | grep -q '"gflop": null, "gflops": null' && pass || fail "relu has no GFLOP"

# A case that is refused leaves its row, and the others run: in training, one value per channel.
"$bench" model --device "$device" --width 1/32 --size 32 --batch 1 --repeats 1 --json >out 2>err
[ $? = 0 ] && pass || fail "a refused case is no failure of the run"
lines 2 '"status": "(ok|n/a)"\}$' out
grep -q '"repeats": null, "median_ms": null.*"status": "n/a"' out && pass || fail "no row of the refused case"
says "batch_norm" err

# Comparing.
sed 's/"median_ms": [^,]*, "min_ms": [^,]*, "max_ms": [^,]*/"median_ms": 10, "min_ms": 9, "max_ms": 12/' \
    saved.json >a.json
sed 's/"median_ms": 10, "min_ms": 9, "max_ms": 12/"median_ms": 20, "min_ms": 19, "max_ms": 21/' a.json |
    sed 's/\("case": "[^"]*train\)/\1ing/' >b.json
works "compare" compare a.json b.json
says "2.000  slower" out
says "only in a.json" out
says "only in b.json" out
says "1 cases, geometric mean of B/A 2.000" out
works "compare with itself" compare a.json a.json
says "0 slower, 0 faster" out
sed 's/"median_ms": 20, "min_ms": 19, "max_ms": 21/"median_ms": 20, "min_ms": 5, "max_ms": 21/' b.json >c.json
works "compare, within the spread" compare a.json c.json
says "0 slower, 0 faster" out
sed 's/"ok"/"failed"/; s/"median_ms": 10/"median_ms": null/' a.json >d.json
works "compare with failed cases" compare a.json d.json
says "no case is ok in both" out
refuses 2 "two files" compare a.json
refuses 2 "missing.json" compare a.json missing.json
echo '{"case": "x", "median_ms": ' >broken.json
refuses 2 "broken.json: line 1" compare a.json broken.json
head -c 200000 /dev/zero | tr '\0' '{' >braces.json
refuses 2 "braces.json: line 1" compare braces.json a.json
: >empty.json
refuses 2 "empty.json: has no rows" compare empty.json a.json

# Ctrl-C, after the first row: it stays, and the picture shows what there is.
"$bench" ops $tiny --filter conv2d --time 100 --save stopped.json --roofline stopped.png >out 2>err &
pid=$!
n=0
while [ ! -s stopped.json ] && [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done
kill -INT $pid
wait $pid
status=$?
[ $status = 130 ] && pass || fail "Ctrl-C: exit status $status"
lines "$(wc -l <stopped.json)" "$ops_row" stopped.json
[ "$(head -c 4 stopped.png | tail -c 3)" = PNG ] && pass || fail "Ctrl-C: the picture is no PNG"

# Bad input.
refuses 2 "unknown command" speed
refuses 2 "--fast: unknown option" model --fast
refuses 2 "--repeats 0" model --repeats 0
refuses 2 "resnet51" model --model resnet51
refuses 2 "no operation" ops --filter nothing_like_it
refuses 2 "--csv" model --json --csv
refuses 2 "nowhere/x" model $tiny --save nowhere/x
refuses 2 "nowhere/x.png" ops $tiny --roofline nowhere/x.png
refuses 2 "opencl:9.9" model --device opencl:9.9
refuses 2 "warp" ops --device warp
works "help" help
for command in ops model peak compare devices; do
    works "help $command" help $command
    says "usage: clnet-bench $command" out
done
works "devices" devices
if [ -c /dev/full ]; then
    "$bench" model $tiny --mode infer --repeats 1 --json >/dev/full 2>err
    [ $? = 1 ] && pass || fail "standard output that cannot be written"
    "$bench" model $tiny --mode infer --repeats 1 --save /dev/full >out 2>err
    [ $? = 1 ] && grep -q "/dev/full" err && pass || fail "a file that cannot be written"
else
    skipped=$((skipped + 2))
fi

finish
