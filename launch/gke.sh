#!/usr/bin/env bash
# Runs alignjax on a TPU slice of a GKE cluster, as a JobSet: launch/gke_jobset.yaml.
#
#   NAME=dpo IMAGE=us-docker.pkg.dev/my-project/images/alignjax:1 CLAIM=shared \
#       ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 \
#       launch/gke.sh run --config=configs/dpo_hh.py --workdir=/mnt/shared/runs/dpo
#
# image        build IMAGE from this checkout (launch/Dockerfile), and push it
# run ARG...   create the JobSet: `python -m alignjax run ARG...` on every host of the slice
# logs [ARG]   follow host WORKER; ARG are those of `kubectl logs`
# status       show the JobSet and its pods
# delete       end the run, which saves, and remove the JobSet; `run` again resumes from there
#
# NAME         of the JobSet: small letters, digits, hyphens
# ACCELERATOR  label of the node pool: tpu-v5-lite-podslice (v5e), tpu-v5p-slice, tpu-v6e-slice
# TOPOLOGY     of the slice: 4x4 (v5e, v6e), 2x2x4 (v5p)
# CHIPS        per host: 4 by default; 8 for a whole v5e or v6e machine, 1 for one chip
# CLAIM        the ReadWriteMany claim that is mounted at /mnt/shared
# SPOT=1       Spot nodes only
# NAMESPACE    of the cluster; kubectl's current one by default
# WORKER       of logs: 0 by default
# DRY_RUN=1    print the commands, one per line, and the JobSet, instead of running them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

# Pods are called NAME-slice-0-HOST-xxxxx, which must not be longer than 63.
check NAME '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' \
    'a small letter, then small letters, digits and hyphens, 40 at most'
check NAMESPACE '([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?' 'the name of a namespace'
check WORKER '[0-9]*' "a host's number"
kubectl=(kubectl)
[[ -z ${NAMESPACE:-} ]] || kubectl+=("--namespace=$NAMESPACE")
pods=jobset.sigs.k8s.io/jobset-name=$NAME

check_image() {
    check IMAGE '[A-Za-z0-9][-A-Za-z0-9._/:@]*' 'an image, such as us-docker.pkg.dev/p/r/alignjax:1'
}

image() {
    check_image
    do_it docker build --file=launch/Dockerfile --build-arg=EXTRA=tpu "--tag=$IMAGE" .
    do_it docker push "$IMAGE"
}

# The JobSet. All values but ARGS are of letters that mean nothing within YAML's quotes. ARGS comes
# last, as JSON, which is YAML, with $ doubled, because Kubernetes replaces $(NAME) in arguments.
# shellcheck disable=SC2016  # the names as the file has them
manifest() {
    local text args chips=1 side
    for side in ${TOPOLOGY//x/ }; do chips=$((chips * side)); done
    ((chips % CHIPS == 0)) \
        || die "CHIPS: wanted a divisor of the $chips chips of $TOPOLOGY, found $CHIPS"
    args=$(python3 -X utf8 -c \
        'import json, sys; print(json.dumps(sys.argv[1:], ensure_ascii=False).replace("$", "$$"))' \
        "$@")
    text=$(< launch/gke_jobset.yaml)
    if [[ ${SPOT:-0} != 1 ]]; then
        text=$(grep -v '# only with SPOT=1$' <<< "$text")
    fi
    text=${text//'${NAME}'/"$NAME"}
    text=${text//'${HOSTS}'/"$((chips / CHIPS))"}
    text=${text//'${CHIPS}'/"$CHIPS"}
    text=${text//'${ACCELERATOR}'/"$ACCELERATOR"}
    text=${text//'${TOPOLOGY}'/"$TOPOLOGY"}
    text=${text//'${CLAIM}'/"$CLAIM"}
    text=${text//'${IMAGE}'/"$IMAGE"}
    text=${text//'${ARGS}'/"$args"}
    printf '%s\n' "$text"
}

run() {
    (($#)) || die 'run: what to run? --config=... --workdir=... (on the shared folder)'
    CHIPS=${CHIPS:-4}
    check_image
    check ACCELERATOR 'tpu-[-a-z0-9]+' 'a label, such as tpu-v5-lite-podslice'
    check TOPOLOGY '[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}' 'the sides, such as 4x4'
    check CHIPS '[1-9][0-9]?' 'a number'
    check CLAIM '[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?' 'the name of a claim'
    local text
    text=$(manifest run "$@")
    # Not apply: to apply what has ended would do nothing, and say so in one word.
    do_it "${kubectl[@]}" create --validate=strict -f - <<< "$text"
    [[ ${DRY_RUN:-0} != 1 ]] || printf '%s\n' "$text"
}

logs() {
    (($#)) || set -- --tail=100 --follow
    do_it "${kubectl[@]}" logs "--container=alignjax" \
        "--selector=$pods,batch.kubernetes.io/job-completion-index=${WORKER:-0}" "$@"
}

status() {
    do_it "${kubectl[@]}" get jobset "$NAME"
    do_it "${kubectl[@]}" get pods "--selector=$pods" --output=wide
}

delete() {
    do_it "${kubectl[@]}" delete jobset "$NAME"
}

case ${1:-} in
    run | logs) "$@" ;;
    image | status | delete)
        (($# == 1)) || die "$1 takes no arguments"
        "$1"
        ;;
    *) die "image, run, logs, status or delete, not $(printf %q "${1:-}")" ;;
esac
