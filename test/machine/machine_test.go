package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kapernikov/osctl/test/need"
)

// logNarrator tells the story to the test's log.
type logNarrator struct{ t *testing.T }

func (n logNarrator) Title(text string)              { n.t.Log("==", text) }
func (n logNarrator) Command(prompt, command string) { n.t.Log(prompt, command) }
func (n logNarrator) Output() io.Writer              { return lineWriter(n) }

type lineWriter struct{ t *testing.T }

func (w lineWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// exhaustive says that this is the long run (make crash).
func exhaustive() bool { return os.Getenv("OSCTL_EXHAUSTIVE") != "" }

// begin makes the site of a test. Machines run side by side: each waits for its clock more
// than it computes.
func begin(t *testing.T, tools ...string) (context.Context, *Site) {
	t.Helper()
	need.Long(t)
	need.Root(t)
	for _, tool := range append([]string{"qemu-system-x86_64", "mmdebstrap", "docker-registry"}, tools...) {
		need.Tool(t, tool)
	}
	t.Parallel()
	limit := 75 * time.Minute
	if exhaustive() {
		limit *= 2 // the ladder alone boots thirty times
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	site, err := NewSite(ctx, t.TempDir(), logNarrator{t})
	if err != nil {
		t.Fatal(err)
	}
	site.Etc = map[string]string{gateFile: gateOf("5m", "5s"), consoleFile: onConsole}
	t.Cleanup(func() {
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, site
}

// closeAtEnd ends the machine that the story has then.
func (s *Story) closeAtEnd(t *testing.T) {
	t.Cleanup(func() {
		if s.Machine == nil {
			return
		}
		if t.Failed() {
			t.Log(s.Machine.Tail(80))
		}
		if err := s.Machine.Close(); err != nil {
			t.Error(err)
		}
		s.Site.reportGates(t)
	})
}

// TestMachine is the demonstration's story, and then a power cut. One machine lives
// through all of it: a boot under emulation is the expensive part.
func TestMachine(t *testing.T) {
	ctx, site := begin(t)
	site.Etc[gateFile] = gateOf("150s", "5s") // of which the last upgrade uses up all
	story, err := Begin(ctx, site, nil)
	if err != nil {
		t.Fatal(err)
	}
	story.closeAtEnd(t)
	for _, chapter := range []struct {
		name string
		tell func(context.Context) error
	}{
		{"the system is what it should be", story.soundSystem},
		{"story", story.Tell},
		{"power cut while the slot is written", story.powerCut},
		{"rollback by hand", story.rollBack},
	} {
		if !t.Run(chapter.name, func(t *testing.T) {
			defer chapterEnd(t, time.Now())
			if err := chapter.tell(ctx); err != nil {
				t.Fatal(err)
			}
		}) {
			return
		}
	}
}

// soundSystem checks the promises of the image itself.
func (s *Story) soundSystem(ctx context.Context) error {
	for _, c := range []struct {
		command string
		exit    int
		want    string
	}{
		{"systemctl is-system-running", 0, "running"},
		{"awk '$2 == \"/\" {print $4}' /proc/mounts | cut -d, -f1", 0, "ro"},
		{"touch /usr/x 2>&1", 1, "Read-only file system"},
		{"findmnt -no FSTYPE /etc; findmnt -no TARGET /data; findmnt -no TARGET /efi", 0, "overlay\n/data\n/efi"},
		{"cat /proc/cmdline", 0, "panic=10"},
		{"sshd -T | grep -i '^passwordauthentication\\|^permitrootlogin' | sort", 0, "passwordauthentication no\npermitrootlogin without-password"},
		{"awk -F: '$2 !~ /^[!*]/ {print \"login: \" $1}' /etc/shadow; echo end", 0, "end"},
		{"cat /run/osctl/preinit.json", 0, `"slot": "A"`},
		{"osctl upgrade --digest sha256:short x 2>&1", 2, "64 hexadecimal digits"},
	} {
		out, err := s.run(ctx, c.command, c.exit, c.want)
		if err != nil {
			return err
		}
		if strings.Contains(out, "login: ") {
			return fmt.Errorf("somebody can log in with a password: %s", out)
		}
	}
	return nil
}

// cut is an upgrade that the power is cut in.
type cut struct {
	booted, running string // slot and version that run
	target, version string // slot and version that are being written
}

// powerCut pulls the plug while slot A is written.
func (s *Story) powerCut(ctx context.Context) error {
	return s.cutAndRepeat(ctx, cut{booted: "B", running: "1.1", target: "A", version: "1.2"})
}

// cutAndRepeat pulls the plug in the middle of writing a slot, and then gives the
// same command again.
func (s *Story) cutAndRepeat(ctx context.Context, c cut) error {
	before, err := s.readSlot(c.booted, slotSize)
	if err != nil {
		return err
	}
	if err := s.cutPower(ctx, c); err != nil {
		return err
	}
	// GRUB finds no file system in the slot that was being written.
	start, err := s.readSlot(c.target, mib)
	if err != nil {
		return err
	}
	if !bytes.Equal(start, make([]byte, mib)) {
		return fmt.Errorf("slot %s begins with a file system though it is half written", c.target)
	}
	if s.Machine, err = s.Site.Start(ctx, nil); err != nil {
		return err
	}
	if err := s.settled(ctx, fmt.Sprintf("nothing to do: slot %[1]s: slot %[1]s is committed", c.booted)); err != nil {
		return err
	}
	_, err = s.run(ctx, "osctl status", 0, fmt.Sprintf("reference runs %s from slot %s, committed", c.running, c.booted), fmt.Sprintf("slot %s: empty", c.target))
	if err != nil {
		return err
	}
	if s.visits > 0 {
		if err := s.visit(ctx); err != nil {
			return err
		}
	}
	if _, err := s.run(ctx, "osctl rollback 2>&1", 1, "holds no system that was committed here"); err != nil {
		return err
	}
	// The same command again goes on where it stopped.
	out, err := s.run(ctx, "osctl upgrade --progress none --json --retry "+s.Site.Ref("os:"+c.version), 0, `"outcome": "staged"`)
	if err != nil {
		return err
	}
	if strings.Contains(out, `"segmentsReused": 0`) {
		return fmt.Errorf("nothing of the interrupted write was reused:\n%s", out)
	}
	after, err := s.readSlot(c.booted, slotSize)
	if err == nil && !bytes.Equal(before, after) {
		err = fmt.Errorf("the running slot %s changed", c.booted)
	}
	return err
}

// cutPower starts the upgrade and pulls the plug when half is written.
func (s *Story) cutPower(ctx context.Context, c cut) error {
	// The slot may hold the image already; without that there is something to write.
	wipe := fmt.Sprintf("dd if=/dev/zero of=/dev/disk/by-partlabel/rootfs%s bs=1M count=440 conv=fsync 2>&1 | tail -1", c.target)
	if _, err := s.run(ctx, wipe, 0); err != nil {
		return err
	}
	halfway := newTrigger("writing: 50%")
	done := make(chan error, 1)
	go func() {
		_, err := s.Machine.Stream(ctx, "osctl upgrade --progress plain --retry "+s.Site.Ref("os:"+c.version), io.Discard, halfway)
		done <- err
	}()
	select {
	case <-halfway.seen:
	case err := <-done:
		return fmt.Errorf("the upgrade ended before it could be cut: %w", err)
	}
	if err := s.Machine.PowerCut(ctx); err != nil {
		return err
	}
	<-done // the connection is gone
	return s.Machine.Close()
}

const (
	mib      = 1 << 20
	slotSize = 1024 * mib // of the installation
	diskSize = 6144 * mib
)

// readSlot reads the start of a slot from the disk image. The layout of the
// installation: 1 MiB, an ESP of 64 MiB, the two slots.
func (s *Story) readSlot(name string, size int) ([]byte, error) {
	f, err := os.Open(s.Site.Disk())
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	off := int64(65 * mib)
	if name == "B" {
		off += slotSize
	}
	p := make([]byte, size)
	_, err = f.ReadAt(p, off)
	return p, err
}

// rollBack takes the armed trial back, and a proven slot up again.
func (s *Story) rollBack(ctx context.Context) error {
	if _, err := s.run(ctx, "osctl rollback", 0, "Slot B starts at the next boot: the armed trial is taken back"); err != nil {
		return err
	}
	if _, err := s.run(ctx, "osctl upgrade --progress none --retry --reboot "+s.Site.Ref("os:1.1")+" --digest "+strings.Repeat("0", 64), 2, "64 hexadecimal digits"); err != nil {
		return err
	}
	_, err := s.run(ctx, "osctl status | head -1", 0, "reference runs 1.1 from slot B, committed")
	return err
}

// trigger closes seen when a text has come by.
type trigger struct {
	mu   sync.Mutex
	text string
	buf  strings.Builder
	seen chan struct{}
	done bool
}

func newTrigger(text string) *trigger { return &trigger{text: text, seen: make(chan struct{})} }

func (t *trigger) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if !t.done && strings.Contains(t.buf.String(), t.text) {
		t.done = true
		close(t.seen)
	}
	return len(p), nil
}

// The demonstration's transcript in docs/ was made by this very story.
func TestTranscriptTellsTheStory(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(need.Top(), "docs", "demo.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"found no signature", "wanted a signature by release", "reference 1.1 is in slot B and starts at the next boot, on trial",
		"committed: slot B", "rolled back: slot A", "recorded the fall back: slot A", "a failed trial here",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/demo.md lacks %q", want)
		}
	}
}
