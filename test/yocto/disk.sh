#!/bin/bash
# Makes the disk that the Yocto layer describes, with a root file system of our own
# in slot A:
#
#	WIC=/path/to/wic disk.sh IMAGE.ext4 BOOTDIR OUT
#
# BOOTDIR has BOOTX64.EFI, grub.cfg and grubenv. Values that bitbake would fill in are
# those of the distro and the image recipe; wic's tools are this machine's.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
layer=$here/../../meta-kapernikov
image=$(realpath "$1") boot=$(realpath "$2") out=$(realpath -m "$3")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# value NAME prints the plain value of a variable of the distro or the image recipe.
value() {
	sed -n "s/^$1 ?*= \"\\([^\"]*\\)\"\$/\\1/p" "$layer/conf/distro/kapernikov.conf" "$layer/recipes-core/images/image-kapernikov.bb" | tail -n 1
}

mkdir -p "$work/deploy" "$work/native/usr/bin" "$work/rootfs" "$work/env" "$work/hosttools"
ln -s "$image" "$work/deploy/image-kapernikov.ext4"
for file in BOOTX64.EFI grub.cfg grubenv; do
	install -m 0644 "$boot/$file" "$work/deploy/osctl-$file"
done
for program in parted mcopy mmd mdir mdel mformat mlabel mkdosfs mkfs.vfat mkfs.ext4 mke2fs fsck.ext4 e2fsck dumpe2fs resize2fs tune2fs debugfs \
	du dd sgdisk fsck.fat dosfsck truncate mkdir ln rm cp; do
	if found=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program"); then
		ln -sf "$found" "$work/native/usr/bin/$program"
	fi
done

# Debian 12 has an sfdisk that knows no --sector-size; 512 is its own choice for a file.
cat >"$work/native/usr/bin/sfdisk" <<'END'
#!/bin/bash
[[ $1 != --sector-size ]] || shift 2
exec /usr/sbin/sfdisk "$@"
END
chmod +x "$work/native/usr/bin/sfdisk"

sed -e "s|\${IMGDEPLOYDIR}|$work/deploy|" -e "s|\${IMAGE_LINK_NAME}|image-kapernikov|" \
	-e "s|\${OSCTL_SLOT_SIZE}|$(value OSCTL_SLOT_SIZE)|" -e "s|\${OSCTL_DATA_SIZE}|$(value OSCTL_DATA_SIZE)|" \
	"$layer/files/wic/kapernikov.wks.in" >"$work/kapernikov.wks"
files=$(sed -n '/^IMAGE_BOOT_FILES = /,/^"/p' "$layer/recipes-core/images/image-kapernikov.bb" | sed -n 's/^    \(.*\) \\$/\1/p' | paste -sd' ')
cat >"$work/env/image-kapernikov.env" <<-END
	DEPLOY_DIR_IMAGE="$work/deploy"
	HOSTTOOLS_DIR="$work/native/usr/bin"
	IMAGE_BOOT_FILES="$files"
	IMAGE_ROOTFS="$work/rootfs"
	RECIPE_SYSROOT_NATIVE="$work/native"
	STAGING_DIR_HOST="$work/native"
	TARGET_SYS="x86_64-kapernikov-linux"
END
BUILDDIR=$work "${WIC:-wic}" create "$work/kapernikov.wks" -e image-kapernikov --vars "$work/env" -o "$work/out" -w "$work/tmp"
mv "$work"/out/*.direct "$out"
