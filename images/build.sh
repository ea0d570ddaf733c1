#!/bin/bash
# Makes the tree of one release of the reference image, for `osctl build`:
#
#	build.sh --version 1.0 --osctl bin/osctl --policy FILE --key FILE.pub \
#		[--overlay DIR]... [--remove PATTERN]... OUT
#
# OUT is the folder to make; it must not exist. The files of an overlay replace
# those of the image, patterns of what to remove are as seen from the image's root:
# both make releases that differ, good ones and bad ones. Needs root, for the owners of
# files. What is slow comes from the cache (see base.sh and tools/build.sh).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${OSCTL_CACHE:-$here/../.cache}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

usage() {
	echo "build.sh: $1" >&2
	sed -n 's/^#\t/\t/p' "${BASH_SOURCE[0]}" >&2
	exit 2
}

version='' osctl='' policy='' out=''
keys=() overlays=() removals=()
while (($#)); do
	case $1 in
	--version | --osctl | --policy | --key | --overlay | --remove)
		(($# > 1)) || usage "$1 needs a value"
		case $1 in
		--version) version=$2 ;;
		--osctl) osctl=$2 ;;
		--policy) policy=$2 ;;
		--key) keys+=("$2") ;;
		--overlay) overlays+=("$2") ;;
		--remove) removals+=("$2") ;;
		esac
		shift 2
		;;
	-*) usage "unknown option $1" ;;
	*)
		[[ -z $out ]] || usage "more than one OUT"
		out=$1
		shift
		;;
	esac
done
[[ -n $version && -n $osctl && -n $policy && -n $out ]] || usage "--version, --osctl, --policy and OUT are needed"
((${#keys[@]})) || usage "an image without a key accepts no update; give --key"
[[ ! -e $out ]] || usage "$out exists already"

base=$("$here/base.sh")
"$here/tools/build.sh" containerd nerdctl
tools=$(cd "$cache/tools/bin" && pwd)

trap 'rm -rf "$out"' ERR
mkdir -p "$out"
tar --zstd --xattrs --xattrs-include='*' --numeric-owner -C "$out" -xf "$base"

# overlay DIR copies a tree over the image; everything in it belongs to root.
overlay() {
	tar -C "$1" --owner=0 --group=0 --numeric-owner --mode='u+w,go-w,a+rX' -c . | tar -C "$out" -x
}
overlay "$here/rootfs"
overlay "$here/debian"

install -m 0755 "$osctl" "$out/usr/bin/osctl"
install -m 0755 "$tools"/{containerd,containerd-shim-runc-v2,nerdctl} "$out/usr/bin/"
install -D -m 0644 "$policy" "$out/usr/lib/osctl/policy.yaml"
install -D -m 0644 -t "$out/usr/lib/osctl/keys" "${keys[@]}"

"$here/grub-image.sh" "$out/usr/lib/osctl/boot/BOOTX64.EFI"

cat >"$out/usr/lib/os-release" <<-END
	PRETTY_NAME="osctl reference image $version"
	NAME="osctl reference image"
	ID=osctl-reference
	ID_LIKE=debian
	VERSION_ID=$version
	VERSION_CODENAME=bookworm
	IMAGE_ID=reference
	IMAGE_VERSION=$version
END
# shellcheck disable=SC1003 # getty expands the escapes
printf '%s\n' '\S{PRETTY_NAME} \n \l' '' >"$out/etc/issue"

for dir in "${overlays[@]}"; do
	overlay "$dir"
done
for pattern in "${removals[@]}"; do
	mapfile -t paths < <(cd "$out" && compgen -G "$pattern")
	((${#paths[@]})) || usage "--remove $pattern: not in the image"
	for path in "${paths[@]}"; do
		rm -rf "${out:?}/$path"
	done
done

# Equal inputs give equal trees, whenever they were checked out and built.
find "$out" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
