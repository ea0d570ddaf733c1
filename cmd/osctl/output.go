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

// reboot asks systemd for an orderly reboot, and then for one without asking.
func reboot(ctx context.Context) error {
	first := exec.CommandContext(ctx, "systemctl", "reboot").Run()
	if first == nil {
		return nil
	}
	if err := exec.CommandContext(ctx, "systemctl", "--force", "reboot").Run(); err != nil {
		return fmt.Errorf("rebooting: %w", errors.Join(first, err))
	}
	return nil
}
