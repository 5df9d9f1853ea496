#!/usr/bin/env bash
# Builds the static programs and the image: build-image.sh [NAME:TAG]. README.md beside this says what must be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-localhost/millrace:$(cargo metadata --no-deps --format-version 1 | sed 's/.*"name":"millrace-control","version":"\([^"]*\)".*/\1/')}
target=$(uname -m)-unknown-linux-musl
build=${CARGO_TARGET_DIR:-target}

# ring has C in it; all else is Rust. Line tables for backtraces are 116 of 138 MB and stay at home.
export "CC_${target//-/_}=${CC:-musl-gcc}"
CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --target "$target" \
  -p millrace-control --bin millrace -p millrace-cni --bin millrace-cni

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
for program in millrace millrace-cni; do
  install -m 755 "$build/$target/release/$program" "$context/$program"
  if readelf -l "$context/$program" | grep -q INTERP; then
    echo "$program is linked dynamically: nothing in the image would run it" >&2
    exit 1
  fi
done
cp deploy/Containerfile "$context"
if command -v buildah >/dev/null; then
  buildah build --tag "$name" --file "$context/Containerfile" "$context"
else
  podman build --tag "$name" --file "$context/Containerfile" "$context"
fi
