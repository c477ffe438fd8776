#!/bin/sh
# Installs what the tests need besides Python packages: chromium, nginx, promtool, node (Debian) and the openai npm client.
# Skips what is installed. Fails if a tool is missing afterwards.
set -eu
cd "$(dirname "$0")"

packages=""
command -v chromium >/dev/null || packages="$packages chromium fonts-dejavu-core"
command -v nginx >/dev/null || packages="$packages nginx-light"
command -v promtool >/dev/null || packages="$packages prometheus"
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
if [ -n "$packages" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $packages
fi

[ -f server/node/node_modules/openai/package.json ] || npm ci --prefix server/node --no-audit --no-fund --silent

for tool in chromium nginx promtool node npm; do
    command -v "$tool" >/dev/null || { echo "install-tools: $tool is missing" >&2; exit 1; }
done
