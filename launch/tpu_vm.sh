#!/usr/bin/env bash
# Runs alignjax on a Cloud TPU slice: `gcloud` queued resources, every worker at once.
#
#   NAME=dpo ZONE=us-west4-a ACCELERATOR=v5litepod-16 SHARED=10.0.0.2:/share \
#       launch/tpu_vm.sh all --config=configs/dpo_hh.py --workdir=/mnt/shared/runs/dpo
#
# all ARG...   create, setup, run; again after a preemption; delete when the run has ended or failed
# create       request the slice; it becomes ACTIVE when there is capacity (see status)
# setup        copy this checkout (HEAD and changes to tracked files), install, mount SHARED
# run ARG...   start `python -m alignjax run ARG...` on all workers, detached; it restarts itself
# logs [ARG]   follow the run on worker WORKER; ARG are journalctl's
# status       show the queued resource, and the run on all workers
# stop         SIGTERM: the run saves and stops; the slice stays, and costs money
# delete       end the run and delete the slice
#
# NAME            of the queued resource and the slice: small letters, digits, hyphens
# ACCELERATOR     as Google names it: v5litepod-16, v5p-32, v6e-64
# RUNTIME         image of the VMs; the one for ACCELERATOR by default
# PROJECT, ZONE   gcloud's own settings by default
# SPOT=1          cheaper, and can be preempted at any time; RESERVED=1 uses a reservation
# SERVICE_ACCOUNT the VMs' identity; gcloud's default account otherwise
# SHARED          the folder that all workers share, mounted at /mnt/shared: an NFS export
#                 (Filestore), host:/export, or gs://bucket with a hierarchical namespace
# WORKER          of logs: 0 by default, or all
# POLL_SECONDS    between two queries of `all`: 30
# DRY_RUN=1       print the commands instead of running them, one per line
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

check NAME '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' \
    'a small letter, then small letters, digits and hyphens, 63 at most'
check PROJECT '(([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9])?' "a project's id"
check ZONE '([a-z]+-[a-z]+[0-9]+-[a-z])?' 'a zone, such as us-west4-a'
check SHARED '(gs://[a-z0-9][-_.a-z0-9]+|[A-Za-z0-9][-.A-Za-z0-9]*:/[-_./A-Za-z0-9]+)?' \
    'host:/export or gs://bucket'
check WORKER '(all|[0-9]+)?' "a worker's number, or all"

place=("--quiet")
[[ -z ${PROJECT:-} ]] || place+=("--project=$PROJECT")
[[ -z ${ZONE:-} ]] || place+=("--zone=$ZONE")
tpus=(gcloud compute tpus)

# on WORKER COMMAND...: runs the command on a worker, through ssh and its shell
on() {
    local worker=$1 line
    shift
    printf -v line '%q ' "$@"
    do_it "${tpus[@]}" tpu-vm ssh "$NAME" "${place[@]}" "--worker=$worker" "--command=${line% }"
}

worker_script() {
    on all sudo bash /opt/alignjax/launch/tpu_worker.sh "$@"
}

# Prints systemd's state of the run, one line per worker; the service need not exist.
properties=LoadState,ActiveState,ExecMainStatus,ExecMainStartTimestampMonotonic
service=(sh -c "echo \$(systemctl show alignjax --property=$properties)")

create() {
    check ACCELERATOR 'v[0-9]+[a-z]*-[0-9]+' 'a type, such as v5litepod-16'
    check SERVICE_ACCOUNT '([^@[:space:]]+@[^@[:space:]]+)?' "an account's e-mail address"
    local runtime=${RUNTIME:-}
    if [[ -z $runtime ]]; then
        case $ACCELERATOR in
            v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
            v5p-*) runtime=v2-alpha-tpuv5 ;;
            v6e-*) runtime=v2-alpha-tpuv6e ;;
            *) runtime=tpu-ubuntu2204-base ;;
        esac
    fi
    local flags=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$runtime")
    [[ ${SPOT:-0} != 1 ]] || flags+=(--spot)
    [[ ${RESERVED:-0} != 1 ]] || flags+=(--reserved)
    [[ -z ${SERVICE_ACCOUNT:-} ]] || flags+=("--service-account=$SERVICE_ACCOUNT")
    do_it "${tpus[@]}" queued-resources create "$NAME" "${place[@]}" "${flags[@]}"
}

setup() {
    local tree
    tree=$(git stash create) # the changes to tracked files as a commit; nothing if there are none
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    do_it git archive --format=tar.gz "--output=$archive" "${tree:-HEAD}"
    do_it "${tpus[@]}" tpu-vm scp "$archive" "$NAME:alignjax.tar.gz" "${place[@]}" --worker=all
    on all sudo mkdir -p /opt/alignjax
    on all sudo tar -xzf alignjax.tar.gz -C /opt/alignjax --no-same-owner
    worker_script setup ${SHARED:+"$SHARED"}
}

run() {
    (($#)) || die 'run: what to run? --config=... --workdir=... (on the shared folder)'
    worker_script start "$@"
}

logs() {
    (($#)) || set -- --lines=100 --follow
    on "${WORKER:-0}" sudo journalctl --unit=alignjax --output=cat "$@"
}

stop() {
    worker_script stop
}

status() {
    do_it "${tpus[@]}" queued-resources describe "$NAME" "${place[@]}"
    on all "${service[@]}"
}

delete() {
    do_it "${tpus[@]}" queued-resources delete "$NAME" "${place[@]}" --force
}

# Prints the state of the queued resource, and once it is active that of the run; MISSING if there
# is no such resource.
look() {
    local state
    if ! state=$("${tpus[@]}" queued-resources describe "$NAME" "${place[@]}" \
        '--format=value(state.state)' 2>&1); then
        case $state in
            *NOT_FOUND* | *"not found"*) echo MISSING ;;
            *) echo "unknown: ${state##*$'\n'}" ;;
        esac
        return
    fi
    state=${state##*$'\n'}
    [[ $state != ACTIVE ]] || state+=" $(running)"
    # A preempted slice can stay ACTIVE for a while.
    [[ $state != *unreachable ]] || state+=" $("${tpus[@]}" tpu-vm describe "$NAME" "${place[@]}" \
        '--format=value(state)' || true)"
    printf '%s\n' "$state"
}

# Prints the state of the run on all workers: new, running, ended CODE; unreachable when ssh fails.
# If the run failed on one worker and is not restarted, it has ended; if it succeeded on one, it is
# still running until it has ended on all.
running() {
    local lines line code='' state=unreachable
    lines=$(on all "${service[@]}") || lines=
    while read -r line; do
        case $line in
            *LoadState=not-found* | *TimestampMonotonic=0*) state=new ;;
            *ActiveState=failed*)
                code=${line##*ExecMainStatus=}
                code=${code%%[!0-9]*}
                ;;
            *ActiveState=inactive*) [[ $state != unreachable ]] || state='ended 0' ;;
            *ActiveState=*) [[ $state == new ]] || state=running ;;
        esac
    done <<< "$lines"
    [[ -z $code ]] || state="ended $((code ? code : 1))"
    printf '%s\n' "$state"
}

# failure WHAT CODE: counts failures in a row, which may be the network's; gives up after 20
failure() {
    failed=$((failed + 1))
    if ((failed == 20 || $2 == 2)); then
        echo "tpu_vm.sh: $1 failed; the slice, if there is one, is still there" >&2
        exit "$2"
    fi
}

# attempt PART ARG...: runs one of the commands in a process of its own, because `set -e` has no
# effect inside a condition
attempt() {
    local code=0
    bash launch/tpu_vm.sh "$@" || code=$?
    if ((code)); then
        failure "$1" "$code"
        return 1
    fi
    failed=0
}

all() {
    (($#)) || die 'all: what to run? --config=... --workdir=... (on the shared folder)'
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        create
        setup
        run "$@"
        on all "${service[@]}"
        delete
        return
    fi
    local state before='' failed=0
    while true; do
        state=$(look)
        [[ $state == "$before" ]] || echo "$(date '+%F %T') $NAME: $state"
        before=$state
        case $state in
            MISSING) attempt create || true ;;
            # Preempted: it never becomes active again.
            SUSPENDED | *PREEMPTED | *TERMINATED) attempt delete || true ;;
            FAILED)
                echo "tpu_vm.sh: the slice could not be created; 'launch/tpu_vm.sh status' says why" >&2
                exit 1
                ;;
            'ACTIVE new') { attempt setup && attempt run "$@"; } || true ;;
            'ACTIVE ended '*)
                bash launch/tpu_vm.sh delete
                exit "${state##* }"
                ;;
            unknown* | *unreachable*) failure "a look at the slice" 1 ;;
            *) failed=0 ;;
        esac
        sleep "${POLL_SECONDS:-30}"
    done
}

case ${1:-} in
    all | run | logs) "$@" ;;
    create | setup | status | stop | delete)
        (($# == 1)) || die "$1 takes no arguments"
        "$1"
        ;;
    *) die "all, create, setup, run, logs, status, stop or delete, not $(printf %q "${1:-}")" ;;
esac
