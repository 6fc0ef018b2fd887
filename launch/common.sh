#!/usr/bin/env bash
# Functions that gke.sh and tpu_vm.sh share; they source it from the root of the checkout.
set -euo pipefail

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

# check VARIABLE REGEX WHAT-IS-WANTED
check() {
    local value=${!1:-}
    [[ $value =~ ^($2)$ ]] || die "$1: wanted $3, found $(printf %q "$value")"
}

# do_it COMMAND...: runs the command; with DRY_RUN=1 prints it instead
do_it() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        local line
        printf -v line '%q ' "$@"
        printf '%s\n' "${line% }"
    else
        "$@"
    fi
}
