SUMMARY = "Initial RAM disk of a slot"
DESCRIPTION = "Arms the watchdog, mounts the slot read-only and hands over to the \
program that init= names. It never waits for a person."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

PV = "1.0"

FILESEXTRAPATHS:prepend := "${OSCTL_SOURCE}:"
SRC_URI = "\
    file://LICENSE \
    file://images/initramfs/watchdog \
    file://init \
"
S = "${UNPACKDIR}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -m 0755 ${S}/init ${D}/init
    install -D -m 0755 ${S}/images/initramfs/watchdog ${D}${nonarch_libdir}/osctl/watchdog
    install -d ${D}/root-slot
}

FILES:${PN} = "/init /root-slot ${nonarch_libdir}/osctl"
RDEPENDS:${PN} = "busybox kmod util-linux-findfs"
# The drivers that can be built in are (osctl.cfg); those of watchdogs take a time
# when they are loaded.
RRECOMMENDS:${PN} = "kernel-module-i6300esb kernel-module-itco-wdt kernel-module-sp5100-tco kernel-module-wdat-wdt"
