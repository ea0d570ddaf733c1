#!/bin/bash
# Proves what can be proven of the Yocto layer without building a whole image:
#
#	YOCTO_LAYERS=/path/to/layers check.sh [PROOF]...
#
# YOCTO_LAYERS is a folder of git clones, each on the branch that kas.yml names:
# bitbake, openembedded-core, meta-yocto, meta-openembedded, meta-virtualization. It
# may have kas as well, as a clone of https://github.com/siemens/kas; otherwise kas
# is looked for in PATH, and so are cosign (or in $COSIGN) and wic (or in $WIC), which
# is taken from the history of openembedded-core if it is nowhere. Nothing is fetched.
#
# The proofs, in this order, all of them if none is named:
#
#	kas      kas resolves kas.yml and each overlay to the commits of the lock file
#	parse    bitbake parses all recipes, without a warning about ours
#	graph    every dependency of the images resolves, with glibc and with musl
#	layer    yocto-check-layer; over an hour, and needs no other proof
#	vars     what the variables of the image resolve to
#	tasks    what is missing is refused; real tasks of our recipes up to packages and
#	         their QA, and of the artifact class on a small image, up to a registry
#	disk     wic makes the layer's disk, which boots in QEMU and upgrades
#
# What is built lies in $OSCTL_CACHE/yocto. Parts of layers that the images use
# nothing of are masked for graph and vars. YOCTO_MASK=1 masks them for parse too: a
# preview in a fifth of the time, and no proof.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
layer=$top/meta-kapernikov
cache=${OSCTL_CACHE:-$top/.cache}/yocto
repos=(bitbake openembedded-core meta-yocto meta-openembedded meta-virtualization)

fail() {
	echo "yocto-check: $1" >&2
	exit 1
}

# value FILE NAME prints the value of a YAML key of the last level; enough for kas.yml.
value() {
	sed -n "/^  $2:\$/,/^\$/s/^    $3: *\"\\{0,1\\}\\([^\"]*\\)\"\\{0,1\\}\$/\\1/p" "$1"
}

instructions() {
	echo "YOCTO_LAYERS has to name a folder with these clones:"
	for repo in "${repos[@]}"; do
		echo "    git clone -b $(value "$top/kas.yml" "$repo" branch) $(value "$top/kas.yml" "$repo" url)"
	done
	echo "and this machine, beside what make deps and make tools bring, Debian's packages"
	echo "    chrpath cpio diffstat fdisk file gawk libdw-dev locales lz4 parted python3-git python3-jsonschema quilt rpm zstd"
	echo "and the locale en_US.UTF-8."
}

if [[ -z ${YOCTO_LAYERS:-} ]]; then
	instructions >&2
	exit 2
fi
layers=$(cd "$YOCTO_LAYERS" && pwd)
for repo in "${repos[@]}"; do
	if [[ ! -d $layers/$repo ]]; then
		instructions >&2
		fail "there is no $layers/$repo"
	fi
done
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
build=$cache/build log=$cache/log
mkdir -p "$build/conf" "$log" "$cache/home" "$cache/keys"
# Clones may belong to somebody else.
printf '[safe]\n\tdirectory = *\n' >"$cache/home/.gitconfig"

# What a user would have: a locale, and tools of the distribution before all others.
export LANG=en_US.UTF-8
gotools=$(dirname "$(command -v go)")
bitbakePath=$layers/bitbake/bin:$layers/openembedded-core/scripts:/usr/bin:/usr/sbin:/bin:/sbin:$gotools
export BB_ENV_PASSTHROUGH_ADDITIONS="TCLIBC OSCTL_PRODUCT OSCTL_VERSION OSCTL_KEYS OSCTL_SIGN_KEY OSCTL_SIGN_PASSWORD_FILE OSCTL_PUSH_REF OSCTL_SLOT_SIZE HOST_IMAGE_SIZE EXTRA_IMAGE_FEATURES"

# run NAME COMMAND... runs in the build folder, with its output in a log.
run() {
	local name=$1
	shift
	if ! (cd "$build" && HOME=$cache/home BUILDDIR=$build PATH=$bitbakePath "$@") >"$log/$name" 2>&1; then
		tail -n 30 "$log/$name" >&2
		fail "$name: $* failed; all of it is in $log/$name"
	fi
}

# write FILE replaces a file only if it differs: any change parses all recipes anew.
write() {
	cat >"$1.new"
	if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# The layers that kas.yml names, without ours; the first is enough to start from.
base=("$layers"/openembedded-core/meta)
others=("$layers"/meta-openembedded/meta-{oe,python,networking,filesystems,initramfs} "$layers/meta-virtualization")

# configure FOLDER LAYER... writes a configuration whose settings come from stdin.
configure() {
	mkdir -p "$1/conf"
	write "$1/conf/bblayers.conf" <<-END
		LCONF_VERSION = "7"
		BBPATH = "\${TOPDIR}"
		BBFILES ?= ""
		BBLAYERS = "${*:2}"
	END
	{
		cat <<-END
			CONF_VERSION = "2"
			BB_NO_NETWORK = "1"
			BB_NUMBER_PARSE_THREADS = "${BB_NUMBER_PARSE_THREADS:-1}"
			INHERIT:remove = "sanity"
		END
		cat
	} | write "$1/conf/local.conf"
}

# system FOLDER [LAYER...] configures the build that kas.yml describes.
system() {
	{
		cat <<-END
			MACHINE = "genericx86-64"
			DISTRO = "kapernikov"
			OSCTL_KEYS ?= "$cache/keys/release.pub"
		END
		cat
	} | configure "$1" "${base[@]}" "$layers/meta-yocto/meta-yocto-bsp" "${others[@]}" "$layer" "${@:2}"
}

proof_kas() {
	local kas=(kas) overlay commits
	[[ ! -d $layers/kas ]] || kas=(env "PYTHONPATH=$layers/kas" /usr/bin/python3 -m kas)
	{
		printf '[safe]\n\tdirectory = *\n'
		for repo in "${repos[@]}"; do
			printf '[url "%s"]\n\tinsteadOf = %s\n' "$layers/$repo" "$(value "$top/kas.yml" "$repo" url)"
		done
	} >"$cache/gitconfig"
	mkdir -p "$cache/kas"
	commits=$(sed -n 's/^ *commit: //p' "$top/kas.lock.yml" | sort)
	for overlay in '' dev musl qemu rescue; do
		(cd "$top" && GITCONFIG_FILE=$cache/gitconfig KAS_WORK_DIR=$cache/kas \
			"${kas[@]}" dump --resolve-refs "kas.yml${overlay:+:meta-kapernikov/kas/$overlay.yml}") \
			>"$log/kas-${overlay:-base}" 2>"$log/kas-${overlay:-base}.err" ||
			fail "kas dump failed; see $log/kas-${overlay:-base}.err"
		[[ $(sed -n 's/^ *commit: //p' "$log/kas-${overlay:-base}" | sort) == "$commits" ]] ||
			fail "kas resolves other commits than kas.lock.yml; see $log/kas-${overlay:-base}"
	done
}

# clean NAME fails if a log has a warning or an error about something of ours.
clean() {
	if grep -E '(WARNING|ERROR): ' "$log/$1" | grep -Ei 'osctl|kapernikov'; then
		fail "$1: a warning or an error is about the layer; see $log/$1"
	fi
}

proof_parse() {
	build=$cache/all
	system "$build" <<<"$([[ -z ${YOCTO_MASK:-} ]] || cat "$here/mask.inc")"
	run parse bitbake -p
	clean parse
	grep -E '^Parsing of|, 0 errors' "$log/parse" || true
}

# graph NAME resolves both images.
graph() {
	local image
	for image in image-kapernikov image-kapernikov-rescue; do
		run "$1-$image" bitbake -g "$image"
		clean "$1-$image"
		mv "$build/pn-buildlist" "$log/$1-$image.recipes"
		echo "$image: $(wc -l <"$log/$1-$image.recipes") recipes"
		if grep -E '^(podman|swupdate|docker|crun|syslinux|systemd-boot)$' "$log/$1-$image.recipes"; then
			fail "$image: pulls in what has no place there"
		fi
	done
}

proof_graph() {
	graph glibc
	TCLIBC=musl graph musl
}

# The layer is added to openembedded-core and its dependencies, whose recipes it must
# leave as they are: another distro and another machine than ours. Nothing is masked,
# or "world" would not resolve.
proof_layer() {
	build=$cache/layer
	configure "$build" "${base[@]}" <<-END
		MACHINE = "qemux86-64"
		# What yocto-check-layer takes itself; so one parse serves most of it.
		BB_SIGNATURE_HANDLER = "OEBasicHash"
	END
	run layer yocto-check-layer --no-auto-dependency "$layer" --dependency "${others[@]}"
	grep -E 'RESULTS - |Summary|meta-kapernikov \.\.\.' "$log/layer"
}

# is NAME WANT holds a variable of the image to a value.
is() {
	run var bitbake-getvar -q --value -r image-kapernikov "$1"
	local have
	have=$(tr -s '[:space:]' ' ' <"$log/var" | sed 's/^ //; s/ $//')
	[[ $have == "$2" ]] || fail "$1 is \"$have\", and not \"$2\""
	echo "$1 = $have"
}

# has NAME WORD... and lacks NAME PATTERN hold a variable of the image, or of $recipe,
# to its words.
has() {
	run var bitbake-getvar -q --value -r "${recipe:-image-kapernikov}" "$1"
	local word
	for word in "${@:2}"; do
		tr -s '[:space:]' '\n' <"$log/var" | grep -qxF "$word" || fail "$1 has no $word"
	done
	echo "$1 has ${*:2}"
}

lacks() {
	run var bitbake-getvar -q --value -r image-kapernikov "$1"
	if tr -s '[:space:]' '\n' <"$log/var" | grep -E "$2"; then
		fail "$1 has what matches $2"
	fi
	echo "$1 has nothing like $2"
}

proof_vars() {
	is IMAGE_FEATURES "read-only-rootfs"
	lacks IMAGE_INSTALL '^(podman|swupdate|docker|crun|dropbear|packagegroup-core-ssh)'
	has IMAGE_INSTALL osctl osctl-boot osctl-conf osctl-conf-system containerd nerdctl cni runc iptables nftables openssh-sshd ca-certificates
	is VIRTUAL-RUNTIME_container_runtime "runc"
	is WKS_FILE "kapernikov.wks.in"
	is IMAGE_FSTYPES "ext4 wic.zst wic.bmap"
	lacks WKS_FILE_DEPENDS '^(syslinux|systemd-boot|grub-efi)$'
	is IMAGE_ROOTFS_MAXSIZE "2097152"
	is OSCTL_PRODUCT "kapernikov-genericx86-64"
	has INHERIT_DISTRO create-spdx
	has DISTRO_FEATURES systemd usrmerge virtualization osctl
	# Rules by nftables alone; the list of packages is copied once it has been written.
	recipe=iptables has PACKAGECONFIG libnftnl
	run var bitbake-getvar -q --value -r image-kapernikov ROOTFS_POSTUNINSTALL_COMMAND
	grep -q 'write_image_manifest.* osctl_contents' <(tr -s '[:space:]' ' ' <"$log/var") ||
		fail "osctl_contents does not follow write_image_manifest; see $log/var"

	# What the overlay for development adds arrives in the image.
	build=$cache/dev
	{
		sed '1,/^  dev: |$/d; s/^ *//' "$layer/kas/dev.yml"
		grep BBMASK "$here/host.inc"
	} | system "$build"
	has IMAGE_FEATURES read-only-rootfs tools-debug
	has IMAGE_INSTALL osctl bash curl tcpdump
	lacks IMAGE_FEATURES 'password|autologin'
}

# wic prints the path of the tool: $WIC, one in PATH, or the last one that
# openembedded-core had before it got a repository of its own.
wic() {
	local tool=${WIC:-$(type -P wic || true)} removed
	if [[ -n $tool ]]; then
		echo "$tool"
		return
	fi
	removed=$(git -C "$layers/openembedded-core" log -1 --format=%H -- scripts/wic)
	[[ -n $removed ]] || fail "there is no wic, and no history in $layers/openembedded-core to take it from"
	rm -rf "$cache/wic"
	mkdir -p "$cache/wic"
	git -C "$layers/openembedded-core" archive "$removed^" scripts meta/lib | tar -x -C "$cache/wic"
	echo "$cache/wic/scripts/wic"
}

proof_disk() {
	local tool
	tool=$(wic)
	# With CI set, what is missing on this machine is a failure and no skip.
	(cd "$top" && CI=true PATH=$layers/bitbake/bin:$PATH WIC=$tool go test -tags yocto -count=1 -v -timeout 90m -run TestYoctoDisk ./test/machine) >"$log/disk" 2>&1 ||
		fail "the disk of the layer: see $log/disk"
	grep -E '^ *--- ' "$log/disk"
}

# shellcheck source=test/yocto/tasks.sh
source "$here/tasks.sh"

[[ -e $cache/keys/release.pub ]] || echo "no key: nothing is verified here" >"$cache/keys/release.pub"
system "$build" <"$here/mask.inc"
if (($# == 0)); then
	set -- kas parse graph layer vars tasks disk
fi
for proof in "$@"; do
	declare -F "proof_$proof" >/dev/null || fail "there is no proof named $proof"
	echo "== $proof"
	("proof_$proof")
done
for repo in "${repos[@]}"; do
	echo "$repo $(git -C "$layers/$repo" rev-parse HEAD)"
done
