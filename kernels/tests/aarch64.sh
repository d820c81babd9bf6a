#!/usr/bin/env bash
# Runs the conformance suite for aarch64 on a machine that is none: every NEON path against the reference, emulated.
# It says nothing of speed. Takes about twenty minutes.
#
#   kernels/tests/aarch64.sh [FILTER...]       arguments go to the test program
#
# Needs Debian or Ubuntu as root for what is missing: qemu-user-static, a cross linker, and where rustup has no standard
# library for the target, Debian's compiler (rustc-web) with its own, unpacked below target/ and not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=aarch64-unknown-linux-gnu
tools=$PWD/target/aarch64-tools
version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

fetch() { # Debian packages of a machine's kind, unpacked below $tools
    local package
    mkdir -p "$tools"
    for package in "$@"; do
        (cd "$tools" && apt-get download "$package" >/dev/null 2>&1) || { echo "no package $package to be had" >&2; exit 1; }
    done
    for package in "$tools"/*.deb; do dpkg -x "$package" "$tools" && rm "$package"; done
}

if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross
fi
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    if [ ! -x "$tools/usr/bin/rustc" ]; then
        dpkg --add-architecture arm64
        apt-get update -qq
        newest=$(apt-cache search --names-only '^libstd-rust-web-[0-9.]*$' | sed 's/ .*//' | sort -V | tail -1)
        llvm=$(apt-cache depends "$newest" | sed -n 's/.*Depends: \(libllvm[0-9.]*\)$/\1/p')
        apt-get install -y -qq --no-install-recommends libz3-4 libedit2
        fetch rustc-web:amd64 "$newest:amd64" "$llvm:amd64" libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64
    fi
    export RUSTC=$tools/usr/bin/rustc LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu
    found=$("$RUSTC" --version | sed 's/rustc \([0-9.]*\).*/\1/')
    if [ "$(printf '%s\n' "$version" "$found" | sort -V | head -1)" != "$version" ]; then
        echo "this needs Rust $version, and Debian's for $target is $found: rustup target add $target" >&2
        exit 1
    fi
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
export CARGO_TARGET_DIR=$PWD/target/aarch64
exec cargo test --package sconce-kernels --test conformance --target "$target" -- "$@"
