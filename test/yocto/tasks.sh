# The proof "tasks" of check.sh, which sources this: real tasks of our own recipes,
# with tools of this machine in place of those that bitbake would build first.
# shellcheck shell=bash disable=SC2154 # variables of check.sh

# What a task of the build must not leave anywhere.
secret=geheim-4711
# Recipes that compile nothing, or only with what this machine has.
packaged=(osctl osctl-conf osctl-boot osctl-initramfs osctl-rescue)

# hostTools fills the folder of programs that the tasks find, which no package has.
hostTools() {
	local found
	mkdir -p "$cache/hosttools"
	found=$(rpm --eval '%{_rpmconfigdir}')/rpmdeps
	[[ -x $found ]] || fail "there is no $found: apt-get install rpm"
	ln -sf "$found" "$cache/hosttools/rpmdeps"
	if [[ ! -e $cache/hosttools/dwarfsrcfiles ]]; then
		cc -o "$cache/hosttools/dwarfsrcfiles" \
			"$layers/openembedded-core/meta/recipes-devtools/dwarfsrcfiles/files/dwarfsrcfiles.c" -lelf -ldw ||
			fail "dwarfsrcfiles cannot be compiled: apt-get install libdw-dev"
	fi
	# In place of pseudo, as whoever runs this is root: "-S" would end its daemon.
	write "$cache/hosttools/as-root" <<-'END'
		#!/bin/sh
		[ "$1" = -S ] || exec env "$@"
	END
	chmod +x "$cache/hosttools/as-root"
}

# configureTasks makes the configuration of these tasks.
configureTasks() {
	system "$cache/tasks" "$here/meta-host" <<-END
		INHERIT:remove = "uninative create-spdx buildstats"
		INHERIT_DISTRO:remove = "uninative create-spdx"
		DL_DIR = "$cache/downloads"
		HOST_GOROOT = "$(go env GOROOT)"
		HOST_SIGN_KEY = "$cache/keys/secret.key"
		HOST_IMAGE_SIZE ??= "20M"
		FAKEROOTCMD = "$cache/hosttools/as-root"
		RPMDEPS:forcevariable = "$cache/hosttools/rpmdeps --alldeps --define '__font_provides %{nil}'"
		$(cat "$here/host.inc")
	END
}

# refuses RECIPE ASSIGNMENT MESSAGE holds the parsing of a recipe to failing so.
refuses() {
	if (cd "$build" && env PATH="$bitbakePath" "$2" bitbake -b "$layer/$1" -c listtasks) >"$log/refuses" 2>&1; then
		fail "the build accepts $2"
	fi
	grep -qF "$3" "$log/refuses" || fail "with $2 the build does not say: $3; see $log/refuses"
	echo "$2: $3"
}

# refusals: a build without these is refused before its first task, with what to set.
refusals() {
	local image=recipes-core/images/image-kapernikov.bb
	refuses $image OSCTL_PRODUCT= "OSCTL_PRODUCT is not set"
	refuses $image OSCTL_VERSION= "OSCTL_VERSION is not set"
	refuses $image OSCTL_PUSH_REF=registry.example.com/os:1 "OSCTL_SIGN_KEY is not set"
	refuses $image OSCTL_SIGN_KEY=/nowhere/cosign.key "OSCTL_SIGN_KEY: there is no file /nowhere/cosign.key"
	refuses $image OSCTL_SIGN_PASSWORD_FILE=/nowhere/password "OSCTL_SIGN_PASSWORD_FILE: there is no file /nowhere/password"
	refuses $image EXTRA_IMAGE_FEATURES=empty-root-password "IMAGE_FEATURES has empty-root-password: set OSCTL_AUTHORIZED_KEYS"
	refuses recipes-core/osctl-conf/osctl-conf.bb OSCTL_KEYS= "OSCTL_KEYS is not set"
	refuses recipes-core/osctl-conf/osctl-conf.bb OSCTL_KEYS=/nowhere/release.pub "OSCTL_KEYS: there is no file /nowhere/release.pub"
}

# packages: every file of the reference image that the recipes share is in one of
# the packages, and all of it is root's.
packages() {
	local list=$log/packages package file
	run packages-build bitbake "${packaged[@]}"
	clean packages-build
	if grep -F 'QA Issue' "$log/packages-build"; then
		fail "QA has something to say of the packages"
	fi
	: >"$list"
	for package in "$build"/tmp/deploy/deb/*/*.deb; do
		dpkg-deb -c "$package" >>"$list"
		echo "$(basename "$package"): $(dpkg-deb -c "$package" | grep -vc '/$') files"
	done
	if awk '$2 != "root/root"' "$list" | grep .; then
		fail "these files of the packages are not root's"
	fi
	(cd "$top/images/rootfs" && find . -type f -printf '%p\n' -o -type l -printf '%p -> %l\n' | sort) | while read -r file; do
		cut -d' ' -f6- <(tr -s ' ' <"$list") | grep -qxF "$file" || fail "no package has images/rootfs/$file"
	done
}

# registry starts one on a free port of the loopback, and puts its address into $addr.
registry() {
	local line
	mkdir -p "$cache/registry"
	cat >"$cache/registry/config.yml" <<-END
		version: 0.1
		log: {level: info}
		storage: {filesystem: {rootdirectory: "$cache/registry/storage"}}
		http: {addr: "127.0.0.1:0"}
	END
	rm -rf "$cache/registry/storage"
	exec 3< <(exec docker-registry serve "$cache/registry/config.yml" 2>&1)
	registryPID=$!
	trap 'kill "$registryPID"' EXIT
	while read -r line <&3; do
		if [[ $line =~ listening\ on\ (127\.0\.0\.1:[0-9]+) ]]; then
			addr=${BASH_REMATCH[1]}
			break
		fi
	done
	[[ -n ${addr:-} ]] || fail "docker-registry does not listen"
	cat <&3 >"$log/registry" &
}

# artifact: the class on a small image is built, signed and pushed, and refused if it
# is larger than a slot; the password of the key is nowhere.
artifact() {
	local addr
	registry
	rm -rf "$build/sstate-cache" "$build/tmp/stamps"/*/osctl-test-image
	run artifact env COSIGN_PASSWORD=$secret OSCTL_PUSH_REF="$addr/os:1" bitbake osctl-test-image
	clean artifact
	"$(find "$build"/tmp/work/*/osctl-native -path '*sysroot-destdir*' -name osctl -type f | head -n 1)" \
		inspect "$build"/tmp/deploy/images/genericx86-64/osctl-test-image-genericx86-64.osctl
	"${COSIGN:-cosign}" verify --key "$cache/keys/secret.pub" --insecure-ignore-tlog --allow-insecure-registry "$addr/os:1" >"$log/verify" 2>&1 ||
		fail "cosign does not verify what was pushed; see $log/verify"
	echo "cosign verifies $addr/os:1"
	# Without that variable, as under kas.
	echo "$secret" >"$cache/keys/password"
	run artifact-file env OSCTL_SIGN_PASSWORD_FILE="$cache/keys/password" bitbake osctl-test-image
	if (cd "$build" && env PATH="$bitbakePath" bitbake osctl-test-image) >"$log/no-password" 2>&1; then
		fail "a build signs without a password"
	fi
	grep -o 'OSCTL_SIGN_PASSWORD_FILE is not set.*' "$log/no-password" | head -n 1
	if grep -rlF "$secret" "$log" "$build"/{tmp,sstate-cache,cache}; then
		fail "the key's password is in these files"
	fi
	if (cd "$build" && env PATH="$bitbakePath" HOST_IMAGE_SIZE=30M OSCTL_SLOT_SIZE=16 bitbake osctl-test-image) >"$log/large" 2>&1; then
		fail "an image that is larger than the slot is accepted"
	fi
	grep -o 'the image has 30 MiB and a slot has OSCTL_SLOT_SIZE = 16 MiB.*' "$log/large" | head -n 1
}

proof_tasks() {
	((EUID == 0)) || fail "packages have files of root, which only root can make: run this as root"
	hostTools
	if [[ ! -e $cache/keys/secret.key ]]; then
		(cd "$cache/keys" && COSIGN_PASSWORD=$secret "${COSIGN:-cosign}" generate-key-pair --output-key-prefix secret)
	fi
	"$here/downloads.sh" "$cache/downloads"
	configureTasks
	build=$cache/tasks
	bitbakePath=$cache/hosttools:$bitbakePath
	refusals
	packages
	artifact
}
