package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/test/need"
)

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func TestConsoleDropsControlSequences(t *testing.T) {
	var raw, clean bytes.Buffer
	c := newConsole(nopCloser{&raw}, &clean)
	input := "\x1b[2J\x1b[01;01HWelcome\r\n[\x1b[0;32m  OK  \x1b[0m] up\x1b=\x07\n"
	for _, b := range []byte(input) { // in the smallest pieces
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff("Welcome\n[  OK  ] up\n", clean.String()); diff != "" {
		t.Errorf("cleaned text (-want +got):\n%s", diff)
	}
	if raw.String() != input {
		t.Errorf("the log has %q, want it unchanged", raw.String())
	}
}

func TestWaitGoesOnAfterTheLineItReturned(t *testing.T) {
	c := newConsole(nopCloser{io.Discard}, nil)
	boot := regexp.MustCompile(`boot \d`)
	io.WriteString(c, "boot 1\nother\n")
	got, err := c.wait(t.Context(), boot)
	if got != "boot 1" || err != nil {
		t.Fatalf("first wait: %q, %v", got, err)
	}
	// What a failed wait has looked at stays there for the next one.
	ended, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("long enough")
	cancel(reason)
	if _, err := c.wait(ended, boot); !errors.Is(err, reason) {
		t.Fatalf("wait with an ended context: %v, want %v", err, reason)
	}
	if got, err := c.wait(t.Context(), regexp.MustCompile("other")); got != "other" || err != nil {
		t.Fatalf("wait after a failed one: %q, %v", got, err)
	}
	go func() {
		io.WriteString(c, "bo")
		io.WriteString(c, "ot 2") // a prompt: no line feed follows
	}()
	if got, err := c.wait(t.Context(), boot); got != "boot 2" || err != nil {
		t.Fatalf("second wait: %q, %v", got, err)
	}
	go c.close()
	if _, err := c.wait(t.Context(), boot); !errors.Is(err, ErrEnded) {
		t.Fatalf("wait at the end: %v, want %v", err, ErrEnded)
	}
}

func TestTail(t *testing.T) {
	c := newConsole(nopCloser{io.Discard}, nil)
	io.WriteString(c, "one\ntwo\nthree\n")
	if got := c.tail(2); got != "two\nthree" {
		t.Errorf("tail(2) = %q", got)
	}
	if got := c.tail(9); got != "one\ntwo\nthree" {
		t.Errorf("tail(9) = %q", got)
	}
}

// TestMachine starts a real machine without an operating system: the firmware
// says so on the console.
func TestMachine(t *testing.T) {
	need.Long(t)
	need.Tool(t, "qemu-system-x86_64")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	dir := t.TempDir()
	disk := filepath.Join(dir, "disk,1.img") // a comma is special to QEMU
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	m, err := Start(ctx, Config{Disk: disk, Dir: filepath.Join(dir, "machine"), Forwards: []Forward{{Guest: 8080}}, Console: &seen})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Addr(22) == "" || m.Addr(8080) == "" || m.Addr(22) == m.Addr(8080) || m.Addr(80) != "" {
		t.Errorf("addresses: ssh %q, 8080 %q, 80 %q", m.Addr(22), m.Addr(8080), m.Addr(80))
	}
	firmware := regexp.MustCompile("BdsDxe: (failed to load|No bootable|loading)")
	if _, err := m.Wait(ctx, firmware); err != nil {
		t.Fatal(err)
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(ctx, firmware); err != nil {
		t.Fatalf("after a reset: %v", err)
	}
	pid := m.process.Pid
	if err := m.PowerCut(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("QEMU (%d) is still there: %v", pid, err)
	}
	_, err = m.Wait(ctx, regexp.MustCompile("never printed"))
	if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "BdsDxe") || !strings.Contains(err.Error(), "never printed") {
		t.Errorf("waiting for a machine without power: %v, want %v, what for, and the console", err, ErrEnded)
	}
	if _, err := m.Run(ctx, "true"); err == nil {
		t.Error("a command ran without a machine")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Contains(seen.Bytes(), []byte("BdsDxe")) {
		t.Errorf("the copy of the console has %q", seen.String())
	}
}

func TestStartSaysWhatIsMissing(t *testing.T) {
	need.Long(t)
	need.Tool(t, "qemu-system-x86_64")
	_, err := Start(t.Context(), Config{Disk: filepath.Join(t.TempDir(), "absent.img"), Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "absent.img") {
		t.Fatalf("start without a disk: %v, want QEMU's message", err)
	}
}
