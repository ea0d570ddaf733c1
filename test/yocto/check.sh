#!/bin/bash
# Proves what can be proven of the Yocto layer without building a whole image:
#
#	YOCTO_LAYERS=/path/to/layers check.sh [PROOF]...
#
# YOCTO_LAYERS is a folder of git clones, each on the branch that kas.yml names:
# bitbake, openembedded-core, meta-yocto, meta-openembedded, meta-virtualization. It
# may have kas as well, as a clone of https://github.com/siemens/kas; otherwise kas
# is looked for in PATH, and so are wic (or in $WIC) and cosign (or in $COSIGN).
# Nothing is fetched.
#
# The proofs, in this order, all of them if none is named:
#
#	kas      kas resolves kas.yml and each overlay to the commits of the lock file
#	parse    bitbake parses all recipes, without a warning about ours
#	graph    every dependency of the images resolves
#	musl     the same with musl
#	vars     what the variables of the image resolve to
#	native   what is missing is refused; real tasks of osctl for the target and the
#	         build host, and of the artifact class on a small image
#	disk     wic makes the layer's disk, which boots in QEMU and upgrades
#	layer    yocto-check-layer; over an hour
#
# What is built lies in $OSCTL_CACHE/yocto. Parts of layers that the images use
# nothing of are not parsed, unless YOCTO_ALL=1.
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

# What a user would have: a locale, and tools of the distribution before all others.
export LANG=en_US.UTF-8 BB_NUMBER_PARSE_THREADS=${BB_NUMBER_PARSE_THREADS:-1}
gotools=$(dirname "$(command -v go)")
bitbakePath=$layers/bitbake/bin:$layers/openembedded-core/scripts:/usr/bin:/usr/sbin:/bin:/sbin:$gotools
export BB_ENV_PASSTHROUGH_ADDITIONS="TCLIBC OSCTL_PRODUCT OSCTL_VERSION OSCTL_KEYS OSCTL_SIGN_KEY OSCTL_PUSH_REF OSCTL_SLOT_SIZE HOST_IMAGE_SIZE"

# run NAME COMMAND... runs in the build folder, with its output in a log.
run() {
	local name=$1
	shift
	if ! (cd "$build" && HOME=$cache/home PATH=$bitbakePath "$@") >"$log/$name" 2>&1; then
		tail -n 30 "$log/$name" >&2
		fail "$name: $* failed; all of it is in $log/$name"
	fi
}

# write FILE replaces a file only if it differs: any change parses all recipes anew.
write() {
	cat >"$1.new"
	if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}

# configure FOLDER [LAYER...] writes a configuration whose settings come from stdin.
configure() {
	mkdir -p "$1/conf"
	write "$1/conf/bblayers.conf" <<-END
		LCONF_VERSION = "7"
		BBPATH = "\${TOPDIR}"
		BBFILES ?= ""
		BBLAYERS = "$(printf '%s ' "$layers"/{openembedded-core/meta,meta-yocto/meta-yocto-bsp,meta-openembedded/meta-{oe,python,networking,filesystems,initramfs},meta-virtualization} "$layer" "${@:2}")"
	END
	{
		cat <<-END
			MACHINE = "genericx86-64"
			DISTRO = "kapernikov"
			CONF_VERSION = "2"
			BB_NO_NETWORK = "1"
			INHERIT:remove = "sanity"
			OSCTL_KEYS ?= "$cache/keys/release.pub"
		END
		cat
	} | write "$1/conf/local.conf"
}

# configureHost makes the configuration for real tasks, with this machine's tools.
configureHost() {
	configure "$cache/host" "$here/meta-host" <<-END
		INHERIT:remove = "uninative create-spdx buildstats"
		INHERIT_DISTRO:remove = "uninative create-spdx"
		DL_DIR = "$cache/downloads"
		HOST_GOROOT = "$(go env GOROOT)"
		HOST_SIGN_KEY = "$cache/keys/secret.key"
		HOST_IMAGE_SIZE ??= "20M"
		FAKEROOTCMD = "/usr/bin/env"
		HOSTTOOLS += "go mkfs.ext4 debugfs dumpe2fs"
		$(cat "$here/host.inc")
	END
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
	if grep -E '^(WARNING|ERROR)' "$log/$1" | grep -Ei 'osctl|kapernikov'; then
		fail "$1: a warning or an error is about the layer; see $log/$1"
	fi
}

proof_parse() {
	run parse bitbake -p
	clean parse
	grep -E '^Parsing of|, 0 errors' "$log/parse" || true
}

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

proof_graph() { graph graph; }

proof_musl() { TCLIBC=musl graph musl; }

# is NAME WANT holds a variable of the image to a value.
is() {
	run var bitbake-getvar -q --value -r image-kapernikov "$1"
	local have
	have=$(tr -s '[:space:]' ' ' <"$log/var" | sed 's/^ //; s/ $//')
	[[ $have == "$2" ]] || fail "$1 is \"$have\", and not \"$2\""
	echo "$1 = $have"
}

# has NAME WORD... and lacks NAME PATTERN hold a variable of the image to its words.
has() {
	run var bitbake-getvar -q --value -r image-kapernikov "$1"
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
}

# refuses RECIPE ASSIGNMENT MESSAGE holds the parsing of a recipe to failing so.
refuses() {
	if (cd "$cache/host" && env PATH="$bitbakePath" "$2" bitbake -b "$layer/$1" -c listtasks) >"$log/refuses" 2>&1; then
		fail "the build accepts $2"
	fi
	grep -qF "$3" "$log/refuses" || fail "with $2 the build does not say: $3; see $log/refuses"
	echo "$2: $3"
}

# What a task of the build must not leave anywhere.
secret=geheim-4711

proof_native() {
	configureHost
	build=$cache/host
	# A build without these is refused before its first task, with what to set.
	local image=recipes-core/images/image-kapernikov.bb
	refuses $image OSCTL_PRODUCT= "OSCTL_PRODUCT is not set"
	refuses $image OSCTL_PUSH_REF=registry.example.com/os:1 "OSCTL_SIGN_KEY is not set"
	refuses $image OSCTL_SIGN_KEY=/nowhere/cosign.key "OSCTL_SIGN_KEY: there is no file /nowhere/cosign.key"
	refuses recipes-core/osctl-conf/osctl-conf.bb OSCTL_KEYS= "OSCTL_KEYS is not set"

	"$here/downloads.sh" "$cache/downloads"
	if [[ ! -e $cache/keys/secret.key ]]; then
		(cd "$cache/keys" && COSIGN_PASSWORD=$secret "${COSIGN:-cosign}" generate-key-pair --output-key-prefix secret)
	fi
	run target bitbake osctl -c install
	run native bitbake osctl-native -c populate_sysroot
	run artifact env COSIGN_PASSWORD=$secret bitbake osctl-test-image
	clean artifact
	"$(find "$build"/tmp/work/*/osctl-native -path '*sysroot-destdir*' -name osctl -type f | head -n 1)" \
		inspect "$build"/tmp/deploy/images/genericx86-64/osctl-test-image-genericx86-64.osctl
	if grep -rlF "$secret" "$build"/{tmp,sstate-cache,cache}; then
		fail "the key's password is in these files"
	fi
	if (cd "$build" && env PATH="$bitbakePath" HOST_IMAGE_SIZE=30M OSCTL_SLOT_SIZE=16 bitbake osctl-test-image) >"$log/large" 2>&1; then
		fail "an image that is larger than the slot is accepted"
	fi
	grep -o 'the image has 30 MiB and a slot has OSCTL_SLOT_SIZE = 16 MiB.*' "$log/large" | head -n 1
}

proof_disk() {
	(cd "$top" && WIC=${WIC:-wic} go test -tags yocto -count=1 -v -timeout 90m -run TestYoctoDisk ./test/machine) >"$log/disk" 2>&1 ||
		fail "the disk of the layer: see $log/disk"
	grep -E '^ *--- ' "$log/disk"
}

proof_layer() {
	run layer yocto-check-layer "$layer" --dependency "$layers"/meta-openembedded/meta-{oe,python,networking,filesystems,initramfs} "$layers/meta-virtualization"
	tail -n 20 "$log/layer"
}

[[ -e $cache/keys/release.pub ]] || echo "no key: nothing is verified here" >"$cache/keys/release.pub"
configure "$build" <<<"$([[ -n ${YOCTO_ALL:-} ]] || cat "$here/mask.inc")"
if (($# == 0)); then
	set -- kas parse graph vars musl native disk layer
fi
for proof in "$@"; do
	declare -F "proof_$proof" >/dev/null || fail "there is no proof named $proof"
	echo "== $proof"
	("proof_$proof")
done
for repo in "${repos[@]}"; do
	echo "$repo $(git -C "$layers/$repo" rev-parse HEAD)"
done
