#!/bin/sh
# Builds deploy/Dockerfile on a local base image, without a registry, as localhost/ideoserve:test-$VARIANT (cpu or cuda).
# Needs root: rootless builds need privileges that are usually missing in a container.
set -eu
cd "$(dirname "$0")/../.."
base=localhost/ideoserve-base:bookworm
variant=${VARIANT:-cpu}
image=localhost/ideoserve:test-$variant

packages=""
for tool in buildah podman runc debootstrap; do
    command -v "$tool" >/dev/null || packages="$packages $tool"
done
if [ -n "$packages" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export BUILDAH_ISOLATION=chroot

# Debian 12 has the same Python version as the default base image of the Dockerfile.
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/root" >/dev/null
    container=$(buildah from scratch)
    buildah add -q "$container" "$folder/root" / >/dev/null
    buildah config --label org.opencontainers.image.title=ideoserve-base "$container"
    buildah commit -q --rm "$container" "$base" >/dev/null
fi

# Mounts the certificates and the local wheels of the host during the build.
certificates=/etc/ssl/certs/ca-certificates.crt
set -- --volume "$certificates:$certificates:ro"
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    set -- "$@" --volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro" --build-arg "TORCH_CPU_WHEELS=$PIP_FIND_LINKS"
fi

started=$(date +%s)
buildah bud --pull-never --isolation chroot --network host --layers --format docker \
    --build-arg "BASE_IMAGE=$base" --build-arg "VARIANT=$variant" "$@" \
    --ignorefile deploy/Dockerfile.dockerignore --file deploy/Dockerfile --tag "$image" .
echo "built in $(($(date +%s) - started)) s"
