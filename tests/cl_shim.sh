#!/bin/sh
# Puts the libraries of tests/cl_shim.c and tests/cl_blast.c into a folder, for LD_LIBRARY_PATH.
#
#     tests/cl_shim.sh FOLDER
set -e
here=$(dirname "$0")
${CC:-cc} -std=c99 -O1 -shared -fPIC "$here/cl_shim.c" -o "$1/libOpenCL.so.1" -ldl
${CC:-cc} -std=c99 -O2 -shared -fPIC "$here/cl_blast.c" -o "$1/libclblast.so.1" -ldl
