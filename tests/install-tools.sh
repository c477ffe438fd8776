#!/bin/sh
# Installs what the tests need besides Python packages: chromium, nginx, promtool and node (Debian), and the clients of
# tests/server/clients (npm, PyPI). Skips what is installed. Fails if a tool is missing afterwards.
set -eu
cd "$(dirname "$0")/.."

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

# Each folder keeps a copy of the list it was installed from.
clients=tests/server/clients
if ! cmp -s $clients/node/package-lock.json $clients/node/node_modules/installed; then
    npm ci --prefix $clients/node --no-audit --no-fund --silent
    cp $clients/node/package-lock.json $clients/node/node_modules/installed
fi
if ! cmp -s $clients/python/requirements.txt .cache/clients/installed; then
    rm -rf .cache/clients
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile \
        --target .cache/clients --requirement $clients/python/requirements.txt
    cp $clients/python/requirements.txt .cache/clients/installed
fi

for tool in chromium nginx promtool node npm; do
    command -v "$tool" >/dev/null || { echo "install-tools: $tool is missing" >&2; exit 1; }
done
