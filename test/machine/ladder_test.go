package machine

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/vm"
)

// TestLadder takes one machine with a watchdog down the boot ladder and up again:
// trials that never reach user space come back by themselves, a broken /etc ends
// on the pristine rung, impatient restarts cost nothing, and the disk boots in
// another machine.
func TestLadder(t *testing.T) {
	ctx, site := begin(t, "mcopy")
	if err := site.Install(ctx); err != nil {
		t.Fatal(err)
	}
	// Slot B becomes a copy of slot A, to be spoilt in one way after the other.
	if err := copySlot(site.Disk()); err != nil {
		t.Fatal(err)
	}
	l := &ladder{Story{Site: site, tell: site.tell}}
	l.closeAtEnd(t)
	for _, chapter := range []struct {
		name string
		long bool // left to make crash: each boot takes most of a minute
		tell func(context.Context) error
	}{
		{"the kernel of the trial is missing", false, l.kernelMissing},
		{"the watchdog is armed", false, l.watchdog},
		{"the trial hangs in user space", false, l.hangsInUserSpace},
		{"a broken /etc", false, l.brokenEtc},
		{"the trial has no init", true, l.noInit},
		{"the trial panics", true, l.panics},
		{"the trial hangs in the initrd", true, l.hangsInInitrd},
		{"five impatient restarts", true, l.impatience},
		{"an /etc that masks sshd and dbus", true, l.maskedUnits},
		{"the disk in another machine", true, l.otherMachine},
	} {
		if chapter.long && !exhaustive() {
			continue
		}
		if !t.Run(chapter.name, func(t *testing.T) {
			if err := chapter.tell(ctx); err != nil {
				t.Fatal(err)
			}
		}) {
			return
		}
	}
}

// ladder is the machine on its way.
type ladder struct{ Story }

func (l *ladder) start(ctx context.Context, name, device string) (err error) {
	l.Machine, err = vm.Start(ctx, vm.Config{
		Disk: l.Site.Disk(), Dir: filepath.Join(l.Site.dir, name), Key: l.Site.ssh, Device: device, Watchdog: true,
	})
	return err
}

// copySlot makes slot B hold what slot A holds, by the layout of the installation.
func copySlot(disk string) (err error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	from := io.NewSectionReader(f, 65*mib, slotSize)
	_, err = io.Copy(io.NewOffsetWriter(f, 65*mib+slotSize), from)
	return err
}

// bootState is a boot state as GRUB reads it: that of an installation, but for what
// is given.
func bootState(ustate int, rootfs string, tries, rung int) string {
	text := fmt.Sprintf("# GRUB Environment Block\nseq=900\nustate=%d\nrootfs=%s\nboot_counter=%d\nrung=%d\nother=0\nend=900\n", ustate, rootfs, tries, rung)
	return text + strings.Repeat("#", 1024-len(text))
}

// setEnv writes a boot state onto the disk of a machine that does not run.
func (s *Site) setEnv(ctx context.Context, state string) error {
	env := filepath.Join(s.dir, "env")
	if err := os.WriteFile(env, []byte(state), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		if err := s.quiet(ctx, "mcopy", "-o", "-i", s.Disk()+"@@1M", env, "::/osctl/"+name+"/grubenv"); err != nil {
			return err
		}
	}
	return nil
}

// arm puts slot B on trial by hand: how osctl does it is another test's business.
func (l *ladder) arm(ctx context.Context, tries int) error {
	env := base64.StdEncoding.EncodeToString([]byte(bootState(1, "B", tries, 0)))
	_, err := l.run(ctx, "for c in a b; do echo "+env+" | base64 -d | dd of=/efi/osctl/$c/grubenv conv=notrunc status=none; done; sync", 0)
	return err
}

// spoil makes slot B, which does not run, whole again, and changes it.
func (l *ladder) spoil(ctx context.Context, commands string) error {
	_, err := l.run(ctx, "set -e; mkdir -p /run/b; mount /dev/disk/by-partlabel/rootfsB /run/b; cd /run/b; "+
		"cp -a /boot/. boot/; rm -f usr/lib/osctl/preinit; cp -a /usr/lib/osctl/preinit usr/lib/osctl/; "+
		commands+"; cd /; umount /run/b", 0)
	return err
}

// tryAndReturn boots the spoilt trial, sees on the console what is wrong with it,
// and the machine come back by itself.
func (l *ladder) tryAndReturn(ctx context.Context, wrong string) error {
	if err := l.arm(ctx, 1); err != nil {
		return err
	}
	if err := l.reboot(ctx); err != nil {
		return err
	}
	for _, line := range []string{`osctl: slot B \(trial\)`, wrong, `osctl: slot A \(fallback\)`, `recorded the fall back: slot B`} {
		if err := l.settled(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

func (l *ladder) kernelMissing(ctx context.Context) error {
	if err := l.Site.setEnv(ctx, bootState(1, "B", 3, 0)); err != nil {
		return err
	}
	if err := l.removeKernel(ctx); err != nil {
		return err
	}
	if err := l.start(ctx, "machine", ""); err != nil {
		return err
	}
	if err := l.settled(ctx, `osctl: slot B cannot be started`); err != nil {
		return err
	}
	return l.settled(ctx, `recorded the fall back: slot B`)
}

// removeKernel takes the kernel out of slot B on the host.
func (l *ladder) removeKernel(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--offset", fmt.Sprint(65*mib+slotSize), "--sizelimit", fmt.Sprint(slotSize), l.Site.Disk()).Output()
	if err != nil {
		return fmt.Errorf("attaching slot B: %w", err)
	}
	loop := strings.TrimSpace(string(out))
	err = l.Site.quiet(ctx, "debugfs", "-w", "-R", "rm /boot/vmlinuz", loop)
	return errors.Join(err, l.Site.quiet(ctx, "losetup", "--detach", loop))
}

func (l *ladder) watchdog(ctx context.Context) error {
	_, err := l.run(ctx, "grep -H . /sys/class/watchdog/watchdog0/{identity,state,timeout}; systemctl show --property RuntimeWatchdogUSec", 0,
		"identity:i6300ESB timer", "state:active", "timeout:60", "RuntimeWatchdogUSec=1min")
	return err
}

// noInit: the initrd must not offer a shell in its place.
func (l *ladder) noInit(ctx context.Context) error {
	if err := l.spoil(ctx, "rm usr/lib/osctl/preinit"); err != nil {
		return err
	}
	return l.tryAndReturn(ctx, `osctl: the slot has no /usr/lib/osctl/preinit`)
}

// panics: process 1 ends, so the kernel panics.
func (l *ladder) panics(ctx context.Context) error {
	if err := l.spoil(ctx, preinit("exit 1")); err != nil {
		return err
	}
	return l.tryAndReturn(ctx, `Kernel panic`)
}

// preinit is a command that gives the slot another process 1.
func preinit(script string) string {
	return fmt.Sprintf(`rm usr/lib/osctl/preinit; printf '#!/bin/sh\n%s\n' >usr/lib/osctl/preinit; chmod 755 usr/lib/osctl/preinit`, script)
}

// hangsInInitrd: a second archive behind the initial RAM disk adds a script that
// never ends.
func (l *ladder) hangsInInitrd(ctx context.Context) error {
	archive := cpio(map[string]string{
		"scripts": "", "scripts/init-premount": "",
		"scripts/init-premount/ORDER": "/scripts/init-premount/hang \"$@\"\n",
		"scripts/init-premount/hang":  "#!/bin/sh\necho 'hanging in the initrd' >/dev/console\nwhile :; do sleep 1000; done\n",
	})
	err := l.spoil(ctx, "truncate -s %4 boot/initrd.img; echo "+base64.StdEncoding.EncodeToString(archive)+" | base64 -d >>boot/initrd.img")
	if err != nil {
		return err
	}
	return l.tryAndReturn(ctx, `hanging in the initrd`)
}

// cpio packs files, and folders, which have no text, into an archive in the "newc"
// format that the kernel unpacks: a header of hexadecimal numbers, the name and the
// text, each padded to four bytes.
func cpio(files map[string]string) []byte {
	var out []byte
	pad := func() {
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	entry := func(name string, mode int, text string) {
		out = fmt.Appendf(out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			0, mode, 0, 0, 1, 0, len(text), 0, 0, 0, 0, len(name)+1, 0, name)
		pad()
		out = append(out, text...)
		pad()
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode := 0o100755
		if files[name] == "" {
			mode = 0o40755
		}
		entry(name, mode, files[name])
	}
	entry("TRAILER!!!", 0, "")
	return out
}

// hangsInUserSpace: process 1 does nothing, so nobody feeds the watchdog.
func (l *ladder) hangsInUserSpace(ctx context.Context) error {
	err := l.spoil(ctx, preinit(`echo hanging in user space\nwhile :; do sleep 1000; done`))
	if err != nil {
		return err
	}
	return l.tryAndReturn(ctx, `hanging in user space`)
}

// brokenEtc: a mount that cannot work keeps the system from its targets.
func (l *ladder) brokenEtc(ctx context.Context) error {
	if _, err := l.run(ctx, "echo 'nothing /nowhere nosuchfs defaults 0 0' >>/etc/fstab", 0); err != nil {
		return err
	}
	if err := l.reboot(ctx); err != nil {
		return err
	}
	for _, line := range []string{
		`osctl: slot A \(committed\)`, `osctl: restarting`, `osctl: slot A \(committed\)`, `osctl: restarting`,
		`osctl: slot A \(committed\)`, `osctl: restarting`, `osctl: slot A \(pristine\)`,
		`nothing to do: slot A: slot A is committed, and runs with a pristine /etc`,
	} {
		if err := l.settled(ctx, line); err != nil {
			return err
		}
	}
	return l.mend(ctx)
}

// mend removes what broke /etc. The machine's keys are in the same folder and were
// taken over, or nobody could log in.
func (l *ladder) mend(ctx context.Context) error {
	if _, err := l.run(ctx, "osctl status", 0, "it runs with the pristine one of its image; it stopped with: emergency.target was reached"); err != nil {
		return err
	}
	_, err := l.run(ctx, "rm /data/etc/A/upper/fstab; osctl history | head -3", 0, "pristine")
	return err
}

// maskedUnits: systemd comes up, and nobody can log in. The gate of this machine, whose
// patience is shortened here, says so; the pristine rung says why, and is the place to
// mend it.
func (l *ladder) maskedUnits(ctx context.Context) error {
	_, err := l.run(ctx, "systemctl mask ssh.service ssh.socket dbus.service dbus.socket 2>&1; "+
		"mkdir -p /etc/osctl; sed 's/deadline: .*/deadline: 15s/' /usr/lib/osctl/health.yaml >/etc/osctl/health.yaml", 0)
	if err != nil {
		return err
	}
	if err := l.reboot(ctx); err != nil {
		return err
	}
	down := []string{`osctl: slot A \(committed\)`, `did not come up: slot A: .*ssh.service: masked`}
	up := []string{`osctl: slot A \(pristine\)`, `nothing to do: slot A: slot A is committed, and runs with a pristine /etc`}
	for _, line := range slices.Concat(down, down, down, up) {
		if err := l.settled(ctx, line); err != nil {
			return err
		}
	}
	if _, err := l.run(ctx, "osctl status", 0, "it runs with the pristine one of its image", "slot A lacked ", "ssh.service: masked"); err != nil {
		return err
	}
	if _, err := l.run(ctx, "osctl etc reset systemd/system osctl/health.yaml", 0, "The next boot of slot A resets"); err != nil {
		return err
	}
	if err := l.reboot(ctx); err != nil {
		return err
	}
	if err := l.settled(ctx, `osctl: slot A \(committed\)`); err != nil {
		return err
	}
	return l.settled(ctx, `nothing to do: slot A: slot A is committed`+"$")
}

// impatience: each restart comes as soon as somebody can log in.
func (l *ladder) impatience(ctx context.Context) error {
	for range 5 {
		if err := l.reboot(ctx); err != nil {
			return err
		}
		if err := l.settled(ctx, `osctl: slot A \(committed\)`); err != nil {
			return err
		}
		if err := l.Machine.Connect(ctx); err != nil {
			return err
		}
	}
	return l.settled(ctx, `nothing to do: slot A: slot A is committed`+"$")
}

// otherMachine: another port, another controller, a firmware that knows nothing.
func (l *ladder) otherMachine(ctx context.Context) error {
	if err := l.Machine.PowerOff(ctx); err != nil {
		return err
	}
	if err := l.Machine.Close(); err != nil {
		return err
	}
	if err := l.start(ctx, "other", "ide-hd,drive=disk,bus=ide.3"); err != nil {
		return err
	}
	if err := l.settled(ctx, `nothing to do: slot A: slot A is committed`); err != nil {
		return err
	}
	_, err := l.run(ctx, "findmnt -no SOURCE /", 0, "/dev/sda2")
	return err
}
