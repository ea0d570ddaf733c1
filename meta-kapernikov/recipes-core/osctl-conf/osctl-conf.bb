SUMMARY = "Configuration, trust policy and keys of an osctl machine"
DESCRIPTION = "What a product sets: its name in osctl.yaml, the policy, the public \
keys whose signatures make an upgrade acceptable, who logs in; and what the system \
around osctl is configured with. The files are those of the reference image."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

PV = "1.0"

FILESEXTRAPATHS:prepend := "${OSCTL_SOURCE}:"
SRC_URI = "\
    file://LICENSE \
    file://images/rootfs/etc/containerd \
    file://images/rootfs/etc/nerdctl \
    file://images/rootfs/etc/ssh \
    file://images/rootfs/usr/lib/osctl/osctl.yaml \
    file://images/rootfs/usr/lib/osctl/health.yaml \
    file://policy/policy.yaml \
    file://containerd.conf \
"
S = "${UNPACKDIR}"

# OSCTL_KEYS: the public keys that the policy names, as paths of files; each goes to
# /usr/lib/osctl/keys under its own name. The shipped policy names release.pub.
OSCTL_KEYS ??= ""
# OSCTL_POLICY: a policy of the product's own, instead of the shipped one.
OSCTL_POLICY ??= ""
# OSCTL_AUTHORIZED_KEYS: a file in the format of authorized_keys; its keys log in as
# root by ssh. Without it nobody logs in.
OSCTL_AUTHORIZED_KEYS ??= ""

OSCTL_CONF_FILES = "${OSCTL_KEYS} ${OSCTL_POLICY} ${OSCTL_AUTHORIZED_KEYS}"

inherit osctl-variables

# The product may depend on the machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"

python () {
    osctl_require(d, "OSCTL_KEYS", "an image without a key accepts no upgrade; set it to the path of release.pub")
    osctl_require(d, "OSCTL_PRODUCT", "set it in the distro to the kind of machine that the image is for")
    for variable in ("OSCTL_KEYS", "OSCTL_POLICY", "OSCTL_AUTHORIZED_KEYS"):
        osctl_require_files(d, variable)
}

# The contents of these files count, and where they lie does not.
do_install[file-checksums] += "${@' '.join(f + ':True' for f in d.getVar('OSCTL_CONF_FILES').split())}"
do_install[vardepsexclude] += "OSCTL_KEYS OSCTL_POLICY OSCTL_AUTHORIZED_KEYS"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${nonarch_libdir}/osctl/keys
    sed 's/^product: .*/product: ${OSCTL_PRODUCT}/' ${S}/images/rootfs/usr/lib/osctl/osctl.yaml \
        > ${D}${nonarch_libdir}/osctl/osctl.yaml
    grep -qx 'product: ${OSCTL_PRODUCT}' ${D}${nonarch_libdir}/osctl/osctl.yaml || bbfatal "osctl.yaml has no line for the product"
    install -m 0644 ${S}/images/rootfs/usr/lib/osctl/health.yaml ${D}${nonarch_libdir}/osctl/health.yaml
    policy=${OSCTL_POLICY}
    install -m 0644 ${policy:-${S}/policy/policy.yaml} ${D}${nonarch_libdir}/osctl/policy.yaml
    for key in ${OSCTL_KEYS}; do
        install -m 0644 $key ${D}${nonarch_libdir}/osctl/keys/
    done

    install -d ${D}${sysconfdir}
    cp -R --no-dereference --preserve=mode ${S}/images/rootfs/etc/. ${D}${sysconfdir}/
    install -d ${D}${sysconfdir}/containerd/certs.d
    # A link that leads nowhere before the machine runs has no checksum, so it is not
    # in SRC_URI.
    install -d ${D}${sysconfdir}/issue.d
    ln -s ../../run/osctl/line ${D}${sysconfdir}/issue.d/osctl.issue
    if [ -n "${OSCTL_AUTHORIZED_KEYS}" ]; then
        install -D -m 0644 ${OSCTL_AUTHORIZED_KEYS} ${D}${sysconfdir}/ssh/authorized_keys/root
    fi

    # Names of Debian that the shared configuration has: the unit of sshd in
    # health.yaml, the folder of CNI's plugins in nerdctl.toml.
    install -d ${D}${systemd_system_unitdir}/containerd.service.d
    ln -s sshd.service ${D}${systemd_system_unitdir}/ssh.service
    ln -s ../libexec/cni ${D}${nonarch_libdir}/cni
    install -m 0644 ${S}/containerd.conf ${D}${systemd_system_unitdir}/containerd.service.d/osctl.conf

    # Partitions are mounted by osctl, by label; nothing is to guess them.
    install -d ${D}${sysconfdir}/systemd/system-generators
    ln -s /dev/null ${D}${sysconfdir}/systemd/system-generators/systemd-gpt-auto-generator
}

# The rescue system has the first one only.
PACKAGES =+ "${PN}-system"
FILES:${PN} = "${nonarch_libdir}/osctl"
FILES:${PN}-system = "${sysconfdir} ${systemd_system_unitdir} ${nonarch_libdir}/cni"
RDEPENDS:${PN}-system = "${PN} openssh-sshd containerd nerdctl cni"
# /usr/lib/cni is a link into a package that this one depends on.
INSANE_SKIP:${PN}-system += "dev-so"
