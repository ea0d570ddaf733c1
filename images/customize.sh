#!/bin/bash
# Turns a freshly installed Debian tree ($1) into one that is mounted read-only
# and replaced as a whole. base.sh runs it; it needs root, for chroot.
set -euo pipefail

root=$1

# Boot files under fixed names, as real files: GRUB knows no versions.
mv "$root"/boot/vmlinuz-* "$root/boot/vmlinuz"
mv "$root"/boot/initrd.img-* "$root/boot/initrd.img"
rm -f "$root"/boot/System.map-* "$root"/vmlinuz* "$root"/initrd.img*

# The system is updated as a whole, so no package manager and none of its jobs.
# usrmerge has done its work at the installation, and is the only one to need perl.
chroot "$root" dpkg --purge --force-depends apt libapt-pkg6.0 usrmerge perl perl-modules-5.36 \
	libperl5.36 libfile-find-rule-perl libnumber-compare-perl libtext-glob-perl >/dev/null
rm -rf "$root"/etc/apt "$root"/etc/kernel "$root"/var/lib/apt "$root"/var/cache/apt \
	"$root"/var/cache/debconf "$root"/var/lib/dpkg/*-old "$root"/var/lib/systemd/catalog/database \
	"$root"/var/log/* "$root"/etc/*- "$root"/var/cache/ldconfig \
	"$root"/usr/lib/udev/hwdb.d
rm -f "$root"/etc/systemd/system/timers.target.wants/{apt-daily,apt-daily-upgrade,dpkg-db-backup,e2scrub_all}.timer \
	"$root"/etc/systemd/system/multi-user.target.wants/{e2scrub_reap.service,remote-fs.target}

# The list of what is installed, readable on the machine, where /var is made anew.
mkdir -p "$root/usr/lib/sysimage"
mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
ln -s ../../usr/lib/sysimage/dpkg "$root/var/lib/dpkg"

chroot "$root" systemctl --quiet enable systemd-networkd.service /usr/share/systemd/tmp.mount
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
chroot "$root" systemctl --quiet set-default multi-user.target
# Their results are in the tree already, would be lost at the next boot, or serve
# nobody here.
chroot "$root" systemctl --quiet mask \
	ldconfig.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
	systemd-sysusers.service systemd-update-done.service systemd-firstboot.service \
	systemd-random-seed.service systemd-network-generator.service \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount
# Partitions are mounted by osctl, by label; nothing is to guess them.
mkdir -p "$root/etc/systemd/system-generators"
ln -s /dev/null "$root/etc/systemd/system-generators/systemd-gpt-auto-generator"

# Each machine makes its own: an empty machine-id means "not the first boot of
# an unknown system", so that systemd does not apply presets.
: >"$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_*key* "$root/var/lib/dbus/machine-id" "$root/etc/.pwd.lock" \
	"$root"/etc/.resolv.conf.*
echo reference >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
ln -sfn ../run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/fstab"
: >"$root/etc/default/locale"
chroot "$root" passwd --quiet --lock root

# The home of root lies on the data partition.
rm -rf "$root/root"
mkdir -m 0700 "$root/root"
mkdir -p "$root/data" "$root/efi"
