# shellcheck shell=bash
# common.sh: what setup.sh, test.sh and quickstart.sh share. Sourced by bash from the repository root.

# say TEXT: one line of the caller's own story.
say() { printf '%s: %s\n' "${0##*/}" "$*"; }

# fail TEXT: one line on stderr, then exit 1.
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# quietly LOG COMMAND...: appends the command's output to LOG; shows LOG's end and exits 1 when it fails.
quietly() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        printf '%s: this failed: %s\n---- the end of %s\n' "${0##*/}" "$*" "$log" >&2
        tail -n 60 "$log" >&2
        printf -- '----\n' >&2
        exit 1
    fi
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
