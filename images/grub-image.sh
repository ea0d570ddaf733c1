#!/bin/bash
# Makes BOOTX64.EFI:
#
#	grub-image.sh OUT
#
# GRUB with the modules of grub-modules.txt, grub-boot.cfg, which it runs first,
# and a copy of grub.cfg. The disk is the one that the firmware loaded it from: the
# prefix has no device. Equal inputs give equal bytes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -m 0644 "$here/grub-boot.cfg" "$work/boot.cfg"
install -m 0644 "$here/rootfs/usr/lib/osctl/boot/grub.cfg" "$work/grub.cfg"
tar -C "$work" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/memdisk.tar" boot.cfg grub.cfg
# The core's own parser knows plain commands only; "normal" brings the language.
echo 'normal (memdisk)/boot.cfg' >"$work/core.cfg"

mapfile -t modules < <(sed -e 's/#.*//' "$here/grub-modules.txt" | tr -s '[:space:]' '\n' | sed '/^$/d')
# The prefix comes after the memory disk, which would set one of its own.
grub-mkimage -O x86_64-efi -m "$work/memdisk.tar" -p /EFI/BOOT -c "$work/core.cfg" -o "$out" "${modules[@]}"
