package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// TestRescueLadder has a machine come down to a rescue system that hangs, then
// panics, then comes up and waits for longer than its watchdog: each is one try, and
// after the third GRUB starts over at the top, where the slot comes up.
func TestRescueLadder(t *testing.T) {
	if !exhaustive() {
		t.Skip("left to make crash: a machine that hangs for a minute")
	}
	ctx, site := begin(t, "mcopy")
	overlay, err := site.brokenRescue()
	if err != nil {
		t.Fatal(err)
	}
	if err := site.buildRescue(ctx, "--overlay", overlay); err != nil {
		t.Fatal(err)
	}
	if err := site.Install(ctx, "--policy", "rescue.yaml", "--rescue", "os-rescue"); err != nil {
		t.Fatal(err)
	}
	if err := site.setEnv(ctx, bootState(0, "A", 3, 3)); err != nil {
		t.Fatal(err)
	}
	l := &ladder{Story{Site: site, tell: site.tell}}
	l.closeAtEnd(t)
	if err := l.rescueTries(ctx); err != nil {
		t.Fatal(err)
	}
}

func (l *ladder) rescueTries(ctx context.Context) error {
	if err := l.start(ctx, "machine", ""); err != nil {
		return err
	}
	// That it is going to panic may be on the line of the panic itself.
	for _, line := range []string{
		`osctl: rescue`, `this rescue system hangs`, `osctl: rescue`, `Kernel panic`,
		`osctl: rescue`, `osctl rescue: starting`, `nothing newer. The next look is in 15s`, `next look is in 30s`,
		`next look is in 1m0s`, `next look is in 2m0s`,
	} {
		if err := l.settled(ctx, line); err != nil {
			return err
		}
	}
	// Waiting was one boot. Somebody pulls the plug.
	if err := l.Machine.PowerCut(ctx); err != nil {
		return err
	}
	if err := l.Machine.Close(); err != nil {
		return err
	}
	if err := l.start(ctx, "machine", ""); err != nil {
		return err
	}
	for _, line := range []string{`osctl: slot A \(committed\)`, `nothing to do: slot A: slot A is committed`} {
		if err := l.settled(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// brokenInit is process 1 of a rescue system that hangs at its first start, panics at
// its second, and is what it should be at its third.
const brokenInit = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
/usr/lib/osctl/watchdog
modprobe -a virtio_pci virtio_blk ext4
until [ -b /dev/vda5 ]; do sleep 1; done
mount -t ext4 /dev/vda5 /data
echo >>/data/starts
starts=$(grep -c '' /data/starts)
umount /data
case $starts in
1)
	echo 'this rescue system hangs' >/dev/console
	while :; do sleep 1000; done
	;;
2)
	echo 'this rescue system panics' >/dev/console
	exit 1
	;;
esac
umount /dev /proc
exec /sane
`

// brokenRescue is an overlay for the rescue system. Its watchdog waits for a minute,
// which is less than the pauses between attempts take.
func (s *Site) brokenRescue() (string, error) {
	images := filepath.Join(need.Top(), "images")
	sane, err := os.ReadFile(filepath.Join(images, "rescue", "init"))
	if err != nil {
		return "", err
	}
	watchdog, err := os.ReadFile(filepath.Join(images, "initramfs", "watchdog"))
	if err != nil {
		return "", err
	}
	brisk := strings.Replace(string(watchdog), "seconds=300", "seconds=60", 1)
	if brisk == string(watchdog) {
		return "", fmt.Errorf("the watchdog's time is not where it was")
	}
	overlay := filepath.Join(s.dir, "overlay")
	for name, text := range map[string]string{"init": brokenInit, "sane": string(sane), "usr/lib/osctl/watchdog": brisk} {
		path := filepath.Join(overlay, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil { // #nosec it is run
			return "", err
		}
	}
	return overlay, nil
}
