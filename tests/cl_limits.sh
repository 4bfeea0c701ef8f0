#!/bin/sh
# One training step on devices of every kind and with every limit, which tests/cl_shim.c makes of the one
# that is there: what is chosen for them fits, and results are right.
#
#     tests/cl_limits.sh build/test_cl build/clnet-verify
#
# The matrix products of GPUs, which a CPU does not use, compute every case of the table besides.
test_cl=$1 verify=$2
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
"$here/cl_shim.sh" "$work" || exit 1

# device NAME [VARIABLE=VALUE ..]
device() {
    name=$1
    shift
    if env LD_LIBRARY_PATH="$work" "$@" "$test_cl" --kernels "$here/../kernels.cl" --step >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        tail -n 5 "$work/log"
    fi
}

device "a GPU" CL_SHIM_TYPE=4
device "an accelerator" CL_SHIM_TYPE=8
device "a CPU, groups of 7, 2 KB" CL_SHIM_TYPE=2 CL_SHIM_GROUP=7 CL_SHIM_LOCAL=2048
device "a GPU, kernels that allow groups of 33, 1 KB" CL_SHIM_TYPE=4 CL_SHIM_KERNEL_GROUP=33 CL_SHIM_LOCAL=1024
device "a GPU, groups of 1" CL_SHIM_TYPE=4 CL_SHIM_GROUP=1

# product OPERATION: all its cases, on a device that is neither a CPU nor has CLBlast's for better.
product() {
    env LD_LIBRARY_PATH="$work" CL_SHIM_TYPE=8 "$verify" --device opencl --operation "$1" >"$work/log" 2>&1
    status=$?
    counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p' "$work/log")
    passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
    if [ $status != 0 ]; then
        failed=$((failed + 1))
        echo "FAIL the tiles of $1: exit status $status"
        tail -n 5 "$work/log"
    fi
}
product conv2d
product linear
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
