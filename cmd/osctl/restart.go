package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// rebootPatience is how long one step towards a reboot may take before the next one.
const rebootPatience = 30 * time.Second

// rebootSteps are the ways to a reboot, the gentlest first: in good order; without
// asking the services; without even the system manager (systemctl(1), "--force").
func rebootSteps() [][]string {
	return [][]string{{"reboot"}, {"--force", "reboot"}, {"--force", "--force", "reboot"}}
}

// reboot asks for an orderly reboot, and more firmly where that cannot be asked. It
// returns when it has been accepted.
func reboot(ctx context.Context) error { return restart(ctx, rebootPatience, 0) }

// rebootForGood is the reboot of a verdict: nobody is there to see whether it came to
// pass. It returns when the machine goes down, which ends this process. A step that
// was accepted and has led to nothing is followed by the next one; behind them all
// stands the hardware watchdog, which is fed by the system manager alone.
func (m *machine) rebootForGood(ctx context.Context) error {
	patience := min(rebootPatience, time.Duration(m.expects.Deadline))
	return restart(ctx, patience, patience)
}

// restart takes the steps. Each may take as long as patience; after one that was
// accepted it waits as long as grace for ctx to be done: the system manager ends
// this process first of all.
func restart(ctx context.Context, patience, grace time.Duration) error {
	var errs []error
	for _, args := range rebootSteps() {
		err := systemctl(ctx, patience, args)
		switch {
		case err == nil && grace == 0, ctx.Err() != nil:
			return nil
		case err != nil:
			errs = append(errs, err)
			continue
		}
		given := time.NewTimer(grace)
		select {
		case <-ctx.Done():
			given.Stop()
			return nil
		case <-given.C:
			errs = append(errs, fmt.Errorf("systemctl %s: the machine still runs %v later", strings.Join(args, " "), grace))
		}
	}
	return fmt.Errorf("rebooting: %w", errors.Join(errs...))
}

// systemctl runs one step. That this process is told to end meanwhile is what was
// asked for, and no reason to stop asking.
func systemctl(ctx context.Context, limit time.Duration, args []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	// A child that holds on to its output does not hold this up.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer after %v", limit)
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
