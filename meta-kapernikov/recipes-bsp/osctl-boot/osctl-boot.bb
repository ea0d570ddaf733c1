SUMMARY = "Boot loader of an osctl machine"
DESCRIPTION = "GRUB as one EFI program with the modules that osctl's boot script \
needs and a copy of that script inside, and the boot state of a new machine. The \
image carries the first two, from where osctl install takes them; the disk of \
kapernikov.wks has all on its ESP."
LICENSE = "Apache-2.0 & GPL-3.0-or-later"
LIC_FILES_CHKSUM = "\
    file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://${COMMON_LICENSE_DIR}/GPL-3.0-or-later;md5=1c76c4cc354acaac30ed4d5eefea7245 \
"

PV = "1.0"

FILESEXTRAPATHS:prepend := "${OSCTL_SOURCE}:"
SRC_URI = "\
    file://LICENSE \
    file://images/grub-boot.cfg \
    file://images/grub-modules.txt \
    file://images/rootfs/usr/lib/osctl/boot/grub.cfg \
"
S = "${UNPACKDIR}"

DEPENDS = "grub-efi grub-native"
COMPATIBLE_HOST = "x86_64.*-linux"

inherit deploy

do_configure[noexec] = "1"

# The steps of images/grub-image.sh, with GRUB's modules of the target.
do_compile() {
    install -m 0644 ${S}/images/grub-boot.cfg boot.cfg
    install -m 0644 ${S}/images/rootfs/usr/lib/osctl/boot/grub.cfg grub.cfg
    tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime=@0 -cf memdisk.tar boot.cfg grub.cfg
    echo 'normal (memdisk)/boot.cfg' > core.cfg
    grub-mkimage -d ${STAGING_LIBDIR}/grub/x86_64-efi -O x86_64-efi -m memdisk.tar -p /EFI/BOOT \
        -c core.cfg -o BOOTX64.EFI $(sed 's/#.*//' ${S}/images/grub-modules.txt)

    # 1024 bytes, filled up with "#": slot A is committed and has all its tries.
    {
        echo "# GRUB Environment Block"
        printf '%s\n' seq=1 ustate=0 rootfs=A boot_counter=3 rung=0 other=0 end=1
        printf '%1024s' '' | tr ' ' '#'
    } | head -c 1024 > grubenv
}
B = "${WORKDIR}/build"

do_install() {
    install -D -m 0644 BOOTX64.EFI ${D}${nonarch_libdir}/osctl/boot/BOOTX64.EFI
    install -m 0644 grub.cfg ${D}${nonarch_libdir}/osctl/boot/grub.cfg
}

# Under names of our own; the disk's description says where they go.
do_deploy() {
    install -m 0644 BOOTX64.EFI ${DEPLOYDIR}/osctl-BOOTX64.EFI
    install -m 0644 grub.cfg ${DEPLOYDIR}/osctl-grub.cfg
    install -m 0644 grubenv ${DEPLOYDIR}/osctl-grubenv
}
addtask deploy after do_compile before do_build

FILES:${PN} = "${nonarch_libdir}/osctl/boot"
# BOOTX64.EFI is no program of the system.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INSANE_SKIP:${PN} += "arch"
