package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// apiVersion is the version of everything that --json prints.
const apiVersion = "osctl.kapernikov.com/v1"

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// when is a time for people, in UTC: machines in the field differ in their zones.
func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// rebootLimit is how long systemd may take to accept an order to reboot.
const rebootLimit = 30 * time.Second

// reboot asks systemd for an orderly reboot, then for one that stops no units, and then
// has the kernel do it. A manager that hangs keeps the machine no longer than one that
// refuses.
func reboot(ctx context.Context) error {
	var errs []error
	for _, force := range [][]string{nil, {"--force"}, {"--force", "--force"}} {
		limited, cancel := context.WithTimeout(ctx, rebootLimit)
		err := exec.CommandContext(limited, "systemctl", append(force, "reboot")...).Run() // #nosec the words above
		cancel()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("rebooting: %w", errors.Join(errs...))
}
