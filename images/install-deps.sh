#!/bin/bash
# Installs the Debian packages that the project needs and that this machine
# lacks. Without anything to do it ends at once. Needs root when something is
# missing, and a Debian 12 machine.
set -euo pipefail

packages=(
	# osctl itself: making and checking file systems
	e2fsprogs squashfs-tools zstd btrfs-progs
	# the reference image: its tree, its boot loader
	mmdebstrap grub-efi-amd64-bin grub-common
	# the machine: emulator and firmware
	qemu-system-x86 ovmf
	# a real registry, another tool that reads images, and what containers need on this host
	docker-registry runc iptables curl skopeo
	# tests: GRUB's script interpreter, FAT and GPT by other hands, planted faults
	grub-emu mtools dosfstools gdisk fdisk strace systemd python3 procps
	# what other updaters write the boot loader's variables with, for comparison
	libubootenv-tool swupdate openssl
	# lint
	shellcheck
)

missing=()
for p in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) == 'install ok installed' ]] || missing+=("$p")
done
((${#missing[@]})) || exit 0
if ((EUID)); then
	echo "install-deps.sh: these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# Services of these packages are not wanted on this machine: the policy of Debian
# lets a file say so.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
fi
apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
