#!/bin/sh
# Every kernel under Oclgrind (Debian: oclgrind), with its search for data races and for uninitialised
# memory: with 32 KB of local memory and work-groups of up to 64, and of 1. Its log has to stay
# empty; the exit status of a program under Oclgrind says nothing about it. Takes some minutes.
#
#     tests/cl_oclgrind.sh build/test_cl
#
# Oclgrind 21.10 knows no `freeze` instruction, which LLVM makes of a quotient and a remainder: hence
# -cl-opt-disable. It also forgets what was initialised before when a part of a buffer is written:
# hence tests/cl_shim.c, which writes whole buffers.
program=$1
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0
icd=$(ls /usr/lib/oclgrind/liboclgrind-rt-icd.so /usr/lib/*/oclgrind/liboclgrind-rt-icd.so 2>/dev/null | head -n 1)
if [ -z "$icd" ]; then
    echo "SKIP Oclgrind is not installed"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
echo "$icd" > "$work/oclgrind.icd"
mkdir "$work/shim"
${CC:-cc} -std=c99 -O1 -shared -fPIC "$here/cl_shim.c" -o "$work/shim/libOpenCL.so.1" -ldl || exit 1

# check NAME [VARIABLE=VALUE ..]
check() {
    name=$1
    shift
    log="$work/log"
    : > "$log"
    env LD_LIBRARY_PATH="$work/shim" CL_SHIM_WHOLE_WRITES=1 OCL_ICD_VENDORS="$work" OCLGRIND_LOG="$log" \
        OCLGRIND_DATA_RACES=1 OCLGRIND_UNINITIALIZED=1 OCLGRIND_BUILD_OPTIONS=-cl-opt-disable "$@" \
        "$program" --kernels "$here/../kernels.cl" --step --no-clblast > "$work/out" 2>&1
    status=$?
    if [ $status -eq 0 ] && [ ! -s "$log" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: exit status $status"
        cat "$work/out"
        head -n 40 "$log"
    fi
}

check "work-groups of 64" OCLGRIND_LOCAL_MEM_SIZE=32768 OCLGRIND_MAX_WGSIZE=64
check "work-groups of 1" OCLGRIND_LOCAL_MEM_SIZE=32768 OCLGRIND_MAX_WGSIZE=1
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
