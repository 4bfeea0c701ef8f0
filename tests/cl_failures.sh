#!/bin/sh
# Every call of OpenCL fails in turn, in the whole life of a context: its making, a training step, its
# end. tests/cl_shim.c stands before the real library.
#
#     tests/cl_failures.sh build/test_cl [EVERY]      EVERY: only each EVERY-th call (default 1)
set -e
program=$1
every=${2:-1}
here=$(dirname "$0")
shim=$(mktemp -d)
trap 'rm -rf "$shim"' EXIT
"$here/cl_shim.sh" "$shim"
LD_LIBRARY_PATH="$shim" "$program" --kernels "$here/../kernels.cl" --failures "$every"
