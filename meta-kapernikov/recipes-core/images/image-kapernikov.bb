SUMMARY = "The system of a slot"
DESCRIPTION = "A read-only system with an overlay on /etc, containers by containerd \
and nerdctl, updated as a whole by osctl. The result is a disk for new machines and \
an OS artifact for running ones."
LICENSE = "MIT"

# Each thing once, by name: one engine, one runtime, one way to log in.
IMAGE_INSTALL = "\
    base-files \
    base-passwd \
    busybox \
    ca-certificates \
    cni \
    containerd \
    e2fsprogs-e2fsck \
    e2fsprogs-mke2fs \
    iproute2 \
    iptables \
    kernel-modules \
    kmod \
    nerdctl \
    netbase \
    nftables \
    openssh-sftp-server \
    openssh-sshd \
    os-release \
    osctl \
    osctl-boot \
    osctl-conf \
    osctl-conf-system \
    shadow-base \
    systemd \
    tzdata-core \
    ${VIRTUAL-RUNTIME_container_runtime} \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"
IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""

# Slot A of the disk is the artifact's image, byte for byte.
IMAGE_FSTYPES = "ext4 wic.zst wic.bmap"
IMAGE_TYPEDEP:wic = "ext4"
# Equal trees make equal images.
EXTRA_IMAGECMD:ext4 = "-i 4096 -E hash_seed=5f6d2f3e-6b0c-4a52-8d0e-3b8f5b1c7a10,lazy_itable_init=0 -U 0b2b3b52-9a4b-4d0a-9a55-7e0f6f0b6c1d"

WKS_FILE = "kapernikov.wks.in"
# The boot loader is osctl's; syslinux and systemd-boot have no part in it.
WKS_FILE_DEPENDS = "${WKS_FILE_DEPENDS_DEFAULT} osctl-boot"
IMAGE_BOOT_FILES = "\
    osctl-BOOTX64.EFI;EFI/BOOT/BOOTX64.EFI \
    osctl-grub.cfg;EFI/BOOT/grub.cfg \
    osctl-grubenv;osctl/a/grubenv \
    osctl-grubenv;osctl/b/grubenv \
    osctl-grubenv;osctl/lost/grubenv \
"
# Size of the data partition of the disk in MiB; osctl install takes all that a disk has.
OSCTL_DATA_SIZE ?= "1024"

inherit core-image features_check osctl-artifact

REQUIRED_DISTRO_FEATURES = "systemd usrmerge virtualization osctl"
COMPATIBLE_HOST = "x86_64.*-linux"

# /etc is an overlay that is writable, and kept: sshd has its own configuration and
# key there. Nothing is mounted but by units.
osctl_etc() {
    rm -f ${IMAGE_ROOTFS}${sysconfdir}/default/ssh ${IMAGE_ROOTFS}${sysconfdir}/ssh/ssh_host_*
    : > ${IMAGE_ROOTFS}${sysconfdir}/fstab
    ln -sfn ../run/systemd/resolve/resolv.conf ${IMAGE_ROOTFS}${sysconfdir}/resolv.conf
    # Empty: each machine makes its own, and the first boot is no special one.
    : > ${IMAGE_ROOTFS}${sysconfdir}/machine-id
}
ROOTFS_POSTPROCESS_COMMAND += "osctl_etc"

python osctl_say_who_logs_in() {
    if not d.getVar("OSCTL_AUTHORIZED_KEYS"):
        bb.warn("OSCTL_AUTHORIZED_KEYS is not set: nobody can log in to this image, "
                "unless osctl install --etc brings a machine a key")
}
ROOTFS_POSTPROCESS_COMMAND += "osctl_say_who_logs_in"
do_rootfs[vardepsexclude] += "OSCTL_AUTHORIZED_KEYS"

# No image is made that somebody could enter without a key.
python () {
    for feature in ("empty-root-password", "allow-empty-password", "serial-autologin-root"):
        if bb.utils.contains("IMAGE_FEATURES", feature, True, False, d):
            raise bb.parse.SkipRecipe("IMAGE_FEATURES has %s: set OSCTL_AUTHORIZED_KEYS to log in by ssh instead" % feature)
}
python osctl_refuse_empty_passwords() {
    shadow = os.path.join(d.getVar("IMAGE_ROOTFS"), "etc/shadow")
    with open(shadow) as file:
        for line in file:
            if line.split(":")[1] == "":
                bb.fatal("%s has no password in /etc/shadow" % line.split(":")[0])
}
ROOTFS_POSTPROCESS_COMMAND += "osctl_refuse_empty_passwords"
