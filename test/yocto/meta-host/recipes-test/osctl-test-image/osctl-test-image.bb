SUMMARY = "A small file system, for the tests of osctl-artifact.bbclass"
LICENSE = "MIT"

INHIBIT_DEFAULT_DEPS = "1"

IMGDEPLOYDIR = "${WORKDIR}/deploy-image"
IMAGE_BASENAME = "${PN}"
IMAGE_LINK_NAME = "${PN}-${MACHINE}.rootfs"
IMAGE_ROOTFS = "${WORKDIR}/rootfs"
OSCTL_SIGN_KEY = "${HOST_SIGN_KEY}"

inherit nopackages osctl-artifact

# No kernel and no initial RAM disk are built for it.
do_rootfs[depends] = ""
do_rootfs[cleandirs] = "${IMAGE_ROOTFS} ${IMGDEPLOYDIR}"
do_rootfs() {
    install -d ${IMAGE_ROOTFS}/boot ${IMAGE_ROOTFS}${nonarch_libdir}/osctl
    head -c 3000000 /dev/zero | tr '\0' 'k' > ${IMAGE_ROOTFS}/boot/vmlinuz
    head -c 1000000 /dev/zero | tr '\0' 'i' > ${IMAGE_ROOTFS}/boot/initrd.img
    printf 'product: %s\n' '${OSCTL_PRODUCT}' > ${IMAGE_ROOTFS}${nonarch_libdir}/osctl/osctl.yaml
    printf 'IMAGE_VERSION="%s"\n' '${OSCTL_VERSION}' > ${IMAGE_ROOTFS}${nonarch_libdir}/os-release
    truncate -s ${HOST_IMAGE_SIZE} ${OSCTL_IMAGE}
    mkfs.ext4 -q -F -d ${IMAGE_ROOTFS} ${OSCTL_IMAGE}
}
addtask do_rootfs after do_configure
do_image_complete() {
    :
}
addtask do_image_complete after do_rootfs before do_build

do_install[noexec] = "1"
