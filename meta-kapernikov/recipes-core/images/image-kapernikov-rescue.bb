SUMMARY = "What the rescue partition holds"
DESCRIPTION = "A kernel and the rescue system as its initial RAM disk, as an image of \
the rescue partition and as an artifact for osctl install --rescue."
LICENSE = "MIT"

PACKAGE_INSTALL = "os-release"
IMAGE_FEATURES = "read-only-rootfs"
IMAGE_LINGUAS = ""
IMAGE_FSTYPES = "ext4"
ROOTFS_BOOTSTRAP_INSTALL = ""

inherit core-image osctl-artifact

COMPATIBLE_HOST = "x86_64.*-linux"

# The machine's product followed by -rescue (docs/rescue.md), in a partition of its own.
OSCTL_MACHINE_PRODUCT := "${OSCTL_PRODUCT}"
OSCTL_PRODUCT = "${OSCTL_MACHINE_PRODUCT}-rescue"
OSCTL_SLOT_SIZE = "256"
OSCTL_INITRAMFS_IMAGE = "image-kapernikov-rescue-initramfs"
