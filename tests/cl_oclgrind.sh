#!/bin/sh
# The kernels under Oclgrind (Debian: oclgrind), which simulates a device and watches every access to
# memory: addresses outside buffers, races between work-items, values that nobody wrote, and wrong calls
# of OpenCL. It has to say nothing on standard error (its exit status is 0 even after errors; a log file
# would begin anew with each context), results have to be right, and every kernel of kernels.cl has to
# have run.
#
#     tests/cl_oclgrind.sh build/test_cl                      each kernel, two minutes
#     tests/cl_oclgrind.sh build/test_cl build/clnet-verify   all tunings and all small cases, many minutes
#
# KERNELS=FILE: another kernels.cl. The library before OpenCL's is tests/cl_shim.c, CLBlast is
# tests/cl_blast.c, since its own kernels are not clnet's to check.
#
# Oclgrind 21.10 knows no `freeze` instruction, which LLVM makes of a quotient and a remainder: hence
# -cl-opt-disable. It also forgets what was initialised before when a part of a buffer is written: hence
# CL_SHIM_WHOLE_WRITES.
test_cl=$1
verify=${2:-}
here=$(dirname "$0")
kernels=${KERNELS:-$here/../kernels.cl}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() {
    text=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $text"
    fi
}

icd=$(ls /usr/lib/oclgrind/liboclgrind-rt-icd.so /usr/lib/*/oclgrind/liboclgrind-rt-icd.so 2>/dev/null | head -n 1)
if [ -z "$icd" ]; then
    echo "SKIP Oclgrind is not installed"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
echo "$icd" >"$work/oclgrind.icd"
"$here/cl_shim.sh" "$work" || exit 1

# watched NAME [VARIABLE=VALUE ..] COMMAND..: the command passes, and Oclgrind says nothing.
watched() {
    name=$1
    shift
    start=$(date +%s)
    env LD_LIBRARY_PATH="$work" CL_SHIM_WHOLE_WRITES=1 CL_SHIM_LAUNCHES="$work/launches" \
        OCL_ICD_VENDORS="$work" OCLGRIND_DATA_RACES=1 OCLGRIND_UNINITIALIZED=1 OCLGRIND_CHECK_API=1 \
        OCLGRIND_BUILD_OPTIONS=-cl-opt-disable "$@" >"$work/out" 2>"$work/log"
    status=$?
    echo "$name: $(tail -n 1 "$work/out") ($(($(date +%s) - start)) s)"
    check "$name: exit status $status" test $status = 0
    grep '^FAIL' "$work/out"
    check "$name: not on Oclgrind" grep -q 'Oclgrind Simulator' "$work/out"
    check "$name: $(wc -l <"$work/log") lines from Oclgrind" test ! -s "$work/log"
    head -n 40 "$work/log"
}

step="$test_cl --kernels $kernels --step"
: >"$work/launches"
# A CPU convolves without local memory, and its groups of 64 share sums among 4 work-items.
watched "a CPU, groups of 64" CL_SHIM_TYPE=2 OCLGRIND_MAX_WGSIZE=64 $step
watched "an accelerator, groups of 16" CL_SHIM_TYPE=8 OCLGRIND_MAX_WGSIZE=16 $step --no-clblast
if [ -n "$verify" ]; then
    small="OCLGRIND_LOCAL_MEM_SIZE=32768"
    watched "a GPU, groups of 64, 32 KB of local memory" $small OCLGRIND_MAX_WGSIZE=64 $step
    watched "a GPU, groups of 1, 32 KB of local memory" $small OCLGRIND_MAX_WGSIZE=1 $step
    watched "a GPU, 4 KB of local memory" OCLGRIND_LOCAL_MEM_SIZE=4096 $step --no-clblast
    watched "a GPU" $step --no-clblast
    watched "a CPU" CL_SHIM_TYPE=2 $step --no-clblast
    watched "an accelerator" CL_SHIM_TYPE=8 $step --no-clblast
    watched "all small cases, groups of 1" $small OCLGRIND_MAX_WGSIZE=1 "$verify" --device opencl --quick
fi

sed -n 's/^kernel .*void \([a-z0-9_]*\)(.*/\1/p' "$kernels" | sort >"$work/kernels"
check "the names of the kernels in $kernels" test "$(wc -l <"$work/kernels")" = "$(grep -c '^kernel ' "$kernels")"
sort -u "$work/launches" >"$work/ran"
missing=$(comm -23 "$work/kernels" "$work/ran" | tr '\n' ' ')
check "kernels that did not run: $missing" test -z "$missing"
echo "$(comm -12 "$work/kernels" "$work/ran" | wc -l) of $(wc -l <"$work/kernels") kernels ran"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
