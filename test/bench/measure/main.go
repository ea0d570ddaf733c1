// Command measure runs a command and writes what it has cost to file descriptor
// 3, as JSON. It exists because a child's peak memory, as wait4(2) gives it,
// begins with that of the process it was forked from: this one is small.
//
// It changes nothing but one thing: with a first argument of the form
// --systemd=DIR the command sees DIR as /run/systemd, in a mount namespace that
// the caller has made.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(run(os.Args[1:])) }

// cost is the JSON; times are in nanoseconds, memory in bytes.
type cost struct {
	Wall, CPU time.Duration
	MaxRSS    int64
}

func run(args []string) int {
	if dir, ok := strings.CutPrefix(args[0], "--systemd="); ok {
		args = args[1:]
		if err := showSystemd(dir); err != nil {
			fmt.Fprintln(os.Stderr, "measure:", err)
			return 125
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	c := cost{Wall: time.Since(start)}
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		return 125
	}
	c.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.MaxRSS = usage.Maxrss << 10 // the kernel counts in KiB
	}
	out := os.NewFile(3, "result")
	if err := errors.Join(json.NewEncoder(out).Encode(c), out.Close()); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		return 125
	}
	return cmd.ProcessState.ExitCode()
}

// showSystemd puts a private systemd's folder where the system's would be.
func showSystemd(dir string) error {
	if err := os.MkdirAll("/run/systemd", 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts private: %w", err)
	}
	if err := syscall.Mount(dir, "/run/systemd", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("showing %s as /run/systemd: %w", dir, err)
	}
	return nil
}
