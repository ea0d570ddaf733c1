SUMMARY = "A/B updates of the operating system from a container registry"
DESCRIPTION = "osctl manages the operating system of an A/B-partitioned machine: \
signed OS artifacts are pulled from a container registry into the slot that does \
not run, started on trial, and kept if a health gate passes. The native program \
makes, signs and publishes these artifacts."
HOMEPAGE = "https://github.com/kapernikov/osctl"
BUGTRACKER = "https://github.com/kapernikov/osctl/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

PV = "1.0"

GO_IMPORT = "github.com/kapernikov/osctl"
GO_INSTALL = "${GO_IMPORT}/cmd/osctl"

# The repository that this layer is a part of.
FILESEXTRAPATHS:prepend := "${OSCTL_SOURCE}:"
SRC_URI = "\
    file://LICENSE;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://go.mod;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://go.sum;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://cmd;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://pkg;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://images/rootfs/usr/lib/osctl/data.conf;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://images/rootfs/usr/lib/osctl/emergency;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://images/rootfs/usr/lib/sysctl.d;subdir=${GO_SRCURI_DESTSUFFIX} \
    file://images/rootfs/usr/lib/systemd;subdir=${GO_SRCURI_DESTSUFFIX} \
"
require osctl-go-mods.inc
require osctl-licenses.inc

inherit go-mod

# Static, as on every machine: preinit is process 1 before anything else is there,
# and its slot may be run by another C library.
CGO_ENABLED = "0"
GO_LINKSHARED = ""
GO_RPATH = ""
GO_LINUXLOADER = ""
GOBUILDFLAGS:remove = "-buildmode=pie"
# The modules are all in SRC_URI.
export GOPROXY = "off"
export GOSUMDB = "off"
export GOTOOLCHAIN = "local"

do_install() {
    install -D -m 0755 ${B}/${GO_BUILD_BINDIR}/osctl ${D}${bindir}/osctl
}

# The boot script and the configuration have recipes of their own.
do_install:append:class-target() {
    install -d ${D}${nonarch_libdir}
    cp -R --no-dereference --preserve=mode ${S}/src/${GO_IMPORT}/images/rootfs/usr/lib/. ${D}${nonarch_libdir}/
    # What init= of the boot script names.
    ln -s ../../bin/osctl ${D}${nonarch_libdir}/osctl/preinit
    # Mount points.
    install -d ${D}/data ${D}/efi
}

# The rescue system has the program without the units.
PACKAGES =+ "${PN}-program"
FILES:${PN}-program = "${bindir}/osctl"
FILES:${PN} += "${prefix}/lib /data /efi"
RDEPENDS:${PN}:append:class-target = " ${PN}-program osctl-boot systemd dbus e2fsprogs-e2fsck"

BBCLASSEXTEND = "native"
