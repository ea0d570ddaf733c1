SUMMARY = "The rescue system: all of it is an initial RAM disk"
LICENSE = "MIT"

# Modules for whatever a disk, a network card or a file system may need.
PACKAGE_INSTALL = "osctl-rescue osctl-conf base-passwd kernel-modules netbase os-release"
IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
IMAGE_FSTYPES = "cpio.zst"
IMAGE_NAME_SUFFIX = ""
PACKAGE_EXCLUDE = "kernel-image-*"

inherit core-image

IMAGE_ROOTFS_SIZE = "8192"
IMAGE_ROOTFS_EXTRA_SPACE = "0"

# busybox asks an init for a restart, which this system does not have.
osctl_restart() {
    ln -sfn ../bin/reboot ${IMAGE_ROOTFS}${base_sbindir}/reboot
    [ -e ${IMAGE_ROOTFS}${base_bindir}/reboot ]
}
ROOTFS_POSTPROCESS_COMMAND += "osctl_restart"
