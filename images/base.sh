#!/bin/bash
# Makes the Debian tree that every release of the reference image starts from,
# as a compressed tar in the cache, and prints the tar's path. The tar is keyed
# by what it is made from; when it is there already, nothing else happens.
#
# Packages come from where this machine gets its own Debian packages. Needs root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${OSCTL_CACHE:-$here/../.cache}
suite=bookworm

# Files newer than this get this time, so that equal packages give equal trees.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

inputs=("$here/customize.sh" "$here/packages.txt" "$here/modules-left-out.txt"
	"$here/initramfs/osctl.conf" "$here/initramfs/modules" "$here/initramfs/watchdog" "$here/initramfs/init-there")
key=$(cat "${BASH_SOURCE[0]}" "${inputs[@]}" <(echo "$SOURCE_DATE_EPOCH") | sha256sum | cut -c1-16)

mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
out=$cache/base-$key.tar.zst

# Two builds at once would do the same work twice and race for the result.
exec 9>"$cache/base.lock"
flock 9
if [[ -s $out ]]; then
	echo "$out"
	exit 0
fi

# archives prints the Debian archives of this machine's own package sources, as
# far as apt has fetched their indexes.
archives() {
	# shellcheck disable=SC2016 # the $(NAME)s are apt's, not the shell's
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' 'Origin: Debian' "Codename: $suite" | sort -u
}

# sources prints these archives as lines of a sources.list. Without any,
# mmdebstrap uses Debian's well-known archive.
sources() {
	local keyring=/usr/share/keyrings/debian-archive-keyring.gpg option='' found archive
	if [[ -r $keyring ]]; then
		option="[signed-by=$keyring] "
	fi
	found=$(archives)
	if [[ -z $found ]]; then
		apt-get -qq update >&2
		found=$(archives)
	fi
	while read -r archive; do
		[[ -z $archive ]] || echo "deb $option$archive"
	done <<<"$found"
}

# names prints the package names of packages.txt, separated by commas.
names() {
	sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/packages.txt" | paste -sd,
}

# leftOut prints the options that keep modules out of the tree.
leftOut() {
	local path
	sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$here/modules-left-out.txt" | while read -r path; do
		echo "--dpkgopt=path-exclude=/lib/modules/*/kernel/$path"
		[[ $path == *.ko ]] || echo "--dpkgopt=path-exclude=/lib/modules/*/kernel/$path/*"
	done
}

lists=$(mktemp --suffix=.list)
part=$out.part
tree=$cache/base.tree
# Not into what an interrupted mmdebstrap has left mounted: that is this machine's.
trap 'rm -rf --one-file-system "$lists" "$part" "$tree"' EXIT
rm -rf --one-file-system "$tree"
sources >"$lists"
from=()
if [[ -s $lists ]]; then
	from=("$lists")
fi

mapfile -t excluded < <(leftOut)
# Licences stay; manuals, translations and documentation go.
# shellcheck disable=SC2016 # mmdebstrap's hooks expand $1
mmdebstrap --mode=root --variant=minbase --format=directory --quiet \
	--include="$(names)" \
	--aptopt='Apt::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/i18n/*' \
	--dpkgopt='path-exclude=/usr/share/lintian/*' \
	--dpkgopt='path-exclude=/usr/share/bug/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-include=/usr/share/doc/*/copyright' \
	"${excluded[@]}" \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" "$1/usr/share/initramfs-tools/scripts/init-top" "$1/usr/share/initramfs-tools/scripts/init-bottom"' \
	--essential-hook="upload '$here/initramfs/osctl.conf' /etc/initramfs-tools/conf.d/osctl.conf" \
	--essential-hook="upload '$here/initramfs/modules' /usr/share/initramfs-tools/modules.d/osctl" \
	--essential-hook="upload '$here/initramfs/watchdog' /usr/share/initramfs-tools/scripts/init-top/osctl-watchdog" \
	--essential-hook="upload '$here/initramfs/init-there' /usr/share/initramfs-tools/scripts/init-bottom/osctl-init-there" \
	--essential-hook='chmod 0755 "$1"/usr/share/initramfs-tools/scripts/*/osctl-*' \
	"$suite" "$tree" "${from[@]}" 9>&- >&2
"$here/customize.sh" "$tree" >&2

# Without access and change times, which tell when this was done.
tar -C "$tree" --sort=name --numeric-owner --xattrs --xattrs-include='*' \
	--pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' \
	--mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime -c . | zstd -q -3 -T2 -f -o "$part"
mv "$part" "$out"
# Older trees of the same cache have been replaced.
find "$cache" -maxdepth 1 -name 'base-*.tar.zst' ! -path "$out" -delete
echo "$out"
