#!/bin/sh
# Runs every test given as an argument and adds up their closing lines, "N passed, N failed, N skipped".
# A test that ends without one counts as failed. Arguments: commands, one word or quoted.
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for test in "$@"; do
    name=$(basename "${test%% *}")
    start=$(date +%s)
    $test >"$log" 2>&1
    status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ -z "$line" ]; then
        # Examples say nothing of the kind: their exit status is the test.
        if [ $status = 0 ] && [ "${name#0}" != "$name" ]; then
            line="1 passed, 0 failed, 0 skipped"
        else
            line="0 passed, 1 failed, 0 skipped"
        fi
    elif [ $status != 0 ] && [ "${line#*, 0 failed}" != "$line" ]; then
        line="${line%% passed*} passed, 1 failed, 0 skipped" # it counted nothing but did not end well
    fi
    set -- $line
    passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5))
    printf '%-24s %s (%s s)\n' "$name" "$line" "$(($(date +%s) - start))"
    if [ "$3" != 0 ]; then
        grep -E '^(FAIL|.*ERROR: |.*runtime error)' "$log" | head -n 20
        [ $status = 0 ] || { echo "  exit status $status; its last lines:"; tail -n 5 "$log"; }
    fi
    grep '^SKIP' "$log" | head -n 5
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
