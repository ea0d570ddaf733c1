package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kapernikov/osctl/pkg/boot"
	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/health"
)

// lacks says which of the units that the image requires do not run; empty when
// all do. osctl-health has waited for them, and its report stands; without one
// they are asked now.
func (m *machine) lacks(ctx context.Context) string {
	if len(m.expects.Units.Required) == 0 {
		return ""
	}
	kept, err := m.readReport()
	if err != nil {
		options := m.gate(health.Baseline{})
		options.Probes = nil // whether the system has come up is not for an operator's checks to say
		kept.Report = health.Run(ctx, options)
	}
	var lacks []string
	for _, c := range kept.Checks {
		if c.Kind == health.KindUnit && !c.OK && slices.Contains(m.expects.Units.Required, c.Name) {
			lacks = append(lacks, fmt.Sprintf("%s: %s", c.Name, c.Seen))
		}
	}
	return strings.Join(lacks, "; ")
}

// excuse is what keeps units from running whatever system runs: a data partition
// that is lost, read-only or full.
func (m *machine) excuse() string {
	data := filepath.Dir(m.config.StateDir)
	for _, problem := range m.degraded() {
		if strings.Contains(problem, "mounting "+data) {
			return problem
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(data, &st); err == nil && st.Blocks > 0 && st.Bavail == 0 {
		return "the data partition is full"
	}
	return ""
}

// hasRescue reports whether the rescue partition holds a file system: ext4 has its
// magic number at byte 1080, squashfs at the beginning.
func hasRescue() bool {
	path, err := disk.FindPartition("rescue")
	if err != nil {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	start := make([]byte, 2048)
	if _, err := f.ReadAt(start, 0); err != nil {
		return false
	}
	return bytes.HasPrefix(start, []byte("hsqs")) || bytes.Equal(start[1080:1082], []byte{0x53, 0xef})
}

// givenPath marks, until the next boot, that its try is settled: given back, or
// taken for good.
func (m *machine) givenPath() string { return filepath.Join(m.config.RuntimeDir, "try-settled") }

func (m *machine) markGiven() error {
	if err := os.MkdirAll(m.config.RuntimeDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.givenPath(), nil, 0o600)
}

const (
	// lockPatience is how long a shutdown waits for an osctl that is being ended.
	lockPatience = 10 * time.Second
	lockAgain    = 100 * time.Millisecond
)

// runGiveBack gives the try of this boot back, once.
func runGiveBack(ctx context.Context, o gateOptions, s streams) error {
	m, err := o.openToSettle(s)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.givenPath()); !errors.Is(err, fs.ErrNotExist) {
		return err // nil: it is settled
	}
	release, err := m.waitForLock(ctx)
	if err != nil {
		return err
	}
	// The mark comes first: a try that is lost costs less than one given twice.
	err = errors.Join(m.markGiven(), m.boot.GiveBack(m.booted))
	if errors.Is(err, boot.ErrOneCopy) {
		m.log.Warn("boot state", "error", err)
		err = nil
	}
	return errors.Join(err, release())
}

// waitForLock takes the lock as soon as who holds it has gone. A lock file has no
// event to wait for.
func (m *machine) waitForLock(ctx context.Context) (func() error, error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	tick := time.NewTicker(lockAgain)
	defer tick.Stop()
	for {
		release, err := m.lock()
		if !errors.Is(err, boot.ErrBusy) {
			return release, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}
