SUMMARY = "Rescue system of an osctl machine"
DESCRIPTION = "Process 1 of the rescue system and what it runs; the files are those \
of the reference image."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

PV = "1.0"

FILESEXTRAPATHS:prepend := "${OSCTL_SOURCE}:"
SRC_URI = "\
    file://LICENSE \
    file://images/initramfs/watchdog \
    file://images/rescue/init \
    file://images/rescue/network \
"
S = "${UNPACKDIR}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -m 0755 ${S}/images/rescue/init ${D}/init
    install -D -m 0755 ${S}/images/rescue/network ${D}${nonarch_libdir}/osctl/network
    install -m 0755 ${S}/images/initramfs/watchdog ${D}${nonarch_libdir}/osctl/watchdog
    # A clock that starts in 1970 is set to this.
    echo ${SOURCE_DATE_EPOCH} > ${D}${nonarch_libdir}/osctl/built
    install -d ${D}/data ${D}/efi ${D}${sysconfdir}/containerd/certs.d
}

FILES:${PN} = "/init /data /efi ${nonarch_libdir}/osctl ${sysconfdir}"
# Programs of images/rescue/programs.txt; busybox has the others.
RDEPENDS:${PN} = "\
    osctl-program busybox ca-certificates kmod \
    e2fsprogs-e2fsck e2fsprogs-mke2fs \
    klibc-utils-ipconfig klibc-utils-reboot \
    util-linux-lsblk util-linux-mount util-linux-setsid util-linux-sulogin util-linux-umount \
"
