#!/bin/sh
# Compiles steering.bpf.c and compares the result with the checked-in steering.bpf.o.
#
#   rebuild-steering.sh           exit 0 if they are the same, 1 if not (CI calls it so)
#   rebuild-steering.sh --write   replace the checked-in object
#
# Needs clang and llvm-strip; CLANG and LLVM_STRIP name others. The object was made with clang 14 (Debian 12):
# another version may choose other instructions, which this script then reports as a difference of the compiler.
set -eu
cd "$(dirname "$0")"
clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}
command -v "$strip" >/dev/null 2>&1 || strip=llvm-strip-14
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
# The debug information is needed for the map definitions (BTF); the directory must not leak into it.
"$clang" -O2 -g -Wall -Werror -target bpf -mcpu=v3 -fdebug-compilation-dir=. -c steering.bpf.c -o "$fresh"
"$strip" -g "$fresh"
if [ "${1:-}" = --write ]; then
    cp "$fresh" steering.bpf.o
    chmod 644 steering.bpf.o
    echo "wrote steering.bpf.o"
elif cmp -s "$fresh" steering.bpf.o; then
    echo "steering.bpf.o is what steering.bpf.c compiles to"
else
    echo "steering.bpf.o differs from what steering.bpf.c compiles to with $("$clang" --version | head -n 1)" >&2
    exit 1
fi
