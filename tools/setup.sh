# Sourced by quickstart and check: packages, builds, stages. Needs a POSIX shell and nothing else.
#
# shellcheck shell=sh disable=SC2034,SC2086
# Every stage prints a line with the time of day and the seconds since the start, so that a log tells where time went.

set -eu
cd "$(dirname "$0")"

PACKAGES="gcc cmake ninja-build pkg-config libjansson-dev libpcre2-dev libyaml-dev zlib1g-dev libzstd-dev libcmocka-dev libutf8proc-dev"
PACKAGES_ALL="clang clang-format clang-tidy llvm man-db groff python3 python3-venv libc6-dev"
PACKAGES_NEON="gcc-aarch64-linux-gnu qemu-user"
# What runs under emulation: the kernels, the cache, the loop and the engine; what is long there and the same everywhere
# is left out.
NEON_TESTS="^(base|tensor|model)\\.|engine\\.(bits|generate|golden_forward)"
STARTED=$(date +%s)

if [ -z "${JOBS:-}" ]; then
    JOBS=$(nproc 2>/dev/null || echo 2)
fi
export CTEST_PARALLEL_LEVEL="${CTEST_PARALLEL_LEVEL:-$JOBS}"

stage() {
    printf '== %s (+%ss) %s\n' "$(date +%H:%M:%S)" "$(($(date +%s) - STARTED))" "$*"
}

stop() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# True when the package is installed, by the word of the package manager.
have_package() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'
}

# install_packages NAME...: installs those that are missing, or says what to install and stops.
install_packages() {
    if ! have apt-get || ! have dpkg-query; then
        # Not Debian: the build itself says what is missing; here only the names are known.
        if have cmake && have ninja && have pkg-config && pkg-config --exists jansson libpcre2-8 yaml-0.1 zlib libzstd; then
            return 0
        fi
        stop "this is not Debian or Ubuntu; install what these packages hold there, then run it again: $*"
    fi
    missing=""
    for package in "$@"; do
        have_package "$package" || missing="$missing $package"
    done
    if [ -z "$missing" ]; then
        return 0
    fi
    stage "installing:$missing"
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || stop "not root and no sudo; install by hand:$missing"
        as_root="sudo"
        if [ "${CI:-}" = true ]; then
            as_root="sudo -n"
        fi
    fi
    # shellcheck disable=SC2086
    if ! $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends $missing >/dev/null 2>&1; then
        # The lists of a fresh machine are empty.
        $as_root apt-get update -qq || stop "apt-get update failed; is there a network?"
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends $missing >/dev/null ||
            stop "apt-get could not install:$missing"
    fi
}

# unpack_arm64 DIRECTORY PACKAGE...: the packages for arm64, with all that they need, unpacked there for a cross compiler
# and an emulator. Nothing is installed: a foreign architecture of the system's own would tie both architectures'
# libraries to one version, and upgrade what is there. Fails where the packages cannot be had.
unpack_arm64() {
    root=$1
    shift
    if [ "$(cat "$root/packages" 2>/dev/null)" = "$*" ]; then
        return 0
    fi
    stage "unpacking for arm64: $*"
    rm -rf "$root" "$root.apt"
    mkdir -p "$root" "$root.apt/lists/partial" "$root.apt/archives/partial"
    : >"$root.apt/status"
    apt_arm64 update || return 1
    apt_arm64 install -y --no-install-recommends --download-only "$@" || return 1
    for package in "$root.apt/archives"/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
    [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
    rm -rf "$root.apt"
    echo "$*" >"$root/packages"
}

# apt-get for arm64 with lists, archives and status of its own, beside $root.
apt_arm64() {
    apt-get -qq -o Dir::State="$PWD/$root.apt" -o Dir::State::status="$PWD/$root.apt/status" -o Dir::Cache="$PWD/$root.apt" \
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 "$@" >>"$root.log" 2>&1
}

# build PRESET [CMAKE ARGUMENTS]: configures and builds; quiet unless it fails.
build() {
    preset=$1
    shift
    stage "build $preset"
    mkdir -p build
    log=build/$preset.log
    if ! { cmake --preset "$preset" "$@" && cmake --build --preset "$preset" -j "$JOBS"; } >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        stop "the build of $preset failed; the whole log is in $log"
    fi
}

# Where the tests write: they sync models of up to 100 MB, which memory takes in a tenth of a slow disk's time.
test_scratch() {
    if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')" -gt 2000000 ]; then
        echo /dev/shm
    else
        echo "${TMPDIR:-/tmp}"
    fi
}

# test_preset PRESET [CTEST ARGUMENTS]: runs the suite of a built preset.
test_preset() {
    preset=$1
    shift
    stage "tests of $preset"
    TMPDIR=$(test_scratch) ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
}
