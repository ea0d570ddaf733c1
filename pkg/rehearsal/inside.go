package rehearsal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where the container has things. The names are its own: what is entered is below
// targetRoot and runningRoot.
const (
	targetRoot  = "/slot"
	runningRoot = "/running"
	reportFile  = "/out/report"
)

// maxLines and maxOutput, in bytes, are what is kept of what a program says: a person
// reads it.
const (
	maxLines  = 40
	maxOutput = 64 << 10
)

// Inside is what runs within the container: the checks, for no longer than the duration
// that is its one argument. It writes what it sees and judges nothing. It is of no use
// anywhere else.
func Inside(args []string) error {
	if len(args) != 1 || os.Getpid() != 1 {
		return errors.New("this is for the container of a rehearsal")
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return fmt.Errorf("reading the limit: %w", err)
	}
	report, err := os.OpenFile(reportFile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	i := inside{report: report, share: limit / 3, target: targetRoot, running: runningRoot, sweep: killRest}
	return errors.Join(i.run(ctx), report.Close())
}

// inside runs checks; a test has systems of its own.
type inside struct {
	report          io.Writer
	share           time.Duration // what one check may take
	target, running tree
	sweep           func() // ends what a check has left
}

func (i inside) run(ctx context.Context) error {
	lines := json.NewEncoder(i.report)
	for _, c := range checks() {
		if ctx.Err() != nil {
			return nil
		}
		now := i.ask(ctx, c, i.target)
		if err := lines.Encode(now); err != nil {
			return fmt.Errorf("reporting: %w", err)
		}
		if !now.bad() || ctx.Err() != nil {
			continue
		}
		before := i.ask(ctx, c, i.running)
		before.Running = true
		if err := lines.Encode(before); err != nil {
			return fmt.Errorf("reporting: %w", err)
		}
	}
	return nil
}

// ask runs one check in one system.
func (i inside) ask(ctx context.Context, c check, root tree) outcome {
	ctx, cancel := context.WithTimeout(ctx, i.share)
	defer cancel()
	begin := time.Now()
	o := outcome{Check: c.name}
	var commands []command
	commands, o.Lines, o.Skipped = c.prepare(root)
	o.Failed = len(o.Lines) > 0
	for _, command := range commands {
		said, failed := command.run(ctx, root)
		i.sweep()
		o.Failed = o.Failed || failed
		for _, line := range said {
			if !slices.Contains(o.Lines, line) {
				o.Lines = append(o.Lines, line)
			}
		}
	}
	if ctx.Err() != nil {
		o.Late = true
	}
	if len(o.Lines) > maxLines {
		o.Lines = append(o.Lines[:maxLines], fmt.Sprintf("… and %d lines more", len(o.Lines)-maxLines))
	}
	o.Seconds = time.Since(begin).Seconds()
	return o
}

// run runs a command with its system as the root directory.
func (c command) run(ctx context.Context, root tree) (lines []string, failed bool) {
	var out, errs clipped
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	// The path is the system's, not ours, whatever the library found here.
	cmd.Path, cmd.Err = c.argv[0], nil
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errs
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_COLORS=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: string(root), Setpgid: true}
	// What has left the group may hold the pipes; the sweep afterwards ends it.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	lines = split(errs.String())
	if c.stdout {
		for _, line := range split(out.String()) {
			if strings.Contains(line, "not found") { // ld.so(8), --list
				lines, failed = append(lines, line), true
			}
		}
	}
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return lines, failed
	case !errors.As(err, &exit), exit.Sys().(syscall.WaitStatus).Signaled():
		lines = append(lines, fmt.Sprintf("%s: %v", c.argv[0], err))
	case len(lines) == 0:
		lines = []string{fmt.Sprintf("%s ended with %v", c.argv[0], err)}
	}
	return lines, true
}

// split makes lines of an output, without empty ones.
func split(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(strings.ToValidUTF8(line, "?")); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// clipped keeps the beginning of what is written to it.
type clipped struct{ bytes.Buffer }

func (c *clipped) Write(p []byte) (int, error) {
	if room := maxOutput - c.Len(); room < len(p) {
		c.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return c.Buffer.Write(p)
}

// killRest ends all processes of the container but this one, which is its first, and
// buries them.
func killRest() {
	if unix.Kill(-1, unix.SIGKILL) != nil {
		return // nothing was left
	}
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
