# shellcheck shell=bash
# common.sh: what setup.sh, test.sh and quickstart.sh share. Sourced by bash from the repository root.

# say TEXT: one line of the caller's own story.
say() { printf '%s: %s\n' "${0##*/}" "$*"; }

# fail TEXT: one line on stderr, then exit 1.
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Every long command runs as a child that the shell waits for: bash handles a signal only between commands, and
# whoever ends the script must not leave a training or a compiler behind.
child=
scratch= # a file that goes when the script is interrupted
interrupted() {
    trap '' INT TERM
    [ -z "$child" ] || kill "$child" 2>/dev/null || true
    wait
    [ -z "$scratch" ] || rm -f "$scratch"
    printf '\n%s: interrupted; what is installed and built is kept, run it again\n' "${0##*/}" >&2
    trap - "$1"
    kill -s "$1" $$
}
trap 'interrupted INT' INT
trap 'interrupted TERM' TERM

# run COMMAND...: in the foreground as far as anyone can tell; returns its status.
run() {
    "$@" &
    child=$!
    local status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# drawing: whether stderr is a terminal that can redraw a line.
drawing() { [ -t 2 ] && [ "${TERM:-dumb}" != dumb ]; }

# state LOG: the log's last line; of apt-get and dpkg with the share of the packages' three stages (fetched,
# unpacked, set up) that is done. The builders' lines count by themselves: [12/60].
state() {
    awk '/ newly installed/ { total = $1 + $3 }
        /^Get:/ && total { done++ }
        /^(Unpacking|Setting up) / { done++ }
        /[^[:space:]]/ { last = $0 }
        END {
            gsub(/[^[:print:]]/, "", last)
            if (total) printf "%d%% ", 100 * (done > 3 * total ? 1 : done / (3 * total))
            print last
        }' "$1"
}

# watch LOG: while `child` runs, shows for how long it has and where it is: on a terminal in one line that is redrawn,
# elsewhere a plain line every 15 seconds.
watch() {
    local began=$SECONDS next=15 pause=0.1 seconds columns line
    while kill -0 "$child" 2>/dev/null; do
        sleep $pause
        pause=0.5
        seconds=$((SECONDS - began))
        if drawing; then
            read -r _ columns < <(stty size <&2 2>/dev/null) || columns=0
            [ "$columns" -gt 0 ] || columns=80
            line=$(printf '%d:%02d  %s' $((seconds / 60)) $((seconds % 60)) "$(state "$1")")
            printf '\r\033[K%s' "${line:0:columns-1}" >&2
        elif [ "$seconds" -ge "$next" ]; then
            next=$((seconds + 15))
            line=$(printf '%d:%02d  %s' $((seconds / 60)) $((seconds % 60)) "$(state "$1")")
            printf '%s\n' "${line:0:79}" >&2
        fi
    done
    ! drawing || printf '\r\033[K' >&2
}

# quietly LOG COMMAND...: appends the command's output to LOG; shows LOG's end and exits 1 when it fails.
quietly() {
    local log=$1 status=0
    shift
    mkdir -p "$(dirname "$log")"
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 &
    child=$!
    watch "$log"
    wait "$child" || status=$?
    child=
    [ "$status" -ne 0 ] || return 0
    printf '%s: this failed: %s\n---- the end of %s\n' "${0##*/}" "$*" "$log" >&2
    tail -n 60 "$log" >&2
    printf -- '----\n' >&2
    exit 1
}

# build DIR [OPTION...]: configures DIR with CMake and builds it on all cores, output in DIR/build.log.
# A folder that was configured before keeps its generator.
build() {
    local dir=$1 log=$1/build.log generator=()
    shift
    [ -f "$dir/CMakeCache.txt" ] || generator=(-G Ninja)
    mkdir -p "$dir"
    : >"$log"
    quietly "$log" cmake -S . -B "$dir" "${generator[@]}" "$@"
    quietly "$log" cmake --build "$dir" --parallel "$(nproc)"
}
