package main

import (
	"context"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/probe"
)

const (
	// afterTime is how long all scripts of green.d or of red.d may take together. It is
	// less than what upgrade.Hooks grants, so that who hangs is killed and named.
	afterTime = 50 * time.Second
	// maxReason bounds what a script is told in its environment, in characters.
	maxReason = 4000
)

// greenboot is where this machine has scripts. What they are told beside
// probe.Environment is in docs/health.md.
func (m *machine) greenboot() probe.Greenboot {
	return probe.Greenboot{
		Folders: probe.GreenbootFolders(),
		Env:     []string{"OSCTL_SLOT=" + string(m.booted.Slot)},
	}
}

// checks are the operator's own.
func (m *machine) checks() []health.Probe { return m.run().Checks(m.greenboot()) }

// run is what runs them.
func (m *machine) run() *probe.Runner {
	if m.runner == nil {
		m.runner = probe.NewRunner()
	}
	return m.runner
}

// endChecks returns when nothing of them runs any more: this process may end next.
func (m *machine) endChecks() {
	if m.runner != nil {
		m.runner.Wait()
	}
}

// green runs the scripts that follow a green gate.
func (m *machine) green(ctx context.Context) error {
	return m.after(ctx, probe.GreenDir)
}

// red runs those that follow a red one.
func (m *machine) red(ctx context.Context, reason string) error {
	return m.after(ctx, probe.RedDir, "OSCTL_REASON="+short(cell(reason), maxReason))
}

func (m *machine) after(ctx context.Context, dir string, env ...string) error {
	ctx, cancel := context.WithTimeout(ctx, afterTime)
	defer cancel()
	g := m.greenboot()
	g.Env = append(g.Env, env...)
	return m.run().After(ctx, g, dir)
}
