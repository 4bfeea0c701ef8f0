# What the tests of programs share. Sourced before the first check, as `. "$(dirname "$0")/checks.sh"`,
# from a script that has set `program`, the one that `works` and `refuses` run.
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); }

# fail TEXT [FILE]: counts it, and shows how the file begins (default: err).
fail() {
    failed=$((failed + 1))
    echo "FAIL $1"
    head -n 5 "${2:-err}" 2>/dev/null | sed 's/^/    /'
}

# check TEXT COMMAND..: the command has to succeed.
check() {
    text=$1
    shift
    if "$@" >check.log 2>&1; then pass; else fail "$text" check.log; fi
}

# ends STATUS TEXT WORDS COMMAND..: this exit status, nothing but one line on standard error, which has
# WORDS, a pattern.
ends() {
    wanted=$1 text=$2 words=$3
    shift 3
    "$@" >out.log 2>err.log
    status=$?
    if [ $status = "$wanted" ] && [ "$(wc -l <err.log)" = 1 ] && grep -q -e "$words" err.log; then
        pass
    else
        fail "$text: exit status $status, expected $wanted and \"$words\" in one line" err.log
    fi
}
refused() { ends 2 "$@"; }
fails() { ends 1 "$@"; }

# works TEXT ARGUMENT..: the program ends well; what it says is left in out and err.
works() {
    text=$1
    shift
    if "$program" "$@" >out 2>err; then pass; else fail "$text: $(basename "$program") $*"; fi
}

# refuses STATUS WORD ARGUMENT..: the program ends with this status, and with nothing but one line on
# standard error that has the word in it.
refuses() {
    wanted=$1 word=$2
    shift 2
    "$program" "$@" >out 2>err
    status=$?
    if [ $status -eq "$wanted" ] && [ "$(wc -l <err)" -eq 1 ] && grep -qF -e "$word" err; then
        pass
    else
        fail "$(basename "$program") $*: status $status, expected $wanted and one line with: $word"
    fi
}

# The last line of a script.
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
}
