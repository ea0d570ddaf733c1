#!/bin/bash
# Makes the tree of a rescue image, for `osctl build`:
#
#	build.sh --version 1.0 --osctl bin/osctl --policy FILE --key FILE.pub \
#		[--config FILE] [--overlay DIR]... [--password-hash HASH] OUT
#
# OUT is the folder to make; it must not exist. It holds a kernel and an initial RAM
# disk that is the whole rescue system: osctl, the kernel modules for disks and
# networks, and a few programs, all out of the base image's cached tree. Policy and
# keys are those that a repaired system must satisfy. An overlay's files replace
# those of the RAM disk. With --password-hash (openssl passwd -6) root gets a shell
# on the consoles by that password; without, nobody does. Needs root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
images=$(dirname "$here")
cache=${OSCTL_CACHE:-$images/../.cache}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

usage() {
	echo "build.sh: $1" >&2
	sed -n 's/^#\t/\t/p' "${BASH_SOURCE[0]}" >&2
	exit 2
}

version='' osctl='' policy='' out='' hash='*'
config=$images/rootfs/usr/lib/osctl/osctl.yaml
keys=() overlays=()
while (($#)); do
	case $1 in
	--version | --osctl | --policy | --key | --config | --overlay | --password-hash)
		(($# > 1)) || usage "$1 needs a value"
		case $1 in
		--version) version=$2 ;;
		--osctl) osctl=$2 ;;
		--policy) policy=$2 ;;
		--key) keys+=("$2") ;;
		--config) config=$2 ;;
		--overlay) overlays+=("$2") ;;
		--password-hash) hash=$2 ;;
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
((${#keys[@]})) || usage "a rescue system without a key repairs nothing; give --key"
[[ $hash == '*' || $hash =~ ^\$[0-9a-z]+\$[^:]+$ ]] || usage "--password-hash: expected is a hash, as of openssl passwd -6"
[[ ! -e $out ]] || usage "$out exists already"

base=$("$images/base.sh")
work=$(mktemp -d --tmpdir="$cache" rescue-XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'rm -rf "$out"' ERR
tree=$work/base root=$work/base/rescue
mkdir -p "$tree" "$root"
tar --zstd --numeric-owner -C "$tree" -xf "$base"

# The folders of a merged /usr, and the mount points.
mkdir -p "$root"/{dev,proc,sys,run,efi,data,root,tmp,etc/containerd/certs.d,etc/ssl/certs,usr/{bin,sbin,lib,lib64}}
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$root/$dir"
done
# The kernel opens it before anything is mounted.
mknod -m 0600 "$root/dev/console" c 5 1

# take FROM TO copies a program and the libraries that it names.
take() {
	install -D -m 0755 "$tree/$1" "$root/$2"
	local library
	while read -r library; do
		[[ -e $root/$library ]] || install -D -m 0755 "$tree/$library" "$root/$library"
	done < <(chroot "$tree" ldd "/$1" 2>/dev/null | grep -o '/[^ ]*' || true)
}
while read -r from to; do
	take "$from" "${to:-$from}"
done < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/programs.txt")
install -m 0755 -t "$root/usr/lib" "$tree"/usr/lib/klibc-*.so

release=$(basename "$tree"/usr/lib/modules/*)
from=$tree/usr/lib/modules/$release to=$root/usr/lib/modules/$release
mkdir -p "$to/kernel"
while read -r dir; do
	[[ -e $from/kernel/$dir ]] || continue
	mkdir -p "$(dirname "$to/kernel/$dir")"
	cp -a "$from/kernel/$dir" "$to/kernel/$dir"
done < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/modules.txt")
# Modules of other folders that these need.
while IFS=: read -r module needs; do
	[[ -e $to/$module ]] || continue
	for need in $needs; do
		[[ -e $to/$need ]] || install -D -m 0644 "$from/$need" "$to/$need"
	done
done <"$from/modules.dep"
cp "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
# The base's own kmod, so that the result does not depend on this machine's.
chroot "$tree" depmod -b /rescue "$release"

install -m 0755 "$here/init" "$root/init"
install -m 0755 "$osctl" "$root/usr/bin/osctl"
install -D -m 0755 "$here/network" "$root/usr/lib/osctl/network"
install -m 0755 "$images/initramfs/watchdog" "$root/usr/lib/osctl/watchdog"
install -m 0644 "$config" "$root/usr/lib/osctl/osctl.yaml"
install -m 0644 "$policy" "$root/usr/lib/osctl/policy.yaml"
install -D -m 0644 -t "$root/usr/lib/osctl/keys" "${keys[@]}"
echo "$SOURCE_DATE_EPOCH" >"$root/usr/lib/osctl/built"
install -m 0644 "$tree/etc/ssl/certs/ca-certificates.crt" "$root/etc/ssl/certs/"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf 'root:%s:1::::::\n' "$hash" >"$root/etc/shadow"
chmod 0600 "$root/etc/shadow"
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
cat >"$root/usr/lib/os-release" <<-END
	PRETTY_NAME="osctl rescue system $version"
	NAME="osctl rescue system"
	ID=osctl-rescue
	VERSION_ID=$version
	IMAGE_ID=rescue
	IMAGE_VERSION=$version
END
ln -s ../usr/lib/os-release "$root/etc/os-release"
for dir in "${overlays[@]}"; do
	tar -C "$dir" --owner=0 --group=0 --numeric-owner --mode='u+w,go-w,a+rX' -c . | tar -C "$root" -x
done

# Equal inputs give equal bytes: sorted, without this machine's times and inodes.
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out/boot" "$out/usr/lib"
(cd "$root" && find . -mindepth 1 | LC_ALL=C sort) |
	chroot "$tree" sh -c 'cd /rescue && cpio --quiet -o -H newc --reproducible -R 0:0' |
	zstd -q -12 -T1 >"$out/boot/initrd.img"
install -m 0644 "$tree/boot/vmlinuz" "$out/boot/vmlinuz"
install -m 0644 "$root/usr/lib/os-release" "$out/usr/lib/os-release"
find "$out" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
