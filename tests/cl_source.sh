#!/bin/sh
# What has to hold of the text of kernels.cl and clnet_cl.h: nothing that gives up exactness or repeats
# differently, the same kernels in both, and no call of OpenCL whose code nobody looks at.
#
#     tests/cl_source.sh [FOLDER]      the folder with both files (default: the one above tests/)
folder=${1:-$(dirname "$0")/..}
passed=0 failed=0

# none TEXT LINES: there are no such lines.
none() {
    if [ -z "$2" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $1:"
        echo "$2" | head -n 5
    fi
}

# The text of a file without its comments, each line with its number.
text() { sed 's,//.*,,' "$folder/$1" | grep -n ''; }

none "functions of less exactness in kernels.cl" \
    "$(text kernels.cl | grep -E '\b(native|half|fast)_[a-z0-9]+ *\(')"
none "atomics in kernels.cl" "$(text kernels.cl | grep -E '\batom(ic)?_')"
none "double in kernels.cl, which few devices have" "$(text kernels.cl | grep -E '\bdouble[0-9]*\b')"
none "contraction in kernels.cl" "$(grep -n 'FP_CONTRACT' "$folder/kernels.cl" | grep -v 'pragma OPENCL FP_CONTRACT OFF$')"
none "FP_CONTRACT is not OFF in kernels.cl" \
    "$(grep -q '^#pragma OPENCL FP_CONTRACT OFF$' "$folder/kernels.cl" || echo "no such pragma")"
none "options that relax arithmetic in clnet_cl.h" \
    "$(text clnet_cl.h | grep -E -e '-cl-(fast|finite|unsafe|mad|no-signed|single|denorms|opt)')"

# Names of kernels: those of kernels.cl, and those that clnet_cl.h makes.
none "kernels that are in one of kernels.cl and clnet_cl.h" "$(
    {
        sed -n 's/^kernel .*void \([a-z0-9_]*\)(.*/\1/p' "$folder/kernels.cl"
        sed -n '/define CLNET__CL_KERNELS/,/[^\\]$/p' "$folder/clnet_cl.h" | grep -o 'X([a-z0-9_]*)' | sed 's/X(\(.*\))/\1/'
    } | sort | uniq -u
)"

# A call is looked at where it is part of something: an argument, a comparison, an assignment. It is not
# where it begins a statement, that is, where the line before has ended one.
none "calls in clnet_cl.h whose code is ignored" "$(text clnet_cl.h | awk '
    {
        line = $0
        sub(/^[0-9]+: */, "", line)
        if (line == "" || line ~ /^#/) next
        if (line ~ /^(\(void\) *)?(cl->)?(api|blast)(->|\.)(cl|sgemm)[a-zA-Z]*\(/ && before ~ /[;{}:]$/) print $0
        before = line
    }')"

# A code that is kept in `code` is looked at within the lines that follow the call.
none "codes in clnet_cl.h that nobody looks at" "$(text clnet_cl.h | awk '
    function over() { if (open != "") print open; open = "" }
    {
        line = $0
        sub(/^[0-9]+:/, "", line)
        looked = line ~ /(code +(==|!=|\?)|, code\)|return code)/
        if (looked) open = ""
        if (line ~ /^}/) over()
        if (line ~ /(&code\)|code = cl->|code =$)/ && !looked) { over(); open = $0 }
    }
    END { over() }')"

echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
