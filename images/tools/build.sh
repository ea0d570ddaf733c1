#!/bin/bash
# Builds tools from source through the Go module proxy, as the module folders
# beside this script pin them: build.sh containerd|nerdctl|cosign ...
#
# The programs land in tools/bin of the cache ($OSCTL_CACHE, or .cache at the
# top of the repository). A tool whose inputs have not changed is not built
# again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${OSCTL_CACHE:-$here/../../.cache}

mkdir -p "$cache/tools/bin"
cache=$(cd "$cache" && pwd)

# build TOOL [GO BUILD FLAG...] builds every program that TOOL's module names
# in its tool directives.
build() {
	local tool=$1 key part programs
	shift
	key=$({
		cd "$here/$tool"
		go version
		echo "$@"
		find . -type f | LC_ALL=C sort | xargs sha256sum
	} | sha256sum | cut -c1-16)

	# One build of a tool at a time; the second finds it done.
	exec 9>"$cache/tools/$tool.lock"
	flock 9
	if [[ $(cat "$cache/tools/$tool.key" 2>/dev/null) == "$key" ]]; then
		return
	fi
	echo "building $tool from source" >&2
	part=$cache/tools/$tool.part
	rm -rf "$part"
	mkdir -p "$part"
	mapfile -t programs < <(cd "$here/$tool" && go list tool)
	(cd "$here/$tool" && CGO_ENABLED=0 GOFLAGS='' GOWORK=off \
		go build -trimpath -buildvcs=false -ldflags '-s -w' "$@" -o "$part/" "${programs[@]}")
	mv -f "$part"/* "$cache/tools/bin/"
	rmdir "$part"
	echo "$key" >"$cache/tools/$tool.key"
}

if (($# == 0)); then
	echo "usage: build.sh containerd|nerdctl|cosign ..." >&2
	exit 2
fi
for tool in "$@"; do
	case $tool in
	containerd) build containerd -tags no_btrfs,no_devmapper,no_zfs ;;
	nerdctl | cosign) build "$tool" ;;
	*)
		echo "build.sh: no such tool: $tool" >&2
		exit 2
		;;
	esac
done
