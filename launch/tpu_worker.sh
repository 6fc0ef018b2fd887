#!/usr/bin/env bash
# Runs on every worker of a slice, started by launch/tpu_vm.sh, as root, in /opt/alignjax:
#   setup [SHARED]   install Python and the pinned packages; mount SHARED at /mnt/shared
#   start ARG...     run `python -m alignjax run ARG...` as a service, until it ends by itself
#   stop             SIGTERM to the run, which saves; the service stays down
#   exec             what the service executes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_version=0.13.9
mount_point=/mnt/shared

die() {
    printf 'tpu_worker.sh: %s\n' "$1" >&2
    exit 2
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc release
    release=$(lsb_release --codename --short)
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | tee "$key" > /dev/null
    tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null \
        <<< "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main"
    apt-get update
    apt-get install --yes gcsfuse
}

mount_shared() {
    local line
    case $1 in
        gs://*)
            command -v gcsfuse > /dev/null || install_gcsfuse
            line="${1#gs://} $mount_point gcsfuse rw,_netdev,allow_other,implicit_dirs 0 0"
            ;;
        *)
            command -v mount.nfs > /dev/null || apt-get install --yes nfs-common
            line="$1 $mount_point nfs defaults,_netdev 0 0"
            ;;
    esac
    mkdir -p "$mount_point"
    grep -qsxF -- "$line" /etc/fstab || tee -a /etc/fstab > /dev/null <<< "$line"
    mountpoint --quiet "$mount_point" || mount "$mount_point"
}

setup() {
    [[ -z ${1:-} ]] || mount_shared "$1"
    command -v uv > /dev/null \
        || curl -fsSL "https://astral.sh/uv/$uv_version/install.sh" \
            | env UV_INSTALL_DIR=/usr/local/bin UV_NO_MODIFY_PATH=1 sh
    # The images' own Python is older than 3.11; uv brings one, and all packages of uv.lock.
    uv sync --frozen --extra tpu --python 3.12
    cp launch/alignjax.service /etc/systemd/system/
}

start() {
    (($#)) || die "start: the arguments of \`alignjax run\` are missing"
    # The arguments, each ended by a zero byte, which no argument can contain.
    printf '%s\0' "$@" > new.args
    if systemctl is-active --quiet alignjax; then
        cmp --quiet new.args run.args || die "another run is under way here; stop it first"
        echo "tpu_worker.sh: this run is under way already"
        return
    fi
    mv new.args run.args
    systemctl daemon-reload
    systemctl reset-failed alignjax 2> /dev/null || true
    systemctl enable --now alignjax
}

case ${1:-} in
    setup | start) "$@" ;;
    stop) systemctl disable --now alignjax ;;
    exec)
        args=()
        while IFS= read -r -d '' arg; do args+=("$arg"); done < run.args
        exec .venv/bin/python -m alignjax run "${args[@]}"
        ;;
    *) die "setup, start, stop or exec, not '${1:-}'" ;;
esac
