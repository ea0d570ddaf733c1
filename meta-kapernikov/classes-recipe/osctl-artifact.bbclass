# The image becomes an OS artifact: an OCI layout in the deploy directory, beside the
# image's package manifest and SBOM. To be inherited by an image recipe after image
# or core-image.
#
# What says which machines take it; the distro sets these:
#
#   OSCTL_PRODUCT      kind of machine
#   OSCTL_VERSION      version of the release, for example 1.2 or 1.2.0-rc1
#   OSCTL_EPOCH        anti-rollback generation, 0 at first
#   OSCTL_MIN_VERSION  oldest version that may upgrade to this one, if any
#   OSCTL_SLOT_SIZE    size of a slot in MiB; a larger image is refused
#
# Signing and pushing are tasks of the build only if these are set:
#
#   OSCTL_SIGN_KEY     path of the private key (cosign.key)
#   OSCTL_SIGN_PASSWORD_FILE
#                      path of a file with its password. Without one it is taken from
#                      COSIGN_PASSWORD of the environment that bitbake was called in,
#                      which kas does not hand on. No variable has the password itself
#   OSCTL_PUSH_REF     reference to push to, for example
#                      registry.example.com/os:${OSCTL_VERSION}; needs OSCTL_SIGN_KEY.
#                      Credentials are those of the caller's docker login

inherit goarch osctl-variables

OSCTL_PRODUCT ??= ""
OSCTL_VERSION ??= ""
OSCTL_EPOCH ??= "0"
OSCTL_MIN_VERSION ??= ""
OSCTL_SLOT_SIZE ??= "2048"
OSCTL_SIGN_KEY ??= ""
OSCTL_SIGN_PASSWORD_FILE ??= ""
OSCTL_PUSH_REF ??= ""

# The image that the artifact is made of, byte for byte, and the layout's name.
OSCTL_FSTYPE ?= "ext4"
OSCTL_IMAGE = "${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.${OSCTL_FSTYPE}"
OSCTL_LAYOUT = "${IMAGE_BASENAME}-${MACHINE}.osctl"
# Kernel and initial RAM disk, under the names that the boot script knows.
OSCTL_INITRAMFS_IMAGE ?= "image-kapernikov-initramfs"
OSCTL_INITRAMFS_FSTYPE ?= "cpio.zst"

# Too large is too large before a file system is made, too.
IMAGE_ROOTFS_MAXSIZE = "${@int(d.getVar('OSCTL_SLOT_SIZE')) * 1024}"

python () {
    osctl_require(d, "OSCTL_PRODUCT", "set it in the distro to the kind of machine that the image is for")
    osctl_require(d, "OSCTL_VERSION", "set it in the distro to the version of this release")
    osctl_require_files(d, "OSCTL_SIGN_KEY")
    osctl_require_files(d, "OSCTL_SIGN_PASSWORD_FILE")
    if not d.getVar("OSCTL_PUSH_REF"):
        return
    osctl_require(d, "OSCTL_SIGN_KEY", "OSCTL_PUSH_REF is, and no machine accepts an unsigned image; "
                  "set it to the path of cosign.key")
}

do_rootfs[depends] += "virtual/kernel:do_deploy ${OSCTL_INITRAMFS_IMAGE}:do_image_complete"

# GRUB knows no versions.
osctl_boot_files() {
    install -d ${IMAGE_ROOTFS}/boot
    install -m 0644 ${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE} ${IMAGE_ROOTFS}/boot/vmlinuz
    install -m 0644 ${DEPLOY_DIR_IMAGE}/${OSCTL_INITRAMFS_IMAGE}-${MACHINE}.${OSCTL_INITRAMFS_FSTYPE} \
        ${IMAGE_ROOTFS}/boot/initrd.img
}
ROOTFS_POSTPROCESS_COMMAND += "osctl_boot_files"

# What is in the image, readable on the machine: when the list has been written, and
# when the task that describes the root file system has run.
osctl_contents() {
    install -d ${IMAGE_ROOTFS}${nonarch_libdir}/sysimage
    install -m 0644 ${IMAGE_MANIFEST} ${IMAGE_ROOTFS}${nonarch_libdir}/sysimage/packages.manifest
}
ROOTFS_POSTUNINSTALL_COMMAND += "osctl_contents"
osctl_sbom() {
    # Set where create-spdx is inherited; then there is one document.
    if [ -n "${SPDXROOTFSDEPLOY}" ]; then
        install -m 0644 ${SPDXROOTFSDEPLOY}/*/rootfs/*.spdx.json ${IMAGE_ROOTFS}${nonarch_libdir}/sysimage/rootfs.spdx.json
    fi
}
IMAGE_PREPROCESS_COMMAND += "osctl_sbom"

def osctl_run(d, *command, environment={}):
    """Run osctl-native; its output goes to the task's log."""
    import subprocess
    program = d.expand("${STAGING_BINDIR_NATIVE}/osctl")
    # The time that the files of the root file system have, too.
    epoch = d.getVar("REPRODUCIBLE_TIMESTAMP_ROOTFS") or d.getVar("SOURCE_DATE_EPOCH")
    env = {"PATH": d.getVar("PATH"), "SOURCE_DATE_EPOCH": epoch, **environment}
    done = subprocess.run([program, *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    bb.plain(done.stdout.strip()) if done.returncode else bb.note(done.stdout.strip())
    if done.returncode:
        bb.fatal("osctl %s ended with exit code %d" % (command[0], done.returncode))

python do_osctl_artifact() {
    image, slot = d.getVar("OSCTL_IMAGE"), int(d.getVar("OSCTL_SLOT_SIZE"))
    have = -(-os.path.getsize(image) // (1 << 20))
    if have > slot:
        bb.fatal("the image has %d MiB and a slot has OSCTL_SLOT_SIZE = %d MiB: make the image smaller, or set "
                 "OSCTL_SLOT_SIZE higher if the machines were installed with larger slots" % (have, slot))
    layout = os.path.join(d.getVar("OSCTLDEPLOYDIR"), d.getVar("OSCTL_LAYOUT"))
    flags = ["--epoch", d.getVar("OSCTL_EPOCH")]
    if d.getVar("OSCTL_MIN_VERSION"):
        flags += ["--min-version", d.getVar("OSCTL_MIN_VERSION")]
    osctl_run(d, "build", "--rootfs", image, "--product", d.getVar("OSCTL_PRODUCT"), "--version", d.getVar("OSCTL_VERSION"),
              "--arch", d.getVar("TARGET_GOARCH"), "--progress", "plain", "-o", layout, *flags)
}
OSCTLDEPLOYDIR = "${WORKDIR}/deploy-osctl"
SSTATETASKS += "do_osctl_artifact"
do_osctl_artifact[sstate-inputdirs] = "${OSCTLDEPLOYDIR}"
do_osctl_artifact[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_osctl_artifact[cleandirs] = "${OSCTLDEPLOYDIR}"
do_osctl_artifact[depends] += "osctl-native:do_populate_sysroot"
do_osctl_artifact[vardeps] += "OSCTL_PRODUCT OSCTL_VERSION OSCTL_EPOCH OSCTL_MIN_VERSION OSCTL_SLOT_SIZE"
addtask do_osctl_artifact after do_image_complete before do_build

python do_osctl_artifact_setscene() {
    sstate_setscene(d)
}
addtask do_osctl_artifact_setscene

def osctl_caller(d):
    """The environment that bitbake was called in, which no variable of a recipe shows."""
    origin = d.getVar("BB_ORIGENV", False)
    names = ("COSIGN_PASSWORD", "HOME", "DOCKER_CONFIG", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {name: origin.getVar(name, False) for name in names if origin.getVar(name, False) is not None}
osctl_caller[vardepsexclude] += "BB_ORIGENV"

# The signature goes into the layout in the deploy directory, not into the cache of
# shared state: a key that was taken from here signs nothing there.
python do_osctl_sign() {
    layout = os.path.join(d.getVar("DEPLOY_DIR_IMAGE"), d.getVar("OSCTL_LAYOUT"))
    environment = osctl_caller(d)
    file = d.getVar("OSCTL_SIGN_PASSWORD_FILE")
    if file:
        with open(file) as password:
            environment["COSIGN_PASSWORD"] = password.read().rstrip("\n")
    if "COSIGN_PASSWORD" not in environment:
        bb.fatal("OSCTL_SIGN_PASSWORD_FILE is not set: set it to the path of a file with the password of OSCTL_SIGN_KEY, "
                 "which may be empty, or export COSIGN_PASSWORD where bitbake is called without kas")
    osctl_run(d, "sign", layout, "--key", d.getVar("OSCTL_SIGN_KEY"), environment=environment)
}
do_osctl_sign[nostamp] = "1"
do_osctl_sign[vardepsexclude] += "OSCTL_SIGN_KEY OSCTL_SIGN_PASSWORD_FILE"

python do_osctl_push() {
    layout = os.path.join(d.getVar("DEPLOY_DIR_IMAGE"), d.getVar("OSCTL_LAYOUT"))
    osctl_run(d, "push", layout, d.getVar("OSCTL_PUSH_REF"), "--progress", "plain", environment=osctl_caller(d))
}
do_osctl_push[nostamp] = "1"
do_osctl_push[network] = "1"

python () {
    if d.getVar("OSCTL_SIGN_KEY"):
        bb.build.addtask("do_osctl_sign", "do_build", "do_osctl_artifact", d)
        if d.getVar("OSCTL_PUSH_REF"):
            bb.build.addtask("do_osctl_push", "do_build", "do_osctl_sign", d)
}
