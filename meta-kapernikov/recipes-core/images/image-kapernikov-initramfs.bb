SUMMARY = "Initial RAM disk of a slot"
LICENSE = "MIT"

PACKAGE_INSTALL = "osctl-initramfs"
# No feature of the root file system has a place here.
IMAGE_FEATURES = ""
IMAGE_LINGUAS = ""
IMAGE_FSTYPES = "cpio.zst"
IMAGE_NAME_SUFFIX = ""
PACKAGE_EXCLUDE = "kernel-image-*"

inherit core-image

IMAGE_ROOTFS_SIZE = "8192"
IMAGE_ROOTFS_EXTRA_SPACE = "0"
